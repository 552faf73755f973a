package ca_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/catest"
	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/ca/store"
)

func TestInit(t *testing.T) {
	t.Parallel()
	files := catest.Init(t, catest.Options{})
	c := catest.Open(t, files, catest.Options{})
	root, intermediate := c.Root(), c.Intermediates()[0]
	if y := root.NotAfter.Sub(root.NotBefore).Hours() / 24 / 365.25; y < 9.9 || y > 10.1 || root.MaxPathLen != 1 {
		t.Errorf("root: %v years, path length %d", y, root.MaxPathLen)
	}
	if y := intermediate.NotAfter.Sub(intermediate.NotBefore).Hours() / 24 / 365.25; y < 0.9 || y > 1.1 || intermediate.MaxPathLen != 0 || !intermediate.MaxPathLenZero {
		t.Errorf("intermediate: %v years, path length %d", y, intermediate.MaxPathLen)
	}
	want := ca.Constraints{TrustDomain: c.TrustDomain(), DNS: []string{catest.EngineDNS}, Loopback: true}
	if got := c.Constraints(); got.TrustDomain != want.TrustDomain || !got.Loopback || len(got.DNS) != 1 || got.DNS[0] != want.DNS[0] {
		t.Errorf("constraints %+v, want %+v", got, want)
	}
	if files.RootPassword == "" || files.Fingerprint != ca.Fingerprint(root) {
		t.Errorf("result %+v", files)
	}
	block, _ := pem.Decode(catest.ReadFile(t, files.RootKey))
	if block == nil || block.Type != "ENCRYPTED PRIVATE KEY" {
		t.Error("the root's key is not encrypted")
	}
	for path, mode := range map[string]os.FileMode{files.RootKey: 0o600, files.IntermediateKey: 0o600, files.RootDir: 0o700, files.IssuerDir: 0o700, files.DSN: 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != mode {
			t.Errorf("%s: mode %v, want %v", path, info.Mode().Perm(), mode)
		}
	}
	for _, path := range []string{files.Root, files.RootCRL, files.Intermediate, files.IntermediateKey} {
		if data := catest.ReadFile(t, path); bytes.Contains(data, block.Bytes) {
			t.Errorf("%s holds the root's key", path)
		}
	}
	if _, err := ca.Init(t.Context(), ca.InitOptions{Dir: filepath.Dir(files.RootDir), TrustDomain: catest.TrustDomain, EngineDNS: []string{catest.EngineDNS}}); !errors.Is(err, ca.ErrInitialised) {
		t.Errorf("init over an authority: %v", err)
	}
	if !bytes.Equal(catest.ReadFile(t, files.Root), c.Config.Root) {
		t.Error("init over an authority changed it")
	}
}

func TestInitRefuses(t *testing.T) { // not parallel: sets the environment
	for name, change := range map[string]func(*ca.InitOptions){
		"trust domain of one label":  func(o *ca.InitOptions) { o.TrustDomain = "localhost" },
		"trust domain in upper case": func(o *ca.InitOptions) { o.TrustDomain = "CI.example.com" },
		"trust domain as URI":        func(o *ca.InitOptions) { o.TrustDomain = "spiffe://ci.example.com" },
		"no engine":                  func(o *ca.InitOptions) { o.EngineDNS = nil },
		"wildcard":                   func(o *ca.InitOptions) { o.EngineDNS = []string{"*.fly.dev"} },
		"top-level domain":           func(o *ca.InitOptions) { o.EngineDNS = []string{"dev"} },
		"IP address as a name":       func(o *ca.InitOptions) { o.EngineDNS = []string{"127.0.0.1"} },
		"leading dot":                func(o *ca.InitOptions) { o.EngineDNS = []string{".fly.dev"} },
		"issuer URL on an IP":        func(o *ca.InitOptions) { o.IssuerURL = "https://10.0.0.1:8443" },
		"issuer URL without scheme":  func(o *ca.InitOptions) { o.IssuerURL = "issuer.example.com" },
		"no folder":                  func(o *ca.InitOptions) { o.Dir = "" },
	} {
		t.Run(name, func(t *testing.T) {
			o := ca.InitOptions{Dir: filepath.Join(t.TempDir(), "ca"), TrustDomain: catest.TrustDomain, EngineDNS: []string{catest.EngineDNS}, RootPassword: []byte("secret")}
			change(&o)
			if _, err := ca.Init(t.Context(), o); err == nil {
				t.Error("made an authority")
			}
			if _, err := os.Stat(filepath.Join(o.Dir, "root")); o.Dir != "" && !os.IsNotExist(err) {
				t.Errorf("left a folder: %v", err)
			}
		})
	}
	t.Run("Fly Machine", func(t *testing.T) {
		t.Setenv("FLY_MACHINE_ID", "148e21ea7e1d89")
		o := ca.InitOptions{Dir: t.TempDir(), TrustDomain: catest.TrustDomain, EngineDNS: []string{catest.EngineDNS}}
		if _, err := ca.Init(t.Context(), o); err == nil || !strings.Contains(err.Error(), "Fly Machine") {
			t.Errorf("got %v", err)
		}
	})
}

func TestNameConstraints(t *testing.T) {
	t.Parallel()
	for _, v := range []struct {
		url      string
		dns      []string
		loopback bool
	}{
		{"", []string{"fly.dev"}, false},
		{"https://issuer.example.com", []string{"fly.dev", "issuer.example.com"}, false},
		{"https://127.0.0.1:8443", []string{"fly.dev"}, true},
		{"http://[::1]:8443", []string{"fly.dev"}, true},
		{"https://localhost:8443", []string{"fly.dev", "localhost"}, true},
	} {
		c, err := ca.NewConstraints(catest.TrustDomain, []string{"fly.dev"}, v.url)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Join(c.DNS, " ") != strings.Join(v.dns, " ") || c.Loopback != v.loopback {
			t.Errorf("%q: %+v", v.url, c)
		}
		for host, want := range map[string]bool{"fly.dev": true, "a.fly.dev": true, "notfly.dev": false, "fly.dev.example.com": false, "dev": false} {
			if c.PermitsDNS(host) != want {
				t.Errorf("%q: PermitsDNS(%s) = %v", v.url, host, !want)
			}
		}
	}
}

// Attack 52, as far as it concerns the authority: a store of another root, no
// store, an empty file, and an Open of parts that do not belong together.
func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	c, other := catest.New(t, catest.Options{}), catest.New(t, catest.Options{})
	t.Run("store", func(t *testing.T) {
		if _, err := ca.OpenStore(t.Context(), c.Files.DSN, other.Root(), store.StateKey{}); !errors.Is(err, store.ErrOtherRoot) {
			t.Errorf("another root's: %v", err)
		}
		empty := filepath.Join(t.TempDir(), "store")
		if _, err := ca.OpenStore(t.Context(), empty, c.Root(), store.StateKey{}); !errors.Is(err, store.ErrMissing) {
			t.Errorf("missing: %v", err)
		}
		if _, err := os.Stat(empty); !os.IsNotExist(err) {
			t.Error("opening made a store")
		}
		if err := os.WriteFile(empty, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ca.OpenStore(t.Context(), empty, c.Root(), store.StateKey{}); !errors.Is(err, store.ErrMissing) {
			t.Errorf("empty: %v", err)
		}
		m, err := ca.MetaOf(c.Config.Root, c.Config.Intermediate)
		if err != nil {
			t.Fatal(err)
		}
		if err := ca.CreateStore(t.Context(), c.Files.DSN, m); !errors.Is(err, store.ErrExists) {
			t.Errorf("create over a store: %v", err)
		}
	})
	plain := filepath.Join(t.TempDir(), "plain.key")
	if err := os.WriteFile(plain, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*ca.Config){
		"another root":             func(o *ca.Config) { o.Root = other.Config.Root },
		"another root's CRL":       func(o *ca.Config) { o.RootCRL = other.Config.RootCRL },
		"no root CRL":              func(o *ca.Config) { o.RootCRL = nil },
		"another intermediate":     func(o *ca.Config) { o.Intermediate = other.Config.Intermediate },
		"another key":              func(o *ca.Config) { o.Key = other.Config.Key },
		"no key":                   func(o *ca.Config) { o.Key = "" },
		"not a key":                func(o *ca.Config) { o.Key = plain },
		"encrypted key":            func(o *ca.Config) { o.Key = c.Files.RootKey },
		"unset variable":           func(o *ca.Config) { o.Key = "env:MAYFLY_TEST_UNSET" },
		"unknown KMS":              func(o *ca.Config) { o.Key = "nokms:name=x" },
		"another store":            func(o *ca.Config) { o.Store = other.Store() },
		"no store":                 func(o *ca.Config) { o.Store = nil },
		"root as intermediate":     func(o *ca.Config) { o.Intermediate = o.Root },
		"two certificates":         func(o *ca.Config) { o.Intermediate = append(bytes.Clone(o.Intermediate), o.Root...) },
		"intermediate as previous": func(o *ca.Config) { o.Previous = []ca.Previous{{Certificate: o.Intermediate, Key: o.Key}} },
		"another root's previous": func(o *ca.Config) {
			o.Previous = []ca.Previous{{Certificate: other.Config.Intermediate, Key: other.Config.Key}}
		},
		"public URL without scheme": func(o *ca.Config) { o.PublicURL = "issuer.example.com" },
		"public URL with user":      func(o *ca.Config) { o.PublicURL = "https://a@issuer.example.com" },
	} {
		t.Run(name, func(t *testing.T) {
			config := c.Config
			if a, err := ca.Open(t.Context(), config); err != nil {
				t.Fatalf("unchanged: %v", err)
			} else if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			change(&config)
			if _, err := ca.Open(t.Context(), config); err == nil {
				t.Error("opened")
			} else if strings.Contains(err.Error(), "PRIVATE KEY") {
				t.Errorf("the error holds a key: %v", err)
			}
		})
	}
}

func TestKeyReferences(t *testing.T) { // not parallel: sets the environment
	c := catest.New(t, catest.Options{})
	key := catest.ReadFile(t, c.Files.IntermediateKey)
	t.Setenv("MAYFLY_TEST_KEY", string(key))
	t.Setenv("MAYFLY_TEST_KEY64", base64Lines(key))
	for _, ref := range []string{c.Files.IntermediateKey, "env:MAYFLY_TEST_KEY", "env:MAYFLY_TEST_KEY64", "softkms:path=" + c.Files.IntermediateKey} {
		config := c.Config
		config.Key = ref
		a := catest.OpenConfig(t, config)
		if _, err := a.Issue(t.Context(), catest.Grant(t, catest.ClientParams(t, "default")), catest.CSR(t, catest.Key(t))); err != nil {
			t.Errorf("%s: %v", strings.SplitN(ref, ":", 2)[0], err)
		}
	}
	if runtime.GOMAXPROCS(0) < 2 {
		t.Error("GOMAXPROCS < 2")
	}
}

// base64Lines encodes data for a platform that does not keep line breaks.
func base64Lines(data []byte) string {
	s := base64.StdEncoding.EncodeToString(data)
	return s[:40] + "\n" + s[40:] + "\n"
}

// Attack 51: backup, revoke, restore. A revoked certificate stays refused, the
// number of the CRL grows, and a token from before the floor is refused.
func TestRestore(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	kept, lost := c.Client(t, "default").Leaf, catest.ClientParams(t, "default")
	var backup bytes.Buffer
	if err := c.Store().Backup(t.Context(), &backup); err != nil {
		t.Fatal(err)
	}
	unrecorded := c.Leaf(t, lost).Leaf
	_, seen := revoke(t, c.Authority, store.Revocation{Serial: serial(kept)})

	path := filepath.Join(t.TempDir(), "restored")
	floor, err := ca.RestoreStore(t.Context(), path, bytes.NewReader(backup.Bytes()), c.Root(), "test")
	if err != nil {
		t.Fatal(err)
	}
	st, err := ca.OpenStore(t.Context(), path, c.Root(), store.StateKey{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	config := c.Config
	config.Store = st
	a := catest.OpenConfig(t, config)
	crls, err := a.CRLs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if crls.Number <= seen {
		t.Errorf("CRL number %d is not after %d, which sidecars saw", crls.Number, seen)
	}
	got, err := identity.Floor(parseCRL(t, crls.Current))
	if err != nil || !got.Equal(floor) {
		t.Fatalf("floor %v, %v, want %v", got, err, floor)
	}
	for name, leaf := range map[string]*x509.Certificate{"revoked after the backup": kept, "issued after the backup": unrecorded} {
		if !identity.BeforeFloor(leaf, got) {
			t.Errorf("a certificate %s is good again", name)
		}
	}
	if _, err := a.Issue(t.Context(), catest.Grant(t, lost), catest.CSR(t, catest.Key(t))); !errors.Is(err, store.ErrBeforeFloor) {
		t.Errorf("a token that was used after the backup: %v", err)
	}
	if _, err := ca.RestoreStore(t.Context(), path, bytes.NewReader(backup.Bytes()), c.Root(), "test"); !errors.Is(err, store.ErrExists) {
		t.Errorf("restore over a store: %v", err)
	}
	other := catest.New(t, catest.Options{})
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	if _, err := ca.RestoreStore(t.Context(), elsewhere, bytes.NewReader(backup.Bytes()), other.Root(), "test"); !errors.Is(err, store.ErrOtherRoot) {
		t.Errorf("another root's backup: %v", err)
	}
	if _, err := os.Stat(elsewhere); !os.IsNotExist(err) {
		t.Error("another root's backup became a store")
	}
	again, err := ca.RestoreInPlace(t.Context(), st, "test")
	if err != nil || again.Before(floor) {
		t.Errorf("in place: floor %v, %v", again, err)
	}
	if _, err := a.Verify(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestServerCertificate(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	cert, err := c.ServerCertificate(t.Context(), []string{"issuer." + catest.EngineDNS}, []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback})
	if err != nil {
		t.Fatal(err)
	}
	server, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*cert}})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		for {
			conn, err := server.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).Handshake() // the test checks the client's side
			conn.Close()
		}
	}()
	for _, name := range []string{"127.0.0.1", "issuer." + catest.EngineDNS} {
		conn, err := tls.Dial("tcp", server.Addr().String(), &tls.Config{RootCAs: c.Roots(), ServerName: name})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		conn.Close()
	}
	if _, err := identity.FromCertificate(cert.Leaf, c.TrustDomain()); err == nil {
		t.Error("the issuer's certificate passes for a peer's")
	}
	events, _, err := c.Store().Events(t.Context(), store.EventFilter{Type: store.EventIssued, Limit: 10})
	if err != nil || len(events) != 1 || events[0].Serial != serial(cert.Leaf) {
		t.Errorf("events %+v, %v", events, err)
	}
	for name, call := range map[string]func() (*tls.Certificate, error){
		"other name": func() (*tls.Certificate, error) {
			return c.ServerCertificate(t.Context(), []string{"example.org"}, nil)
		},
		"wildcard": func() (*tls.Certificate, error) {
			return c.ServerCertificate(t.Context(), []string{"*." + catest.EngineDNS}, nil)
		},
		"off loopback": func() (*tls.Certificate, error) {
			return c.ServerCertificate(t.Context(), nil, []net.IP{net.IPv4(10, 0, 0, 1)})
		},
		"no name": func() (*tls.Certificate, error) { return c.ServerCertificate(t.Context(), nil, nil) },
	} {
		if _, err := call(); err == nil {
			t.Errorf("%s: certified", name)
		}
	}
	public := catest.New(t, catest.Options{IssuerURL: "https://issuer.example.com"})
	if _, err := public.ServerCertificate(t.Context(), nil, []net.IP{net.IPv4(127, 0, 0, 1)}); err == nil {
		t.Error("loopback was certified for a public issuer")
	}
	if _, err := public.ServerCertificate(t.Context(), []string{"issuer.example.com"}, nil); err != nil {
		t.Error(err)
	}
}

func TestReady(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	if err := c.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	for _, e := range c.Expiries() {
		if time.Until(e.NotAfter) < ca.ExpiryWarning {
			t.Errorf("%s ends at %v", e.What, e.NotAfter)
		}
	}
	broken := &brokenStore{Store: c.Config.Store, publish: errors.New("disk full")}
	config := c.Config
	config.Store = broken
	if err := catest.OpenConfig(t, config).Ready(t.Context()); !errors.Is(err, broken.publish) {
		t.Errorf("got %v", err)
	}
}
