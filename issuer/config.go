package issuer

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/client/configfile"
)

// Modes of TLS.
const (
	TLSSelf  = "self"
	TLSFiles = "files"
	TLSACME  = "acme"
	TLSOff   = "off"
)

// Config is issuer.yaml. Unknown keys, duplicate keys and second documents are
// errors. Relative paths are relative to the file's folder. Secrets are named,
// never written, in it: a path, or env:NAME.
type Config struct {
	// Listen is the address of the API, host:port. Default ":8443".
	// Remedy for "address already in use": another port, or stop what has it.
	Listen string `yaml:"listen"`
	// PublicURL is how clients reach the API: scheme, host, optional port, no
	// path. It goes into every certificate as the CRL distribution point and is
	// the only origin of the admin page. Required; https, or http on loopback.
	PublicURL string `yaml:"public_url" jsonschema:"required"`
	// TLS says how the listener is protected. Default: mode self.
	TLS TLSConfig `yaml:"tls"`
	// ACME says where tls.mode acme gets its certificate. Default: Let's Encrypt.
	ACME ACMEConfig `yaml:"acme"`
	// BehindProxy says that a TLS edge stands in front of a listener without
	// TLS. Needed for tls.mode off elsewhere than on loopback. Default false.
	BehindProxy bool `yaml:"behind_proxy"`
	// ClientIPHeader names the header in which the edge gives the client's
	// address (Fly: Fly-Client-IP). The address serves rate limits and the log
	// only, never authorisation. Default: none, the peer's own address.
	ClientIPHeader string `yaml:"client_ip_header"`
	// TrustedProxies are the networks (CIDR) or addresses whose ClientIPHeader
	// is believed. Empty: any peer may send the header.
	TrustedProxies []string `yaml:"trusted_proxies"`
	// CA names the certificates and the key. Required.
	CA CAConfig `yaml:"ca" jsonschema:"required"`
	// Store is the path of the SQLite store, a postgres:// URL, or env:NAME
	// holding either. Required. serve never makes one: mayfly-issuer init or
	// mayfly-issuer store create does.
	Store string `yaml:"store" jsonschema:"required"`
	// StateKey names the keys that authenticate what a writer in the database
	// must not forge: the admins' logins. Each is a path or env:NAME holding 32
	// bytes in hex or base64. The first signs and all verify: to replace a key,
	// put the new one before it, restart every issuer, and take the old one out
	// 8 h later (at once logs every admin out). All issuers of one store share
	// the list, and no backup of the store may hold it. init makes one.
	// Default: none. SQLite then uses a key that ends with the process, so a
	// restart logs every admin out; PostgreSQL refuses to start. Remedy:
	// openssl rand -hex 32 >state.key
	StateKey []string `yaml:"state_key"`
	// Policy is the path of the policy file. Required. It is read again on
	// SIGHUP and when it changes; a bad file keeps the old rules.
	Policy string `yaml:"policy" jsonschema:"required"`
	// MetricsListen is the address of /metrics for Prometheus, host:port.
	// Default: none. Keep it off the public internet.
	MetricsListen string `yaml:"metrics_listen"`
	// Retention is how long expired certificates, closed sessions and events
	// are kept, as a Go duration. Default 2160h (90 days), at least 48h: a CRL
	// lists what was revoked until a day after its end.
	Retention time.Duration `yaml:"retention"`
	// Rate bounds requests. See RateConfig.
	Rate RateConfig `yaml:"rate"`
	// RunAs is the user, as name, uid or uid:gid, that a process started as
	// root becomes, after it has handed that user the folder of a SQLite store.
	// Default: none, the process stays who it is. Ignored when not root.
	RunAs string `yaml:"run_as"`

	// Path is where the file was read from; "" for a Config made in code.
	Path string `yaml:"-"`
	// Logger gets the access log and what goes wrong. Nil discards.
	Logger *slog.Logger `yaml:"-"`
	// Out gets the few lines that serve tells a person. Nil discards.
	Out io.Writer `yaml:"-"`
	// Reload, when it delivers, has the policy read again, as SIGHUP does. Nil
	// leaves the watch on the file.
	Reload <-chan struct{} `yaml:"-"`
	// Listener, when not nil, is used in place of one on Listen, and owned.
	Listener *net.TCPListener `yaml:"-"`
	// Started, when not nil, is called once with the address that the API
	// listens on.
	Started func(net.Addr) `yaml:"-"`
}

// TLSConfig says how the listener is protected.
type TLSConfig struct {
	// Mode is self (a certificate of this CA for public_url's host, renewed by
	// itself), acme (a certificate that browsers know, from Let's Encrypt or
	// another ACME server, renewed by itself), files (Cert and Key, read again
	// when they change) or off (plain HTTP: loopback, or behind_proxy). In every
	// mode clients pin the CA's root by its trust anchor. Default self.
	Mode string `yaml:"mode" jsonschema:"enum=self,enum=acme,enum=files,enum=off"`
	// Cert is the path of the certificate with its chain, PEM, leaf first.
	// Required by mode files, and for no other. Default: none.
	Cert string `yaml:"cert"`
	// Key is the path of its private key, PEM. As Cert. Default: none.
	Key string `yaml:"key"`
}

// ACMEConfig says where mode acme gets its certificate, for public_url's host.
// The ACME server proves the name by a connection to port 443 of that host
// (TLS-ALPN-01), which must reach this listener: so the mode fits one issuer with
// an address of its own, and neither several replicas nor a TLS edge in front.
// Using it accepts the ACME server's terms of service. Clients keep their trust
// anchor, and drop a ca_file that names the CA's root.
type ACMEConfig struct {
	// Email is where the ACME server writes about trouble with the certificate.
	// Default: none.
	Email string `yaml:"email"`
	// DirectoryURL is the https URL of the ACME server's directory. Default:
	// Let's Encrypt's.
	DirectoryURL string `yaml:"directory_url"`
	// CAFile is the path of the roots, PEM, that the ACME server's own
	// certificate must chain to, for a private one. Default: the system's.
	CAFile string `yaml:"ca_file"`
	// Dir is the path of the folder that keeps the account and the certificates,
	// with their keys, mode 0700. Default: acme, next to a SQLite store, else
	// next to this file.
	Dir string `yaml:"dir"`
}

// CAConfig names the CA's certificates and key.
type CAConfig struct {
	// Root is the path of the root's certificate, PEM. Its key stays offline.
	// Required.
	Root string `yaml:"root" jsonschema:"required"`
	// RootCRL is the path of the root's CRL, PEM, made by init and by rotate
	// sign. Remedy when it has expired: mayfly-issuer rotate. Required.
	RootCRL string `yaml:"root_crl" jsonschema:"required"`
	// Intermediate is the path of the issuing certificate, PEM. Required.
	Intermediate string `yaml:"intermediate" jsonschema:"required"`
	// Key is the issuing key: a path, env:NAME holding PEM, or a
	// go.step.sm/crypto KMS URI. Required.
	Key string `yaml:"key" jsonschema:"required"`
	// Previous are intermediates of the past that still sign the CRLs of their
	// own leaves, until a day after the last of them has expired. Default: those
	// that rotate install kept in the folder previous beside Intermediate.
	Previous []PreviousCA `yaml:"previous"`
}

// PreviousCA is an intermediate that issues no more.
type PreviousCA struct {
	// Intermediate is the path of its certificate, PEM. Required.
	Intermediate string `yaml:"intermediate" jsonschema:"required"`
	// Key is its key, in the forms of CAConfig.Key. Required.
	Key string `yaml:"key" jsonschema:"required"`
}

// RateConfig bounds requests, each per 10 seconds; 0 switches one off. Over it
// the answer is 429 with Retry-After.
type RateConfig struct {
	// PerIP bounds requests from one address (IPv6: one /64), before anything
	// of them is read. Default 1000: a matrix of 256 jobs behind one address,
	// three requests each, passes.
	PerIP int `yaml:"per_ip"`
	// PerIdentity bounds requests with verified tokens of one repository,
	// machine or person. Default 600: a matrix of 256 jobs, twice, passes.
	PerIdentity int `yaml:"per_identity"`
}

// Defaults of Config.
const (
	defaultListen      = ":8443"
	defaultRetention   = 90 * 24 * time.Hour
	minRetention       = 48 * time.Hour
	defaultPerIP       = 1000
	defaultPerIdentity = 600
)

// DefaultConfig is what ParseConfig starts from.
func DefaultConfig() Config {
	return Config{
		Listen:    defaultListen,
		TLS:       TLSConfig{Mode: TLSSelf},
		Retention: defaultRetention,
		Rate:      RateConfig{PerIP: defaultPerIP, PerIdentity: defaultPerIdentity},
	}
}

// LoadConfig reads and checks the file at path.
func LoadConfig(path string) (Config, error) {
	data, err := readBounded(path, configfile.MaxBytes)
	if err != nil {
		return Config{}, fmt.Errorf("read config: %w", err)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return Config{}, fmt.Errorf("read config: %w", err)
	}
	c, err := parseConfig(path, data, filepath.Dir(abs))
	if err != nil {
		return Config{}, err
	}
	c.Path = abs
	return c, nil
}

// ParseConfig parses and checks the YAML of issuer.yaml, whose relative paths
// are relative to dir.
func ParseConfig(data []byte, dir string) (Config, error) {
	return parseConfig("issuer.yaml", data, dir)
}

func parseConfig(file string, data []byte, dir string) (Config, error) {
	c := DefaultConfig()
	doc, err := configfile.Parse(file, data)
	if err != nil {
		return Config{}, err
	}
	if doc.Root == nil {
		return Config{}, fmt.Errorf("%s is empty", file)
	}
	if err := doc.Decode(&c); err != nil {
		return Config{}, err
	}
	c.resolve(dir)
	if err := c.Check(); err != nil {
		return Config{}, fmt.Errorf("config %s: %w", file, err)
	}
	return c, nil
}

// resolve makes the relative paths absolute.
func (c *Config) resolve(dir string) {
	paths := []*string{&c.Policy, &c.TLS.Cert, &c.TLS.Key, &c.ACME.CAFile, &c.ACME.Dir, &c.CA.Root, &c.CA.RootCRL, &c.CA.Intermediate}
	refs := []*string{&c.Store, &c.CA.Key}
	for i := range c.StateKey {
		refs = append(refs, &c.StateKey[i])
	}
	for i := range c.CA.Previous {
		paths = append(paths, &c.CA.Previous[i].Intermediate)
		refs = append(refs, &c.CA.Previous[i].Key)
	}
	for _, r := range refs {
		if isPath(*r) {
			paths = append(paths, r)
		}
	}
	for _, p := range paths {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
}

// isPath tells a path from env:NAME, a URL and a KMS URI.
func isPath(ref string) bool {
	scheme, _, ok := strings.Cut(ref, ":")
	return !ok || strings.ContainsAny(scheme, "/.") || scheme == ""
}

// Check refuses a Config that cannot be served, naming the key and the remedy.
func (c *Config) Check() error {
	for _, k := range []struct{ key, value string }{
		{"listen", c.Listen}, {"public_url", c.PublicURL}, {"store", c.Store}, {"policy", c.Policy},
		{"ca.root", c.CA.Root}, {"ca.root_crl", c.CA.RootCRL}, {"ca.intermediate", c.CA.Intermediate}, {"ca.key", c.CA.Key},
	} {
		if k.value == "" {
			return fmt.Errorf("%s is missing", k.key)
		}
	}
	for i, p := range c.CA.Previous {
		if p.Intermediate == "" || p.Key == "" {
			return fmt.Errorf("ca.previous[%d] needs intermediate and key", i)
		}
	}
	if _, err := c.publicURL(); err != nil {
		return err
	}
	if err := c.checkTLS(); err != nil {
		return err
	}
	if err := c.checkACME(); err != nil {
		return err
	}
	if c.MetricsListen != "" {
		if _, _, err := net.SplitHostPort(c.MetricsListen); err != nil {
			return fmt.Errorf("metrics_listen: %w", err)
		}
	}
	if c.Retention < minRetention {
		return fmt.Errorf("retention: %v is under %v: a CRL lists what was revoked until a day after its end", c.Retention, minRetention)
	}
	if c.Rate.PerIP < 0 || c.Rate.PerIdentity < 0 {
		return errors.New("rate: requests per 10 s cannot be negative; 0 is off")
	}
	if c.ClientIPHeader != "" && !isHeaderName(c.ClientIPHeader) {
		return errors.New("client_ip_header: not a header's name")
	}
	if len(c.TrustedProxies) > 0 && c.ClientIPHeader == "" {
		return errors.New("trusted_proxies without client_ip_header says nothing: name the header, or drop it")
	}
	_, err := c.trustedPrefixes()
	return err
}

func (c *Config) checkTLS() error {
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	switch c.TLS.Mode {
	case TLSSelf, TLSACME, TLSOff:
		if c.TLS.Cert != "" || c.TLS.Key != "" {
			return fmt.Errorf("tls.cert and tls.key belong to mode files, not to %s", c.TLS.Mode)
		}
	case TLSFiles:
		if c.TLS.Cert == "" || c.TLS.Key == "" {
			return errors.New("tls.mode files needs tls.cert and tls.key")
		}
	default:
		return fmt.Errorf("tls.mode: %q is none of self, acme, files, off", c.TLS.Mode)
	}
	if c.TLS.Mode == TLSOff && !c.BehindProxy && !isLoopback(host) {
		return fmt.Errorf("tls.mode off on %s would carry tokens in the clear: listen on loopback, or say behind_proxy: true where a TLS edge stands in front", c.Listen)
	}
	return nil
}

// isHeaderName reports whether s is letters, digits and hyphens, as the names of
// all headers with an address are: any other would never be found.
func isHeaderName(s string) bool {
	for _, b := range []byte(s) {
		if b != '-' && (b < '0' || b > '9') && (b|0x20 < 'a' || b|0x20 > 'z') {
			return false
		}
	}
	return s != ""
}

// CheckPublicURL reports whether s can be a Config's PublicURL.
func CheckPublicURL(s string) error {
	_, err := (&Config{PublicURL: s}).publicURL()
	return err
}

// publicURL parses PublicURL, without a trailing slash.
func (c *Config) publicURL() (*url.URL, error) {
	u, err := url.Parse(strings.TrimSuffix(c.PublicURL, "/"))
	if err != nil {
		return nil, errors.New("public_url: not a URL")
	}
	switch {
	case u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "":
		return nil, errors.New("public_url: want scheme and host, such as https://issuer.example.com, without path or user")
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		return nil, errors.New("public_url: http is for loopback only; clients refuse it elsewhere")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("public_url: scheme %q is neither https nor http", u.Scheme)
	}
	return u, nil
}

// trustedPrefixes parses TrustedProxies.
func (c *Config) trustedPrefixes() ([]netip.Prefix, error) {
	prefixes := make([]netip.Prefix, 0, len(c.TrustedProxies))
	for _, s := range c.TrustedProxies {
		if a, err := netip.ParseAddr(s); err == nil {
			prefixes = append(prefixes, netip.PrefixFrom(a, a.BitLen()))
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("trusted_proxies: %q is neither an address nor a network", s)
		}
		prefixes = append(prefixes, p.Masked())
	}
	return prefixes, nil
}

// StoreDSN resolves env:NAME in Store. The answer may hold a password.
func (c *Config) StoreDSN() (string, error) {
	name, ok := strings.CutPrefix(c.Store, "env:")
	if !ok {
		return c.Store, nil
	}
	v := os.Getenv(name)
	if v == "" {
		return "", fmt.Errorf("store: environment variable %s is empty", name)
	}
	return v, nil
}

// isLoopback reports whether host, a name or an address, is this machine alone.
func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// readBounded reads a file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return data, nil
}
