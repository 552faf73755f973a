package idtoken_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/issuer/idtokentest"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

// serverTLS returns a certificate for 127.0.0.1 and localhost, and the pool that
// trusts it.
func serverTLS(t testing.TB) (*tls.Config, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, pool
}

func verifierTrusting(t testing.TB, roots *x509.CertPool, providers ...idtoken.Provider) *idtoken.Verifier {
	t.Helper()
	v, err := idtoken.NewVerifier(providers, idtoken.Options{RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

// wantNoKeys fails unless Verify returns an *UnavailableError whose cause has part.
func wantNoKeys(t *testing.T, v *idtoken.Verifier, token, part string) {
	t.Helper()
	_, err := v.Verify(t.Context(), token, audience)
	wantUnavailable(t, err)
	if err != nil && !strings.Contains(err.Error(), part) {
		t.Errorf("got %q, want it to say %q", err, part)
	}
}

// TestPrivateAddresses is ATTACKS 28, over https on loopback.
func TestPrivateAddresses(t *testing.T) {
	t.Parallel()
	conf, roots := serverTLS(t)
	p := start(t, idtokentest.Options{Type: idtoken.OIDC, TLS: conf})
	token := mint(t, p, forUs(nil))
	pinned := idtoken.Provider{Name: "k8s", Type: idtoken.OIDC, Issuer: p.URL()}
	wantNoKeys(t, verifierTrusting(t, roots, pinned), token, "not a public address")
	if discovery, _ := p.Fetches(); discovery != 0 {
		t.Error("the private address was asked")
	}
	pinned.UnsafeAllowPrivate = true
	if _, err := verifierTrusting(t, roots, pinned).Verify(t.Context(), token, audience); err != nil {
		t.Errorf("with unsafe_allow_private: %v", err)
	}
	wantNoKeys(t, verifierTrusting(t, nil, pinned), token, "certificate")
}

// TestNamesThatResolveToLoopback checks that the address counts, not the name.
func TestNamesThatResolveToLoopback(t *testing.T) {
	t.Parallel()
	conf, roots := serverTLS(t)
	p := start(t, idtokentest.Options{Type: idtoken.OIDC, TLS: conf})
	url := strings.Replace(p.URL(), "127.0.0.1", "localhost", 1)
	p.SetFaults(idtokentest.Faults{Issuer: url})
	token := mint(t, p, forUs(claims{"iss": url}))
	pinned := idtoken.Provider{Name: "k8s", Type: idtoken.OIDC, Issuer: url}
	wantNoKeys(t, verifierTrusting(t, roots, pinned), token, "not a public address")
}

func TestPublicAddresses(t *testing.T) {
	t.Parallel()
	for addr, public := range map[string]bool{
		"140.82.112.3": true, "2606:50c0:8000::153": true, "1.1.1.1": true, "2a09:8280:1::1": true,
		"127.0.0.1": false, "127.1.2.3": false, "::1": false, "::ffff:127.0.0.1": false, "::ffff:10.0.0.1": false,
		"10.0.0.1": false, "172.16.0.1": false, "172.31.255.255": false, "192.168.1.1": false, "100.64.0.1": false,
		"169.254.169.254": false, "fe80::1": false, "fd00::1": false, "fdaa::3": false, "fec0::1": false,
		"0.0.0.0": false, "::": false, "255.255.255.255": false, "224.0.0.1": false, "ff02::1": false, "240.0.0.1": false,
		"198.18.0.1": false, "192.0.0.192": false, "203.0.113.1": false, "2001:db8::1": false,
		"64:ff9b::a9fe:a9fe": false, "64:ff9b::1.1.1.1": false, "2002:7f00:1::": false, "2001::1": false, "::10.0.0.1": false,
	} {
		if got := idtoken.IsPublic(addr); got != public {
			t.Errorf("%s: public %v, want %v", addr, got, public)
		}
	}
}

// TestRedirects is ATTACKS 27.
func TestRedirects(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"discovery", "keys"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			conf, roots := serverTLS(t)
			p := start(t, idtokentest.Options{Type: idtoken.OIDC, TLS: conf})
			astray := elsewhere(t)
			token := mint(t, p, forUs(nil))
			pinned := idtoken.Provider{Name: "k8s", Type: idtoken.OIDC, Issuer: p.URL(), UnsafeAllowPrivate: true}
			for name, to := range map[string]string{
				"another port":  "https://127.0.0.1:1/jwks",
				"another host":  strings.Replace(p.URL(), "127.0.0.1", "localhost", 1) + "/.well-known/jwks",
				"plain http":    astray.URL + "/jwks",
				"same, by http": strings.Replace(p.URL(), "https://", "http://", 1) + "/.well-known/jwks",
				"userinfo":      strings.Replace(p.URL(), "https://", "https://x@", 1) + "/.well-known/jwks",
				"a file":        "file:///etc/passwd",
				"round":         p.URL() + map[string]string{"discovery": "/.well-known/openid-configuration", "keys": "/.well-known/jwks"}[where],
			} {
				f := idtokentest.Faults{Discovery: idtokentest.Fault{Redirect: to}}
				if where == "keys" {
					f = idtokentest.Faults{Keys: f.Discovery}
				}
				p.SetFaults(f)
				t.Run(name, func(t *testing.T) { wantNoKeys(t, verifierTrusting(t, roots, pinned), token, "redirected") })
			}
			p.SetFaults(idtokentest.Faults{})
		})
	}
}

// TestRedirectOnTheSameHost is the twin of TestRedirects.
func TestRedirectOnTheSameHost(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.OIDC, Path: "/real"})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/jwks" {
			http.Redirect(w, r, "/moved", http.StatusFound)
			return
		}
		p.ServeHTTP(w, httptest.NewRequest("GET", "/real/.well-known/jwks", nil))
	}))
	t.Cleanup(front.Close)
	pinned := trust(p, idtoken.OIDC)
	pinned.JWKSURI = front.URL + "/jwks"
	if _, err := verifier(t, pinned).Verify(t.Context(), mint(t, p, forUs(nil)), audience); err != nil {
		t.Error(err)
	}
	if discovery, _ := p.Fetches(); discovery != 0 {
		t.Error("discovery was asked although jwks_uri is pinned")
	}
}

// TestBadDocuments is ATTACKS 29 and 30: bad responses of a provider.
func TestBadDocuments(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.OIDC, Path: "/tenant"})
	astray := elsewhere(t)
	token := mint(t, p, forUs(nil))
	fault := func(f idtokentest.Fault) idtokentest.Fault { return f }
	for _, tc := range []struct {
		name   string
		faults idtokentest.Faults
		part   string
	}{
		{"discovery names another issuer", idtokentest.Faults{Issuer: "https://attacker.example"}, "did not match"},
		{"discovery names a longer issuer", idtokentest.Faults{Issuer: p.URL() + "/x"}, "did not match"},
		{"discovery adds a slash", idtokentest.Faults{Issuer: p.URL() + "/"}, "did not match"},
		{"discovery 500", idtokentest.Faults{Discovery: fault(idtokentest.Fault{Status: 500, Body: "boom"})}, "500"},
		{"discovery 404", idtokentest.Faults{Discovery: fault(idtokentest.Fault{Status: 404})}, "404"},
		{"discovery is HTML", idtokentest.Faults{Discovery: fault(idtokentest.Fault{Body: "<html>"})}, "discovery"},
		{"discovery too large", idtokentest.Faults{Discovery: fault(idtokentest.Fault{Pad: 1 << 20})}, "larger than"},
		{"jwks_uri by http elsewhere", idtokentest.Faults{KeysURI: "http://keys.example.com/"}, "loopback only"},
		{"jwks_uri missing", idtokentest.Faults{KeysURI: "/jwks"}, "jwks_uri"},
		{"jwks_uri is a file", idtokentest.Faults{KeysURI: "file:///etc/passwd"}, "jwks_uri"},
		{"jwks_uri with userinfo", idtokentest.Faults{KeysURI: "https://x@keys.example.com/"}, "userinfo"},
		{"jwks_uri is link-local", idtokentest.Faults{KeysURI: "https://169.254.169.254/latest"}, "not a public address"},
		{"jwks_uri is private", idtokentest.Faults{KeysURI: strings.Replace(astray.URL, "http:", "https:", 1)}, "not a public address"},
		{"keys 503", idtokentest.Faults{Keys: fault(idtokentest.Fault{Status: 503})}, "503"},
		{"keys too large", idtokentest.Faults{Keys: fault(idtokentest.Fault{Pad: 1 << 20})}, "larger than"},
		{"keys are HTML", idtokentest.Faults{Keys: fault(idtokentest.Fault{Body: "<html>"})}, "not a JWK set"},
		{"keys are missing", idtokentest.Faults{Keys: fault(idtokentest.Fault{Body: "{}"})}, "without keys"},
		{"keys are null", idtokentest.Faults{Keys: fault(idtokentest.Fault{Body: `{"keys":null}`})}, "without keys"},
		{"keys are too many", idtokentest.Faults{Keys: fault(idtokentest.Fault{Body: `{"keys":[` + strings.Repeat("{},", 100) + `{}]}`})}, "more than 100"},
	} {
		p.SetFaults(tc.faults)
		t.Run(tc.name, func(t *testing.T) {
			v, err := idtoken.NewVerifier([]idtoken.Provider{trust(p, idtoken.OIDC)}, idtoken.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			wantNoKeys(t, v, token, tc.part)
		})
	}
	p.SetFaults(idtokentest.Faults{})
	if _, err := verifier(t, trust(p, idtoken.OIDC)).Verify(t.Context(), token, audience); err != nil {
		t.Errorf("without faults: %v", err)
	}
}

// TestErrorsAreShort checks that a response's body does not fill the log.
func TestErrorsAreShort(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.OIDC})
	p.SetFaults(idtokentest.Faults{Discovery: idtokentest.Fault{Status: 500, Body: strings.Repeat("x\x1b[31m\n", 10000)}})
	_, err := verifier(t, trust(p, idtoken.OIDC)).Verify(t.Context(), mint(t, p, forUs(nil)), audience)
	wantUnavailable(t, err)
	if s := err.Error(); len(s) > 2000 || strings.ContainsAny(s, "\x1b\n") {
		t.Errorf("the error is of %d bytes: %.200q", len(s), s)
	}
}

// TestHealsAtBoot is ATTACKS 31 over HTTP, without a restart.
func TestHealsAtBoot(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.GitHub})
	p.SetFaults(idtokentest.Faults{Discovery: idtokentest.Fault{Status: 503}})
	v := verifier(t, trust(p, idtoken.GitHub))
	wantNoKeys(t, v, mint(t, p, forUs(nil)), "503")
	p.SetFaults(idtokentest.Faults{})
	deadline := time.Now().Add(20 * time.Second)
	for {
		_, err := v.Verify(t.Context(), mint(t, p, forUs(nil)), audience)
		if err == nil {
			return
		}
		wantUnavailable(t, err)
		if time.Now().After(deadline) {
			t.Fatal("the provider did not heal")
		}
		<-time.After(10 * time.Millisecond)
	}
}

// TestRotation checks that a new key is found at once, and a retired one no longer
// works.
func TestRotation(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.GitHub})
	v := verifier(t, trust(p, idtoken.GitHub))
	before := mint(t, p, forUs(nil))
	if _, err := v.Verify(t.Context(), before, audience); err != nil {
		t.Fatal(err)
	}
	if err := p.Rotate(); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), mint(t, p, forUs(nil)), audience); err != nil {
		t.Errorf("by the new key: %v", err)
	}
	if _, err := v.Verify(t.Context(), before, audience); err != nil {
		t.Errorf("by the old key, still published: %v", err)
	}
	p.Retire()
	_, err := verifier(t, trust(p, idtoken.GitHub)).Verify(t.Context(), before, audience)
	wantRefused(t, err, "not among those")
}

// TestOtherProvidersKeys checks that a provider's keys verify only its own issuer.
func TestOtherProvidersKeys(t *testing.T) {
	t.Parallel()
	a, b := start(t, idtokentest.Options{Type: idtoken.GitHub}), start(t, idtokentest.Options{Type: idtoken.Fly})
	v := verifier(t, trust(a, idtoken.GitHub), trust(b, idtoken.Fly))
	_, err := v.Verify(t.Context(), mint(t, b, forUs(claims{"iss": a.URL()})), audience)
	wantRefused(t, err, "not among those")
	kid, _ := a.Signer()
	_, err = v.Verify(t.Context(), rs256(t, b, `{"alg":"RS256","kid":"`+kid+`"}`, payloadOf(t, a, nil)), audience)
	wantRefused(t, err, "signature")
	for _, p := range []*idtokentest.Provider{a, b} {
		if _, err := v.Verify(t.Context(), mint(t, p, forUs(nil)), audience); err != nil {
			t.Error(err)
		}
	}
}

// TestParseKeys checks that each unsuitable key is left out.
func TestParseKeys(t *testing.T) {
	t.Parallel()
	small, big2048 := new(big.Int).Lsh(big.NewInt(1), 1023), new(big.Int).Lsh(big.NewInt(1), 2047)
	huge := new(big.Int).Lsh(big.NewInt(1), 16383)
	rsaKey := func(n *big.Int, e, more string) string {
		n = new(big.Int).Add(n, big.NewInt(1))
		return fmt.Sprintf(`{"kty":"RSA","kid":"k","n":%q,"e":%q%s}`, b64.EncodeToString(n.Bytes()), e, more)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	ec := fmt.Sprintf(`"kty":"EC","crv":"P-256","kid":"e","x":%q,"y":%q`, b64.EncodeToString(raw[1:33]), b64.EncodeToString(raw[33:]))
	for name, tc := range map[string]struct {
		key  string
		want int
	}{
		"RSA":                 {rsaKey(big2048, "AQAB", ``), 1},
		"RSA for signatures":  {rsaKey(big2048, "AQAB", `,"use":"sig","alg":"RS256"`), 1},
		"RSA for encryption":  {rsaKey(big2048, "AQAB", `,"use":"enc"`), 0},
		"RSA for another alg": {rsaKey(big2048, "AQAB", `,"alg":"PS256"`), 0},
		"RSA of 1024 bits":    {rsaKey(small, "AQAB", ``), 0},
		"RSA of 16384 bits":   {rsaKey(huge, "AQAB", ``), 0},
		"RSA with e = 1":      {rsaKey(big2048, "AQ", ``), 0},
		"RSA with an even e":  {rsaKey(big2048, "Ag", ``), 0},
		"P-256":               {"{" + ec + "}", 1},
		"P-256, private":      {"{" + ec + `,"d":"AQ"}`, 0},
		"P-256 off the curve": {strings.Replace("{"+ec+"}", `"y":"`, `"y":"AA`, 1), 0},
		"an octet key":        {`{"kty":"oct","k":"AAAA","kid":"o"}`, 0},
		"an unknown kind":     {`{"kty":"XYZ","kid":"o"}`, 0},
		"no object":           {`"key"`, 0},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := idtoken.ParseKeys([]byte(`{"keys":[` + tc.key + `]}`))
			if err != nil || got != tc.want {
				t.Errorf("%d keys, %v; want %d", got, err, tc.want)
			}
		})
	}
	two := rsaKey(big2048, "AQAB", ``) + "," + rsaKey(new(big.Int).Add(big2048, big.NewInt(2)), "AQAB", ``)
	if got, err := idtoken.ParseKeys([]byte(`{"keys":[` + two + `]}`)); err != nil || got != 1 {
		t.Errorf("of two with one name %d count (%v)", got, err)
	}
}
