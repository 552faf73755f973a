package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/sigstore/fulcio/pkg/certificate"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/ca/identity"
)

var td = spiffeid.RequireTrustDomainFromString("ci.example.com")

func claims() identity.Identity {
	return identity.Identity{
		ID:         spiffeid.RequireFromString("spiffe://ci.example.com/github/285964/1339936803"),
		CommonName: "github/example-org/app",
		Grant:      identity.Scope{Engines: []string{"default", "large"}, Rule: "app-main", Run: "1001/1/2002"},
		Workflow: identity.Workflow{
			Issuer:                     "https://token.actions.githubusercontent.com",
			BuildSignerURI:             "https://github.com/example-org/app/.github/workflows/ci.yml@refs/heads/main",
			BuildSignerDigest:          "8c1f5f5e1f0b7c6f7f6d3cf1f5d0f8a9c1b2d3e4",
			RunnerEnvironment:          "github-hosted",
			SourceRepositoryURI:        "https://github.com/example-org/app",
			SourceRepositoryDigest:     "8c1f5f5e1f0b7c6f7f6d3cf1f5d0f8a9c1b2d3e4",
			SourceRepositoryRef:        "refs/heads/main",
			SourceRepositoryID:         "1339936803",
			SourceRepositoryOwnerURI:   "https://github.com/example-org",
			SourceRepositoryOwnerID:    "285964",
			BuildConfigURI:             "https://github.com/example-org/app/.github/workflows/ci.yml@refs/heads/main",
			BuildConfigDigest:          "8c1f5f5e1f0b7c6f7f6d3cf1f5d0f8a9c1b2d3e4",
			BuildTrigger:               "push",
			RunInvocationURI:           "https://github.com/example-org/app/actions/runs/1001/attempts/1",
			SourceRepositoryVisibility: "private",
			DeploymentEnvironment:      "production",
			Subject:                    "repo:example-org/app:environment:production",
		},
	}
}

var compareIDs = cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b })

// sign makes a self-signed certificate from template.
func sign(t testing.TB, template *x509.Certificate) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(1)
	template.NotBefore, template.NotAfter = time.Unix(1800000000, 0), time.Unix(1800003600, 0)
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func embedded(t testing.TB, c identity.Identity) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{}
	if err := identity.Embed(c, template); err != nil {
		t.Fatal(err)
	}
	return sign(t, template)
}

func TestEmbedIsReadBack(t *testing.T) {
	t.Parallel()
	want := claims()
	got, err := identity.FromCertificate(embedded(t, want), td)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, compareIDs); diff != "" {
		t.Error(diff)
	}
}

// Fulcio's own parser must read every value that Embed writes.
func TestFulcioReadsExtensions(t *testing.T) {
	t.Parallel()
	c := claims()
	got, err := certificate.ParseExtensions(embedded(t, c).Extensions)
	if err != nil {
		t.Fatal(err)
	}
	w := c.Workflow
	want := certificate.Extensions{
		Issuer:                              w.Issuer,
		BuildSignerURI:                      w.BuildSignerURI,
		BuildSignerDigest:                   w.BuildSignerDigest,
		RunnerEnvironment:                   w.RunnerEnvironment,
		SourceRepositoryURI:                 w.SourceRepositoryURI,
		SourceRepositoryDigest:              w.SourceRepositoryDigest,
		SourceRepositoryRef:                 w.SourceRepositoryRef,
		SourceRepositoryIdentifier:          w.SourceRepositoryID,
		SourceRepositoryOwnerURI:            w.SourceRepositoryOwnerURI,
		SourceRepositoryOwnerIdentifier:     w.SourceRepositoryOwnerID,
		BuildConfigURI:                      w.BuildConfigURI,
		BuildConfigDigest:                   w.BuildConfigDigest,
		BuildTrigger:                        w.BuildTrigger,
		RunInvocationURI:                    w.RunInvocationURI,
		SourceRepositoryVisibilityAtSigning: w.SourceRepositoryVisibility,
		DeploymentEnvironment:               w.DeploymentEnvironment,
		Subject:                             w.Subject,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestAbsentWorkflowLeavesNoExtension(t *testing.T) {
	t.Parallel()
	c := claims()
	c.Workflow = identity.Workflow{Issuer: "https://oidc.fly.io/example-org"}
	n := 0
	for _, e := range embedded(t, c).Extensions {
		if identity.IsWorkflowExtension(e.Id) {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d workflow extensions, want 1", n)
	}
}

func TestEmbedRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*identity.Identity, *x509.Certificate){
		"no ID":            func(c *identity.Identity, _ *x509.Certificate) { c.ID = spiffeid.ID{} },
		"ID without path":  func(c *identity.Identity, _ *x509.Certificate) { c.ID = td.ID() },
		"no engine":        func(c *identity.Identity, _ *x509.Certificate) { c.Grant.Engines = nil },
		"empty engine":     func(c *identity.Identity, _ *x509.Certificate) { c.Grant.Engines = []string{""} },
		"engine twice":     func(c *identity.Identity, _ *x509.Certificate) { c.Grant.Engines = []string{"a", "a"} },
		"too many engines": func(c *identity.Identity, _ *x509.Certificate) { c.Grant.Engines = many(identity.MaxEngines + 1) },
		"no rule":          func(c *identity.Identity, _ *x509.Certificate) { c.Grant.Rule = "" },
		"run too long": func(c *identity.Identity, _ *x509.Certificate) {
			c.Grant.Run = strings.Repeat("x", identity.MaxValue+1)
		},
		"run not UTF-8":      func(c *identity.Identity, _ *x509.Certificate) { c.Grant.Run = "\xff" },
		"NUL in a value":     func(c *identity.Identity, _ *x509.Certificate) { c.Workflow.Subject = "a\x00b" },
		"value not UTF-8":    func(c *identity.Identity, _ *x509.Certificate) { c.Workflow.BuildTrigger = "\xc3\x28" },
		"control in CN":      func(c *identity.Identity, _ *x509.Certificate) { c.CommonName = "github/a\nb" },
		"CN too long":        func(c *identity.Identity, _ *x509.Certificate) { c.CommonName = strings.Repeat("x", 65) },
		"template has a URI": func(_ *identity.Identity, t *x509.Certificate) { t.URIs = []*url.URL{{Scheme: "spiffe"}} },
		"template has a CN":  func(_ *identity.Identity, t *x509.Certificate) { t.Subject.CommonName = "other" },
	} {
		t.Run(name, func(t *testing.T) {
			c, template := claims(), &x509.Certificate{}
			if err := identity.Embed(c, &x509.Certificate{}); err != nil {
				t.Fatalf("unchanged: %v", err)
			}
			change(&c, template)
			if err := identity.Embed(c, template); err == nil {
				t.Error("embedded")
			}
		})
	}
}

func many(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("e%d", i)
	}
	return names
}

func TestFromCertificateRefuses(t *testing.T) {
	t.Parallel()
	grant := func(template *x509.Certificate) *pkix.Extension {
		return &template.ExtraExtensions[len(template.ExtraExtensions)-1]
	}
	uri := func(s string) []*url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return []*url.URL{u}
	}
	for name, change := range map[string]func(*x509.Certificate){
		"another trust domain":       func(c *x509.Certificate) { c.URIs = uri("spiffe://example.org/github/1/2") },
		"subdomain of ours":          func(c *x509.Certificate) { c.URIs = uri("spiffe://evil.ci.example.com/github/1/2") },
		"trust domain alone":         func(c *x509.Certificate) { c.URIs = uri("spiffe://ci.example.com") },
		"not SPIFFE":                 func(c *x509.Certificate) { c.URIs = uri("https://ci.example.com/github/1/2") },
		"two URI names":              func(c *x509.Certificate) { c.URIs = append(c.URIs, uri("spiffe://ci.example.com/github/1/3")...) },
		"no URI name":                func(c *x509.Certificate) { c.URIs = nil },
		"e-mail name":                func(c *x509.Certificate) { c.EmailAddresses = []string{"a@example.com"} },
		"IP name":                    func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} },
		"CA":                         func(c *x509.Certificate) { c.BasicConstraintsValid, c.IsCA = true, true },
		"no grant":                   func(c *x509.Certificate) { c.ExtraExtensions = c.ExtraExtensions[:len(c.ExtraExtensions)-1] },
		"critical grant":             func(c *x509.Certificate) { grant(c).Critical = true },
		"grant with a tail":          func(c *x509.Certificate) { grant(c).Value = append(grant(c).Value, 0) },
		"grant cut":                  func(c *x509.Certificate) { grant(c).Value = grant(c).Value[:8] },
		"grant of another type":      func(c *x509.Certificate) { grant(c).Value = []byte{0x0c, 0x01, 'x'} },
		"workflow value with a tail": func(c *x509.Certificate) { c.ExtraExtensions[0].Value = append(c.ExtraExtensions[0].Value, 0) },
		"workflow value empty":       func(c *x509.Certificate) { c.ExtraExtensions[0].Value = []byte{0x0c, 0x00} },
		"workflow value raw bytes":   func(c *x509.Certificate) { c.ExtraExtensions[0].Value = []byte("https://example.com") },
		"workflow value critical":    func(c *x509.Certificate) { c.ExtraExtensions[0].Critical = true },
	} {
		t.Run(name, func(t *testing.T) {
			template := &x509.Certificate{}
			if err := identity.Embed(claims(), template); err != nil {
				t.Fatal(err)
			}
			if _, err := identity.FromCertificate(sign(t, template), td); err != nil {
				t.Fatalf("unchanged: %v", err)
			}
			change(template)
			if c, err := identity.FromCertificate(sign(t, template), td); err == nil {
				t.Errorf("read %+v", c)
			}
		})
	}
	t.Run("twice", func(t *testing.T) {
		cert := embedded(t, claims())
		cert.Extensions = append(cert.Extensions, cert.Extensions[len(cert.Extensions)-1])
		if _, err := identity.FromCertificate(cert, td); err == nil {
			t.Error("a grant extension that is there twice was read")
		}
	})
	t.Run("nil", func(t *testing.T) {
		if _, err := identity.FromCertificate(nil, td); err == nil {
			t.Error("no certificate was read")
		}
		if _, err := identity.FromCertificate(embedded(t, claims()), spiffeid.TrustDomain{}); err == nil {
			t.Error("read for no trust domain")
		}
	})
}

func TestIDs(t *testing.T) {
	t.Parallel()
	id := func(id spiffeid.ID, err error) string {
		if err != nil {
			return "error"
		}
		return id.String()
	}
	for _, c := range []struct{ got, want string }{
		{id(identity.ClientID(td, "github", "285964", "1339936803")), "spiffe://ci.example.com/github/285964/1339936803"},
		{id(identity.ClientID(td, "k8s", "system:serviceaccount:ci:builder")), "spiffe://ci.example.com/k8s/system_3Aserviceaccount_3Aci_3Abuilder"},
		{id(identity.ClientID(td, "k8s", "a/b")), "spiffe://ci.example.com/k8s/a_2Fb"},
		{id(identity.ClientID(td, "k8s", "a_2Fb")), "spiffe://ci.example.com/k8s/a_5F2Fb"},
		{id(identity.ClientID(td, "k8s", "..")), "spiffe://ci.example.com/k8s/_2E_2E"},
		{id(identity.ClientID(td, "k8s", ".")), "spiffe://ci.example.com/k8s/_2E"},
		{id(identity.ClientID(td, "k8s", "é")), "spiffe://ci.example.com/k8s/_C3_A9"},
		{id(identity.ClientID(td, "k8s", "")), "error"},
		{id(identity.ClientID(td, "k8s")), "error"},
		{id(identity.ClientID(td, "engine", "a")), "error"},
		{id(identity.ClientID(td, "a/b", "a")), "error"},
		{id(identity.ClientID(spiffeid.TrustDomain{}, "k8s", "a")), "error"},
		{id(identity.ClientID(td, "k8s", strings.Repeat("/", 700))), "error"},
		{id(identity.EngineID(td, "default", "fly", "22222222", "148e21ea7e1d89")), "spiffe://ci.example.com/engine/default/fly/22222222/148e21ea7e1d89"},
		{id(identity.EngineID(td, "", "fly", "1")), "error"},
	} {
		if c.got != c.want {
			t.Errorf("got %s, want %s", c.got, c.want)
		}
	}
	for path, want := range map[string]string{
		"/engine/default/fly/1": "default", "/engine/default": "", "/engine/default/": "", "/engine//fly/1": "", "/github/1/2": "", "/engineer/a/b": "",
	} {
		got, ok := identity.Engine(idOf(path))
		if got != want || ok != (want != "") {
			t.Errorf("Engine(%s) = %q, %v", path, got, ok)
		}
	}
}

// idOf returns the zero ID if SPIFFE refuses the path.
func idOf(path string) spiffeid.ID {
	id, err := spiffeid.FromPath(td, path)
	if err != nil {
		return spiffeid.ID{}
	}
	return id
}

func TestCommonName(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"github/example-org/app":      "github/example-org/app",
		"a\r\nb\tc\x00d":              "abcd",
		"safe\u202egpj.exe":           "safegpj.exe",
		"zero\u200bwidth\ufeff\u2066": "zerowidth",
		"line\u2028break":             "linebreak",
		"bad\xffutf8":                 "badutf8",
		"kept \ufffd é 漢":             "kept \ufffd é 漢",
		strings.Repeat("é", 70):       strings.Repeat("é", 64),
	} {
		if got := identity.CommonName(in); got != want {
			t.Errorf("CommonName(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestFloor(t *testing.T) {
	t.Parallel()
	want := time.Date(2026, 11, 24, 0, 20, 1, 0, time.UTC)
	e, err := identity.FloorExtension(want.Add(999 * time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	var raw asn1.RawValue
	if _, err := asn1.Unmarshal(e.Value, &raw); err != nil || raw.Tag != asn1.TagGeneralizedTime || string(raw.Bytes) != "20261124002001Z" {
		t.Errorf("floor is written as tag %d %q, %v", raw.Tag, raw.Bytes, err)
	}
	if got, err := identity.Floor(&x509.RevocationList{Extensions: []pkix.Extension{e}}); err != nil || !got.Equal(want) {
		t.Errorf("read %v, %v", got, err)
	}
	for name, exts := range map[string][]pkix.Extension{
		"none":      nil,
		"two":       {e, e},
		"critical":  {{Id: e.Id, Critical: true, Value: e.Value}},
		"malformed": {{Id: e.Id, Value: []byte{0x17, 1, 'Z'}}},
		"a tail":    {{Id: e.Id, Value: append(e.Value[:len(e.Value):len(e.Value)], 0)}},
	} {
		if got, err := identity.Floor(&x509.RevocationList{Extensions: exts}); err == nil {
			t.Errorf("%s: read %v", name, got)
		}
	}
	cert := &x509.Certificate{NotBefore: want.Add(-60 * time.Second)}
	if identity.BeforeFloor(cert, want) {
		t.Error("issued in the floor's second: it stands")
	}
	cert.NotBefore = cert.NotBefore.Add(-time.Second)
	if !identity.BeforeFloor(cert, want) {
		t.Error("issued in the second before the floor: it is out")
	}
}

// Two segments never have the same escape, and every escape stays within the
// alphabet.
func FuzzEscapeSegment(f *testing.F) {
	for _, s := range []string{"a", "a/b", "a_2Fb", "..", "._", "system:serviceaccount:ci:builder", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		escaped, err := identity.EscapeSegment(s)
		if err != nil {
			if s != "" && len(s) <= 2048 {
				t.Fatalf("refused %q: %v", s, err)
			}
			return
		}
		if back := unescape(escaped); back != s {
			t.Fatalf("%q is written %q, which reads %q", s, escaped, back)
		}
		if err := spiffeid.ValidatePathSegment(escaped); err != nil {
			t.Fatalf("%q: %v", escaped, err)
		}
	})
}

func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '_' {
			b.WriteByte(s[i])
			continue
		}
		var c byte
		if n, err := fmt.Sscanf(s[i+1:i+3], "%02X", &c); n != 1 || err != nil {
			return "malformed"
		}
		b.WriteByte(c)
		i += 2
	}
	return b.String()
}

func FuzzCommonName(f *testing.F) {
	f.Add("github/example-org/app")
	f.Add("a\u202eb\xff")
	f.Fuzz(func(t *testing.T, s string) {
		got := identity.CommonName(s)
		if !utf8.ValidString(got) || utf8.RuneCountInString(got) > identity.MaxCommonName || identity.CommonName(got) != got {
			t.Fatalf("CommonName(%q) = %q", s, got)
		}
	})
}

// An identity that FromCertificate reads from any extensions is read back equal
// after Embed. The grant extension is the same byte for byte.
func FuzzFromCertificate(f *testing.F) {
	template := &x509.Certificate{}
	if err := identity.Embed(claims(), template); err != nil {
		f.Fatal(err)
	}
	last := len(template.ExtraExtensions) - 1
	f.Add(template.ExtraExtensions[last].Value, template.ExtraExtensions[0].Value, 8)
	f.Add([]byte{0x30, 0}, []byte{0x0c, 0}, 24)
	f.Fuzz(func(t *testing.T, grant, workflow []byte, arc int) {
		id := spiffeid.RequireFromString("spiffe://ci.example.com/github/1/2")
		oid := append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1}, arc)
		got, err := identity.FromCertificate(&x509.Certificate{
			URIs:       []*url.URL{id.URL()},
			Extensions: []pkix.Extension{{Id: oid, Value: workflow}, {Id: identity.OIDGrant, Value: grant}},
		}, td)
		if err != nil {
			return
		}
		again := &x509.Certificate{}
		if err := identity.Embed(got, again); err != nil {
			t.Fatalf("read, but not written: %v", err)
		}
		exts := again.ExtraExtensions
		if written := exts[len(exts)-1].Value; string(written) != string(grant) {
			t.Fatalf("grant %x is written %x", grant, written)
		}
		back, err := identity.FromCertificate(&x509.Certificate{URIs: again.URIs, Extensions: exts}, td)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(got, back, compareIDs); diff != "" {
			t.Fatal(diff)
		}
	})
}
