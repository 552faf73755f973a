package sidecar

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/client"
	"github.com/mayfly-ca/mayfly/client/configfile"
	"github.com/mayfly-ca/mayfly/client/tokensource"
	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/supervise"
)

// EnvPrefix begins the environment variable of every key: MAYFLY_SIDECAR_ and
// the key in upper case, MAYFLY_SIDECAR_LIMITS_ and the key for one of limits.
// A variable that is set, and not empty, wins over the file. A list is separated
// by commas; where an item holds a comma, the list is written as in YAML, with
// quotes: ["NO_PROXY=localhost,10.0.0.0/8", "DEBUG=1"].
const EnvPrefix = "MAYFLY_SIDECAR_"

// Values of proxy_protocol.
const (
	// ProxyOff takes the TCP peer's address as the client's, if there is no
	// proxy in front; a PROXY header is then garbage to TLS.
	ProxyOff = "off"
	// ProxyRequired wants a PROXY protocol v2 header on each connection.
	ProxyRequired = "required"
)

// Values of on_stale.
const (
	// StaleRefuse refuses new connections while the feed is stale.
	StaleRefuse = "refuse"
	// StaleCut cuts live relays too.
	StaleCut = "cut"
)

// Values of engine_probe.
const (
	ProbeAnswer  = "answer"
	ProbeConnect = "connect"
)

// Config is the sidecar's configuration file, strict YAML. Durations are
// written as in Go: 90s, 5m, 24h. A key that is left out has its default; one
// that is written means what it says, and a zero without a meaning is an error.
type Config struct {
	// Issuer is the issuer's URL: https, or http on loopback. Required.
	Issuer string `yaml:"issuer"`
	// CAFile is a PEM file of the roots that the issuer's own TLS certificate
	// chains to. Empty: the system's.
	CAFile string `yaml:"ca_file"`
	// TrustAnchor pins mayfly's root: "sha256:" and the hex digest of its DER.
	// Empty: the root that the issuer names is believed, over its TLS.
	TrustAnchor string `yaml:"trust_anchor"`
	// Audience of the tokens asked for, mayfly:<trust domain>. Empty: what the
	// issuer's /v1/info says.
	Audience string `yaml:"audience"`
	// Engine is this engine's name in the policy. Required.
	Engine string `yaml:"engine"`
	// Listen is the TCP address for clients. Default :8080.
	Listen string `yaml:"listen"`
	// ProxyProtocol is off or required. Default off. Behind a proxy that sends
	// PROXY v2 (Fly: handlers proxy_proto) use required: without it all clients
	// share one address and no limit per address is possible.
	ProxyProtocol string `yaml:"proxy_protocol" jsonschema:"enum=off,enum=required"`
	// TrustedProxies are the addresses or networks (CIDR) that may send a PROXY
	// header. Others are hung up on. Empty, with proxy_protocol required: any
	// peer, which is right only where nobody but the proxy can reach Listen.
	TrustedProxies []string `yaml:"trusted_proxies"`
	// StatusListen is the TCP address of /healthz, /readyz and /metrics, plain
	// HTTP. /healthz is ok while the program runs, /readyz while clients are
	// admitted and the engine answers on its socket. Empty: none. It tells no
	// secret, but keep it off the internet.
	StatusListen string `yaml:"status_listen"`
	// EngineSocket is the absolute path of the engine's unix socket. Default
	// /run/dagger/engine.sock.
	EngineSocket string `yaml:"engine_socket"`
	// EngineVersion is what the engine is, for the issuer to show and for mayfly
	// doctor to compare: a version, or an image's reference, of which the name and
	// the tag are reported. Default: not known.
	EngineVersion string `yaml:"engine_version"`
	// EngineEnv are variables for the engine beside those that every engine gets
	// (mayfly-sidecar check lists them): NAME=VALUE, NAME to pass on the sidecar's
	// own value, or PREFIX* for all of its variables that begin so. Names that look
	// like secrets (*TOKEN*, *_KEY, AWS_*) pass by exact name only, the sidecar's
	// and the platform's (MAYFLY_*, FLY_API*) never. Default: nothing.
	EngineEnv []string `yaml:"engine_env"`
	// EngineProbe says when the engine is ready, at its start by the sidecar and
	// for /readyz: answer (it answers an HTTP/2 greeting, as Dagger and BuildKit do)
	// or connect (it accepts a connection). Default answer.
	EngineProbe string `yaml:"engine_probe" jsonschema:"enum=answer,enum=connect"`
	// EngineHide are absolute paths that the engine must not see, beside /.fly
	// and the folder of a token file. Name the folder of a file that is replaced:
	// a file's own cover is lost then. Default: none.
	EngineHide []string `yaml:"engine_hide"`
	// UnsafeNoIsolation runs the engine in the sidecar's own namespaces: a build
	// step that breaks out of its container then reaches the machine's identity.
	// Default false.
	UnsafeNoIsolation bool `yaml:"unsafe_no_isolation"`
	// TokenSource says where ID tokens come from: auto, fly, file:PATH, env:NAME
	// or exec:CMD. Default auto, which is fly on a Fly Machine. The folder of PATH
	// is hidden from an isolated engine, so it must be the token's alone, and must
	// be there when the engine starts. The file in it may be replaced.
	TokenSource string `yaml:"token_source"`
	// FlyAPISocket is the Fly Machine's API socket. Default /.fly/api.
	FlyAPISocket string `yaml:"fly_api_socket"`
	// MaxStaleness is the age from which the revocation feed admits nobody.
	// Default 5m, at most 1h.
	MaxStaleness time.Duration `yaml:"max_staleness"`
	// OnStale is what a stale feed means for live relays: refuse (only new ones
	// are refused) or cut. Default refuse.
	OnStale string `yaml:"on_stale" jsonschema:"enum=refuse,enum=cut"`
	// MaxConnectionAge ends any relay. Default and maximum 24h.
	MaxConnectionAge time.Duration `yaml:"max_connection_age"`
	// IdleExit ends the program with 0 when it had no relay for so long. 0, the
	// default: never.
	IdleExit time.Duration `yaml:"idle_exit"`
	// BootGrace stands in for IdleExit until the first relay, counted from
	// listening. Default 60s. Without effect when IdleExit is 0.
	BootGrace time.Duration `yaml:"boot_grace"`
	// BootTimeout ends the program with 1 when it was not listening for so long.
	// Default 10m.
	BootTimeout time.Duration `yaml:"boot_timeout"`
	// DrainTimeout is how long a stop waits for relays to end by themselves,
	// before the engine is told to stop. Default 30s; 0 does not wait.
	DrainTimeout time.Duration `yaml:"drain_timeout"`
	// KillTimeout is how long the engine may take to stop before it is killed,
	// and with it, for Dagger, its cache. Default 120s. The platform's own kill
	// timeout has to be longer than both together.
	KillTimeout time.Duration `yaml:"kill_timeout"`
	// Limits bound what clients may use. See Limits.
	Limits Limits `yaml:"limits"`

	Program Program `yaml:"-"`
}

// Program is what does not come from the file.
type Program struct {
	// Command is the engine's command line. Empty: something else runs the
	// engine, and only its socket is used.
	Command []string
	// EngineOut and EngineErr get the engine's output. Nil discards it.
	EngineOut, EngineErr io.Writer
	// Logger is the sidecar's log. Nil discards it.
	Logger *slog.Logger
	// Version is the sidecar's own, without spaces, for the issuer to show. Empty:
	// not known.
	Version string
	// Signals are passed on to the engine. May be nil.
	Signals <-chan os.Signal
	// Listening, if not nil, hears of each start of listening, and of the
	// status address, which is nil when there is none.
	Listening func(addr, status net.Addr)
}

// Limits bound what clients may use. None can be off: each is 1 or more.
type Limits struct {
	// Connections bounds the relays at one time. Default: as many as the limit of
	// open files allows (ulimit -n), at most 10000.
	Connections int `yaml:"connections"`
	// ConnectionsPerRun bounds the relays of one SPIFFE ID and run. Default 256.
	ConnectionsPerRun int `yaml:"connections_per_run"`
	// Handshakes bounds the connections that are not authenticated yet; the
	// oldest is closed for a new one. Default 512.
	Handshakes int `yaml:"handshakes"`
	// HandshakesPerAddress bounds those of one client address, where addresses
	// are known. Default 64.
	HandshakesPerAddress int `yaml:"handshakes_per_address"`
	// HandshakeTimeout bounds PROXY header and handshake together. Default 10s.
	HandshakeTimeout time.Duration `yaml:"handshake_timeout"`
	// HandshakeRate bounds the handshakes per second, after a burst of twice as
	// many. Where addresses are known, one of them gets a quarter at most. Default
	// 500.
	HandshakeRate int `yaml:"handshake_rate"`
}

// DefaultConfig is what ParseConfig starts from.
func DefaultConfig() Config {
	return Config{
		Listen:           ":8080",
		ProxyProtocol:    ProxyOff,
		EngineSocket:     "/run/dagger/engine.sock",
		EngineProbe:      ProbeAnswer,
		TokenSource:      "auto",
		MaxStaleness:     5 * time.Minute,
		OnStale:          StaleRefuse,
		MaxConnectionAge: 24 * time.Hour,
		BootGrace:        time.Minute,
		BootTimeout:      10 * time.Minute,
		DrainTimeout:     30 * time.Second,
		KillTimeout:      2 * time.Minute,
		Limits: Limits{
			Connections:          allowedRelays(10000),
			ConnectionsPerRun:    256,
			Handshakes:           512,
			HandshakesPerAddress: 64,
			HandshakeTimeout:     10 * time.Second,
			HandshakeRate:        500,
		},
	}
}

// ParseConfig reads a configuration file and the environment over the defaults
// and checks the whole. Unknown keys, a second document and unknown
// variables that begin with EnvPrefix are errors. environ is os.Environ().
func ParseConfig(data []byte, environ []string) (Config, error) {
	return parseConfig("sidecar.yaml", data, environ)
}

// LoadConfig is ParseConfig of the file at path. Without a path there is only
// the environment.
func LoadConfig(path string, environ []string) (Config, error) {
	if path == "" {
		return ParseConfig(nil, environ)
	}
	f, err := os.Open(path)
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, configfile.MaxBytes+1))
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	return parseConfig(path, data, environ)
}

func parseConfig(file string, data []byte, environ []string) (Config, error) {
	c := DefaultConfig()
	doc, err := configfile.Parse(file, data)
	if err != nil {
		return Config{}, err
	}
	if err := doc.Decode(&c); err != nil {
		return Config{}, err
	}
	vars := map[string]string{}
	for _, v := range environ {
		if name, value, ok := strings.Cut(v, "="); ok && strings.HasPrefix(name, EnvPrefix) && value != "" {
			vars[name] = value
		}
	}
	if err := fromEnv(reflect.ValueOf(&c).Elem(), EnvPrefix, vars); err != nil {
		return Config{}, err
	}
	for name := range vars {
		hint := "unset it"
		if near := configfile.Nearest(strings.TrimPrefix(name, EnvPrefix), envNames(reflect.TypeFor[Config](), "")); near != "" {
			hint = "did you mean " + EnvPrefix + near + "?"
		}
		return Config{}, fmt.Errorf("configuration: there is no key for the variable %s; %s", name, hint)
	}
	return c, c.Validate()
}

// envNames lists the keys of t as variables name them, without EnvPrefix.
func envNames(t reflect.Type, prefix string) []string {
	var out []string
	for i := range t.NumField() {
		f := t.Field(i)
		switch key := f.Tag.Get("yaml"); {
		case key == "-":
		case f.Type.Kind() == reflect.Struct:
			out = append(out, envNames(f.Type, prefix+strings.ToUpper(key)+"_")...)
		default:
			out = append(out, prefix+strings.ToUpper(key))
		}
	}
	return out
}

// fromEnv sets the fields of v whose variables are set, and takes those from
// vars.
func fromEnv(v reflect.Value, prefix string, vars map[string]string) error {
	for i := range v.NumField() {
		key := v.Type().Field(i).Tag.Get("yaml")
		if key == "-" {
			continue
		}
		name := prefix + strings.ToUpper(key)
		field := v.Field(i)
		if field.Kind() == reflect.Struct {
			if err := fromEnv(field, name+"_", vars); err != nil {
				return err
			}
			continue
		}
		value, ok := vars[name]
		if !ok {
			continue
		}
		delete(vars, name)
		switch field.Kind() {
		case reflect.String:
			field.SetString(value)
		case reflect.Slice:
			list, err := splitList(value)
			if err != nil {
				return fmt.Errorf("configuration: %s: %w", name, err)
			}
			field.Set(reflect.ValueOf(list))
		default:
			if err := configfile.Value(value, field.Addr().Interface()); err != nil {
				return fmt.Errorf("configuration: %s: %w", name, err)
			}
		}
	}
	return nil
}

// splitList reads a list key's variable: see EnvPrefix. Between commas white
// space and empty items are dropped.
func splitList(s string) ([]string, error) {
	var out []string
	if strings.HasPrefix(strings.TrimSpace(s), "[") {
		var file struct {
			List []string `yaml:"list"`
		}
		doc, err := configfile.Parse("variable", []byte("list: "+s))
		if err != nil || doc.Decode(&file) != nil {
			return nil, errors.New(`begins with [ and is no list: write it as ["A=1,2", "B"]`)
		}
		return file.List, nil
	}
	for item := range strings.SplitSeq(s, ",") {
		if item = strings.TrimSpace(item); item != "" {
			out = append(out, item)
		}
	}
	return out, nil
}

// maxLimit is more than any machine can use of a thing that Limits count.
const maxLimit = 1_000_000

// Validate tells what is wrong with c.
func (c *Config) Validate() error {
	var errs []error
	wrong := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf("configuration: "+format, args...))
		}
	}
	for _, k := range []struct{ key, value string }{
		{"issuer", c.Issuer}, {"engine", c.Engine}, {"listen", c.Listen}, {"token_source", c.TokenSource},
	} {
		wrong(k.value == "", "%s is required", k.key)
	}
	wrong(!filepath.IsAbs(c.EngineSocket), "engine_socket %q is not an absolute path", c.EngineSocket)
	wrong(len(c.EngineSocket) > 100, "engine_socket is longer than a unix socket's path may be")
	wrong(!slices.Contains([]string{ProxyOff, ProxyRequired}, c.ProxyProtocol), "proxy_protocol %q is neither off nor required", c.ProxyProtocol)
	wrong(!slices.Contains([]string{StaleRefuse, StaleCut}, c.OnStale), "on_stale %q is neither refuse nor cut", c.OnStale)
	wrong(!slices.Contains([]string{ProbeAnswer, ProbeConnect}, c.EngineProbe), "engine_probe %q is neither answer nor connect", c.EngineProbe)
	wrong(len(c.TrustedProxies) > 0 && c.ProxyProtocol == ProxyOff, "trusted_proxies needs proxy_protocol: required")
	for _, addr := range []string{c.Listen, c.StatusListen} {
		_, _, err := net.SplitHostPort(addr)
		wrong(addr != "" && err != nil, "address %q: %v", addr, err)
	}
	_, err := parsePrefixes(c.TrustedProxies)
	wrong(err != nil, "trusted_proxies: %v", err)
	for _, p := range c.EngineHide {
		wrong(!filepath.IsAbs(p), "engine_hide: %q is not an absolute path", p)
	}
	wrong(!validVersion(c.EngineVersion), "engine_version %q is not a version or an image's reference of at most %d characters", c.EngineVersion, maxEngineVersion)
	err = supervise.CheckEnvironment(c.EngineEnv)
	wrong(err != nil, "engine_env: %v", err)
	return errors.Join(append(errs, c.checkIssuer(), c.checkDurations(), c.Limits.check())...)
}

func (c *Config) checkDurations() error {
	var errs []error
	for _, d := range []struct {
		key         string
		value, most time.Duration
		zero        bool // has a meaning
	}{
		{"max_staleness", c.MaxStaleness, time.Hour, false},
		{"max_connection_age", c.MaxConnectionAge, 24 * time.Hour, false},
		{"idle_exit", c.IdleExit, math.MaxInt64, true},
		{"boot_grace", c.BootGrace, 24 * time.Hour, false},
		{"boot_timeout", c.BootTimeout, 24 * time.Hour, false},
		{"drain_timeout", c.DrainTimeout, 24 * time.Hour, true},
		{"kill_timeout", c.KillTimeout, time.Hour, false},
		{"limits.handshake_timeout", c.Limits.HandshakeTimeout, time.Minute, false},
	} {
		switch {
		case d.value < 0:
			errs = append(errs, fmt.Errorf("configuration: %s: %v is negative", d.key, d.value))
		case d.value == 0 && !d.zero:
			errs = append(errs, fmt.Errorf("configuration: %s: 0 is not a duration for it: leave the key out for its default", d.key))
		case d.value > d.most:
			errs = append(errs, fmt.Errorf("configuration: %s: %v is more than %v", d.key, d.value, d.most))
		}
	}
	return errors.Join(errs...)
}

func (l *Limits) check() error {
	var errs []error
	for _, n := range []struct {
		key   string
		value int
	}{
		{"connections", l.Connections},
		{"connections_per_run", l.ConnectionsPerRun},
		{"handshakes", l.Handshakes},
		{"handshakes_per_address", l.HandshakesPerAddress},
		{"handshake_rate", l.HandshakeRate},
	} {
		if n.value < 1 || n.value > maxLimit {
			errs = append(errs, fmt.Errorf("configuration: limits.%s: %d is not 1 to %d: leave the key out for its default", n.key, n.value, maxLimit))
		}
	}
	return errors.Join(errs...)
}

// checkIssuer tells what is wrong with where certificates come from, as far as
// that is seen without the platform and its files. What is missing is told by
// Validate.
func (c *Config) checkIssuer() error {
	var errs []error
	if c.Issuer != "" {
		if _, err := client.NewIssuer(c.Issuer, "", c.TrustAnchor); err != nil {
			errs = append(errs, fmt.Errorf("configuration: %w", err))
		}
	}
	if c.Audience != "" {
		if err := tokensource.CheckAudience(c.Audience); err != nil {
			errs = append(errs, fmt.Errorf("configuration: %w", err))
		}
	}
	if c.TokenSource != "" {
		_, err := c.tokenSource()
		var absent *tokensource.Error // the platform, which may be another machine's
		if err != nil && !errors.As(err, &absent) {
			errs = append(errs, fmt.Errorf("configuration: token_source: %w", err))
		}
	}
	return errors.Join(errs...)
}

// parsePrefixes reads addresses and networks.
func parsePrefixes(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p.Masked())
			continue
		}
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("%q is neither an address nor a network", s)
		}
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out, nil
}
