package issuer

import (
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const goodConfig = `
listen: 127.0.0.1:8443
public_url: https://issuer.example.com
ca: {root: root.crt, root_crl: root.crl, intermediate: intermediate.crt, key: intermediate.key}
store: store/mayfly.db
policy: policy.yaml
`

func TestParseConfig(t *testing.T) {
	t.Parallel()
	c, err := ParseConfig([]byte(goodConfig), "/etc/mayfly")
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultConfig()
	want.Listen = "127.0.0.1:8443"
	want.PublicURL = "https://issuer.example.com"
	want.CA = CAConfig{Root: "/etc/mayfly/root.crt", RootCRL: "/etc/mayfly/root.crl", Intermediate: "/etc/mayfly/intermediate.crt", Key: "/etc/mayfly/intermediate.key"}
	want.Store = "/etc/mayfly/store/mayfly.db"
	want.Policy = "/etc/mayfly/policy.yaml"
	if diff := cmp.Diff(want, c); diff != "" {
		t.Error(diff)
	}
}

func TestConfigRefusals(t *testing.T) {
	t.Parallel()
	edit := func(old, new string) string { return strings.Replace(goodConfig, old, new, 1) }
	for _, tc := range []struct{ name, text, want string }{
		{"empty", "", "is empty"},
		{"unknown key", goodConfig + "lisen: x\n", `issuer.yaml:7:1: unknown key "lisen"; did you mean "listen"?`},
		{"duplicate key", goodConfig + "policy: other.yaml\n", `issuer.yaml:7:1: key "policy" occurs twice, first on line 6; keep one`},
		{"second document", goodConfig + "---\nlisten: :1\n", "issuer.yaml:7:1: a second document"},
		{"no store", edit("store: store/mayfly.db\n", ""), "store is missing"},
		{"no policy", edit("policy: policy.yaml\n", ""), "policy is missing"},
		{"no key", edit(", key: intermediate.key", ""), "ca.key is missing"},
		{"no root crl", edit("root_crl: root.crl, ", ""), "ca.root_crl is missing"},
		{"http off loopback", edit("https://issuer", "http://issuer"), "loopback"},
		{"url with path", edit("example.com", "example.com/ca"), "public_url"},
		{"url with user", edit("https://", "https://a:b@"), "public_url"},
		{"listen", edit("127.0.0.1:8443", "8443"), "listen"},
		{"tls mode", goodConfig + "tls: {mode: maybe}\n", "tls.mode"},
		{"acme for an address", edit("https://issuer.example.com", "https://192.0.2.1") + "tls: {mode: acme}\n", "public DNS names"},
		{"acme for one label", edit("https://issuer.example.com", "https://localhost") + "tls: {mode: acme}\n", "public DNS names"},
		{"acme over http", edit("https://issuer.example.com", "http://127.0.0.1") + "tls: {mode: acme}\n", "https public_url"},
		{"acme behind a TLS edge", goodConfig + "tls: {mode: acme}\nbehind_proxy: true\n", "use tls.mode off"},
		{"acme with files", goodConfig + "tls: {mode: acme, cert: c.pem, key: k.pem}\n", "mode files, not to acme"},
		{"acme keys of another mode", goodConfig + "acme: {email: ops@example.com}\n", "acme belongs to tls.mode acme, not to self"},
		{"acme e-mail", goodConfig + "tls: {mode: acme}\nacme: {email: \"Ops <ops@example.com>\"}\n", "acme.email"},
		{"acme directory over http", goodConfig + "tls: {mode: acme}\nacme: {directory_url: \"http://acme.example.com/dir\"}\n", "acme.directory_url"},
		{"acme directory with a password", goodConfig + "tls: {mode: acme}\nacme: {directory_url: \"https://a:hunter2@acme.example.com/dir\"}\n", "want the https URL"},
		{"tls files without key", goodConfig + "tls: {mode: files, cert: c.pem}\n", "tls.key"},
		{"tls off in public", edit("127.0.0.1:8443", ":8080") + "tls: {mode: off}\n", "behind_proxy"},
		{"retention", goodConfig + "retention: 1h\n", "retention"},
		{"retention of nothing", goodConfig + "retention: 0s\n", "retention: 0s is under"},
		{"empty listen", edit("listen: 127.0.0.1:8443", "listen: ''"), "listen is missing"},
		{"negative rate", goodConfig + "rate: {per_ip: -1}\n", "rate"},
		{"proxies without header", goodConfig + "trusted_proxies: [10.0.0.0/8]\n", "client_ip_header"},
		{"a header that cannot be one", goodConfig + "client_ip_header: \"Fly Client IP\"\n", "client_ip_header"},
		{"a header with a line", goodConfig + "client_ip_header: \"Fly\\r\\nX\"\n", "client_ip_header"},
		{"bad proxy", goodConfig + "client_ip_header: Fly-Client-IP\ntrusted_proxies: [ten]\n", "trusted_proxies"},
		{"previous without key", edit("key: intermediate.key}", "key: k, previous: [{intermediate: a}]}"), "ca.previous[0]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, err := ParseConfig([]byte(tc.text), "/etc")
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one about %q", err, tc.want)
			}
		})
	}
}

// TestConfigAllowed holds the allowed twins of the refusals above.
func TestConfigAllowed(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"tls off on loopback":     goodConfig + "tls: {mode: off}\n",
		"tls off behind a proxy":  strings.Replace(goodConfig, "127.0.0.1:8443", ":8080", 1) + "tls: {mode: off}\nbehind_proxy: true\n",
		"http on loopback":        strings.Replace(goodConfig, "https://issuer.example.com", "http://127.0.0.1:8443", 1),
		"tls files":               goodConfig + "tls: {mode: files, cert: c.pem, key: k.pem}\n",
		"acme":                    goodConfig + "tls: {mode: acme}\n",
		"acme of one's own":       goodConfig + "tls: {mode: acme}\nacme: {email: ops@example.com, directory_url: \"https://ca.example.com/acme/dir\", ca_file: roots.pem, dir: /data/acme}\n",
		"acme on another port":    strings.Replace(goodConfig, "https://issuer.example.com", "https://issuer.example.com:8443", 1) + "tls: {mode: acme}\n",
		"proxies with header":     goodConfig + "client_ip_header: Fly-Client-IP\ntrusted_proxies: [10.0.0.0/8, 192.0.2.1]\n",
		"rate off":                goodConfig + "rate: {per_ip: 0, per_identity: 0}\n",
		"url with trailing slash": strings.Replace(goodConfig, "example.com", "example.com/", 1),
	} {
		if _, err := ParseConfig([]byte(text), "/etc"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestConfigZero checks that an explicit zero is zero, and not the default.
func TestConfigZero(t *testing.T) {
	t.Parallel()
	c, err := ParseConfig([]byte(goodConfig+"rate: {per_ip: 0, per_identity: 0}\n"), "/etc")
	if err != nil || c.Rate != (RateConfig{}) {
		t.Errorf("rate %+v, %v", c.Rate, err)
	}
	c, err = ParseConfig([]byte(goodConfig+"rate: {per_ip: 0}\n"), "/etc")
	if err != nil || c.Rate != (RateConfig{PerIdentity: defaultPerIdentity}) {
		t.Errorf("rate %+v, %v", c.Rate, err)
	}
}

// TestACMEFolder checks that the default folder of mode acme is next to the data,
// where the issuer may write.
func TestACMEFolder(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]Config{
		"/data/acme":       {Store: "/data/store"},
		"/etc/mayfly/acme": {Store: "postgres://db/mayfly", Path: "/etc/mayfly/issuer.yaml"},
		"/var/lib/acme":    {Store: "/data/store", ACME: ACMEConfig{Dir: "/var/lib/acme"}},
	} {
		if got := c.acmeDir(c.Store); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestConfigReferencesStay(t *testing.T) {
	t.Parallel()
	text := strings.Replace(goodConfig, "key: intermediate.key", "key: env:CA_KEY", 1)
	text = strings.Replace(text, "store: store/mayfly.db", "store: postgres://db/mayfly\nstate_key: [next.key, env:STATE_KEY, /run/state.key]", 1)
	c, err := ParseConfig([]byte(text), "/etc")
	if err != nil {
		t.Fatal(err)
	}
	if c.CA.Key != "env:CA_KEY" || c.Store != "postgres://db/mayfly" {
		t.Errorf("references were taken for paths: %q, %q", c.CA.Key, c.Store)
	}
	if diff := cmp.Diff([]string{"/etc/next.key", "env:STATE_KEY", "/run/state.key"}, c.StateKey); diff != "" {
		t.Error(diff)
	}
	if p := filepath.Join("/etc", "policy.yaml"); c.Policy != p {
		t.Errorf("policy is %q, want %q", c.Policy, p)
	}
}

func TestClientAddress(t *testing.T) {
	t.Parallel()
	fly := addressReader{header: "Fly-Client-Ip"}
	trusting := addressReader{header: "X-Forwarded-For", trusted: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	for _, tc := range []struct {
		name   string
		reader addressReader
		peer   string
		header map[string][]string
		want   string
	}{
		{"peer", addressReader{}, "192.0.2.1:99", nil, "192.0.2.1"},
		{"header not configured", addressReader{}, "192.0.2.1:99", map[string][]string{"Fly-Client-Ip": {"198.51.100.7"}}, "192.0.2.1"},
		{"header", fly, "192.0.2.1:99", map[string][]string{"Fly-Client-Ip": {"198.51.100.7"}}, "198.51.100.7"},
		{"header absent", fly, "192.0.2.1:99", nil, "192.0.2.1"},
		{"header is no address", fly, "192.0.2.1:99", map[string][]string{"Fly-Client-Ip": {"\x1b[2J"}}, "192.0.2.1"},
		{"trusted proxy", trusting, "10.1.2.3:99", map[string][]string{"X-Forwarded-For": {"198.51.100.7"}}, "198.51.100.7"},
		{"untrusted peer", trusting, "192.0.2.1:99", map[string][]string{"X-Forwarded-For": {"198.51.100.7"}}, "192.0.2.1"},
		{"the edge's own entry is the last", trusting, "10.1.2.3:99", map[string][]string{"X-Forwarded-For": {"203.0.113.9", "1.1.1.1, 198.51.100.7"}}, "198.51.100.7"},
		{"IPv4 in IPv6", fly, "[::ffff:192.0.2.1]:99", nil, "192.0.2.1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := httptest.NewRequest("GET", "/", nil)
			r.RemoteAddr = tc.peer
			for k, v := range tc.header {
				r.Header[k] = v
			}
			if got := tc.reader.read(r); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"refs/heads/main": "refs/heads/main",
		"a\x1b[31mred":    `a\u001b[31mred`,
		"a\r\nb":          `a\u000d\u000ab`,
		"\u202egnp.exe":   `\u202egnp.exe`,
		"Zoë 木":           "Zoë 木",
		"\U000e0041":      `\U000e0041`,
	} {
		if got := Printable(in); got != want {
			t.Errorf("Printable(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(goodConfig))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConfig(data, "/etc")
		if err != nil {
			return
		}
		if err := c.Check(); err != nil {
			t.Errorf("parsed, and then refused: %v", err)
		}
		if c.Retention < 48*time.Hour {
			t.Error("retention under its bound")
		}
	})
}
