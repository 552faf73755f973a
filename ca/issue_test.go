package ca_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/catest"
	"github.com/mayfly-ca/mayfly/ca/grant"
	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/ca/store"
)

var compareIDs = cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b })

// profiles maps each profile to its params.
var profiles = map[string]func(testing.TB) grant.Params{
	"client": func(t testing.TB) grant.Params { return catest.ClientParams(t, "default", "large") },
	"server": func(t testing.TB) grant.Params { return catest.ServerParams(t, "default") },
}

func TestIssue(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	for name, params := range profiles {
		t.Run(name, func(t *testing.T) {
			p := params(t)
			before := time.Now()
			issued, err := c.Issue(t.Context(), catest.Grant(t, p), catest.CSR(t, catest.Key(t)))
			if err != nil {
				t.Fatal(err)
			}
			leaf := issued.Certificate
			verify(t, c, issued.Chain, p)
			if d := leaf.NotAfter.Sub(leaf.NotBefore); d != p.TTL+time.Minute {
				t.Errorf("lifetime %v", d)
			}
			if d := before.Sub(leaf.NotBefore); d < 58*time.Second || d > 62*time.Second {
				t.Errorf("NotBefore lies %v back", d)
			}
			got, err := identity.FromCertificate(leaf, c.TrustDomain())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(p.Identity, got, compareIDs); diff != "" {
				t.Error(diff)
			}
			if n := len(leaf.SerialNumber.Bytes()); n != 16 || len(issued.Record.Serial) != 32 {
				t.Errorf("serial of %d bytes, %q", n, issued.Record.Serial)
			}
			if want := []string{catest.PublicURL + "/v1/crl/" + issued.Record.AKI}; !cmp.Equal(leaf.CRLDistributionPoints, want) {
				t.Errorf("CRL %q, want %q", leaf.CRLDistributionPoints, want)
			}
			stored, err := c.Store().Certificate(t.Context(), issued.Record.Serial)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(stored.TBS, leaf.RawTBSCertificate) {
				t.Error("the record is of another certificate")
			}
		})
	}
	if _, err := c.Verify(t.Context()); err != nil {
		t.Error(err)
	}
}

// verify checks a chain with Go's and with go-spiffe's verifiers.
func verify(t *testing.T, c *catest.CA, chain []*x509.Certificate, p grant.Params) {
	t.Helper()
	eku, err := p.Profile.ExtKeyUsage()
	if err != nil {
		t.Fatal(err)
	}
	o := x509.VerifyOptions{Roots: c.Roots(), Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{eku}}
	o.Intermediates.AddCert(chain[1])
	if len(p.DNSNames) > 0 {
		o.DNSName = p.DNSNames[0]
	}
	if _, err := chain[0].Verify(o); err != nil {
		t.Errorf("verify: %v", err)
	}
	o.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	if p.Profile == grant.Server {
		o.KeyUsages[0] = x509.ExtKeyUsageClientAuth
	}
	if _, err := chain[0].Verify(o); err == nil {
		t.Error("it verifies for the other profile's use")
	}
	bundle := x509bundle.FromX509Authorities(c.TrustDomain(), c.TrustBundle())
	id, _, err := x509svid.Verify(chain, bundle)
	if err != nil || id != p.Identity.ID {
		t.Errorf("go-spiffe reads %v, %v", id, err)
	}
}

// Attack 32: a request that asks for more gets a certificate without it.
func TestIssueTakesOnlyTheKeyOfARequest(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	uri, err := url.Parse("spiffe://ci.example.com/engine/default/fly/1/2")
	if err != nil {
		t.Fatal(err)
	}
	key := catest.Key(t)
	csr := catest.CSRFor(t, key, &x509.CertificateRequest{
		Subject:        pkix.Name{CommonName: "example-engine.fly.dev", Organization: []string{"system:masters"}},
		DNSNames:       []string{"example-engine.fly.dev"},
		IPAddresses:    []net.IP{net.IPv4(127, 0, 0, 1)},
		EmailAddresses: []string{"root@example.com"},
		URIs:           []*url.URL{uri},
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}},                                                      // CA:TRUE
			{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: []byte{0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1}},                                                // serverAuth
			{Id: identity.OIDGrant, Value: []byte{0x30, 0}},                                                                                                    // nothing
			{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 15}, Value: []byte{0x0c, 1, '1'}},                                                           // repository
			{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}, {Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Value: []byte{3, 2, 1, 6}}, // certSign
		},
	})
	p := catest.ClientParams(t, "default")
	issued, err := c.Issue(t.Context(), catest.Grant(t, p), csr)
	if err != nil {
		t.Fatal(err)
	}
	leaf := issued.Certificate
	if leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature || !cmp.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) {
		t.Errorf("CA %v, usage %v, %v", leaf.IsCA, leaf.KeyUsage, leaf.ExtKeyUsage)
	}
	if len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0 || len(leaf.URIs) != 1 || len(leaf.Subject.Organization) > 0 {
		t.Errorf("names of the request are in the leaf: %v", leaf.Subject)
	}
	got, err := identity.FromCertificate(leaf, c.TrustDomain())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p.Identity, got, compareIDs); diff != "" {
		t.Error(diff)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		t.Error("another key")
	}
}

// Attacks 33 and 34: refused keys and proofs, each with an accepted twin.
func TestIssueJudgesTheKey(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	own := intermediateKey(t, c)
	for _, k := range []struct {
		name string
		csr  *x509.CertificateRequest
		ok   bool
	}{
		{"P-256", catest.CSR(t, catest.Key(t)), true},
		{"P-384", catest.CSR(t, ecKey(t, elliptic.P384())), true},
		{"Ed25519", catest.CSR(t, edKey(t)), true},
		{"RSA 2048", catest.CSR(t, rsaKey(t, 2048)), true},
		{"P-224", catest.CSR(t, ecKey(t, elliptic.P224())), false},
		{"P-521", catest.CSR(t, ecKey(t, elliptic.P521())), false},
		{"RSA e=3", withExponent(catest.CSR(t, rsaKey(t, 2048)), 3), false},
		{"RSA 1024", truncated(catest.CSR(t, rsaKey(t, 2048))), false},
		{"the CA's own", catest.CSR(t, own), false},
		{"none", nil, false},
		{"altered signature", altered(catest.CSR(t, catest.Key(t))), false},
		{"another's key", swapped(t), false},
	} {
		t.Run(k.name, func(t *testing.T) {
			_, err := c.Issue(t.Context(), catest.Grant(t, catest.ClientParams(t, "default")), k.csr)
			var csrErr *ca.CSRError
			switch {
			case k.ok && err != nil:
				t.Error(err)
			case !k.ok && !errors.As(err, &csrErr):
				t.Errorf("got %v, want a *CSRError", err)
			}
		})
	}
	if _, err := c.Verify(t.Context()); err != nil {
		t.Error(err)
	}
}

func intermediateKey(t *testing.T, c *catest.CA) crypto.Signer {
	t.Helper()
	return catest.PrivateKey(t, catest.ReadFile(t, c.Files.IntermediateKey))
}

func ecKey(t *testing.T, curve elliptic.Curve) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func edKey(t *testing.T) crypto.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func rsaKey(t *testing.T, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func withExponent(csr *x509.CertificateRequest, e int) *x509.CertificateRequest {
	pub := *csr.PublicKey.(*rsa.PublicKey)
	pub.E = e
	csr.PublicKey = &pub
	return csr
}

func truncated(csr *x509.CertificateRequest) *x509.CertificateRequest {
	pub := *csr.PublicKey.(*rsa.PublicKey)
	n := *pub.N
	pub.N = n.Rsh(&n, 1024)
	csr.PublicKey = &pub
	return csr
}

func altered(csr *x509.CertificateRequest) *x509.CertificateRequest {
	csr.Signature[len(csr.Signature)-1] ^= 1
	return csr
}

// swapped returns a request that names one key and is signed by another.
func swapped(t *testing.T) *x509.CertificateRequest {
	t.Helper()
	csr := catest.CSR(t, catest.Key(t))
	csr.PublicKey = catest.Key(t).Public()
	return csr
}

// Attacks 22, 23 and 37, as far as they concern the authority.
func TestIssueOncePerToken(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	key := catest.Key(t)
	g := catest.Grant(t, catest.ClientParams(t, "default"))
	first, err := c.Issue(t.Context(), g, catest.CSR(t, key))
	if err != nil {
		t.Fatal(err)
	}
	t.Run("same key", func(t *testing.T) {
		again, err := c.Issue(t.Context(), g, catest.CSR(t, key))
		if err != nil {
			t.Fatal(err)
		}
		if !again.Repeated || first.Repeated || !bytes.Equal(again.Certificate.RawTBSCertificate, first.Certificate.RawTBSCertificate) {
			t.Error("another certificate")
		}
		verify(t, c, again.Chain, g.Params())
	})
	t.Run("another key", func(t *testing.T) { wantReplay(t, c, g, catest.Key(t), "another key") })
	for name, change := range map[string]func(*grant.Params){
		"narrower policy":     func(p *grant.Params) { p.Identity.Grant.Engines = []string{"large"} },
		"wider policy":        func(p *grant.Params) { p.Identity.Grant.Engines = []string{"default", "large"} },
		"shorter policy":      func(p *grant.Params) { p.TTL = 5 * time.Minute },
		"another rule":        func(p *grant.Params) { p.Identity.Grant.Rule = "other" },
		"another common name": func(p *grant.Params) { p.Identity.CommonName = "github/other/app" },
		"another branch":      func(p *grant.Params) { p.Identity.Workflow.SourceRepositoryRef = "refs/heads/other" },
		"a token from after NotBefore": func(p *grant.Params) {
			p.Token.IssuedAt = first.Certificate.NotBefore.Add(grant.MaxAge + time.Second)
		},
	} {
		t.Run("same key, "+name, func(t *testing.T) {
			p := g.Params()
			change(&p)
			wantReplay(t, c, catest.Grant(t, p), key, "another grant")
		})
	}
	t.Run("revoked", func(t *testing.T) {
		if _, _, err := c.Revoke(t.Context(), store.Revocation{Serial: first.Record.Serial, Reason: "test", By: "test"}); err != nil {
			t.Fatal(err)
		}
		wantReplay(t, c, g, key, "revoked")
	})
	t.Run("a token of many uses", func(t *testing.T) {
		p := catest.ClientParams(t, "default")
		p.Token.SingleUse = false
		for range 2 {
			issued, err := c.Issue(t.Context(), catest.Grant(t, p), catest.CSR(t, key))
			if err != nil || issued.Repeated {
				t.Errorf("got %v", err)
			}
		}
	})
}

// A record from before the floor is not issued again, whatever iat the retry's
// token has.
func TestRetryFromBeforeTheFloor(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	d := sqliteDatabase(t, c)
	key, p := catest.Key(t), catest.ClientParams(t, "default")
	before := time.Now()
	if _, err := c.Issue(t.Context(), catest.Grant(t, p), catest.CSR(t, key)); err != nil {
		t.Fatal(err)
	}
	p.Token.IssuedAt = time.Now().Add(time.Second)
	d.exec(t, fmt.Sprintf("UPDATE state SET floor = %d", before.UnixMicro()))
	if again, err := c.Issue(t.Context(), catest.Grant(t, p), catest.CSR(t, key)); err != nil || !again.Repeated {
		t.Errorf("a floor before the record: %v", err)
	}
	d.exec(t, fmt.Sprintf("UPDATE state SET floor = %d", time.Now().UnixMicro()))
	wantReplay(t, c, catest.Grant(t, p), key, "revoked")
}

func wantReplay(t *testing.T, c *catest.CA, g grant.Grant, key crypto.Signer, why string) {
	t.Helper()
	_, err := c.Issue(t.Context(), g, catest.CSR(t, key))
	var replay *store.ReplayError
	if !errors.As(err, &replay) || replay.Why != why {
		t.Errorf("got %v, want a *ReplayError: %s", err, why)
	}
}

func TestIssueRefusesAGrantThatIsNotOurs(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	csr := catest.CSR(t, catest.Key(t))
	if _, err := c.Issue(t.Context(), grant.Grant{}, csr); err == nil {
		t.Error("a zero grant was issued")
	}
	p := catest.ServerParams(t, "default", "engine.example.org")
	if _, err := c.Issue(t.Context(), catest.Grant(t, p), csr); err == nil || !strings.Contains(err.Error(), "name constraints") {
		t.Errorf("a DNS name outside of the constraints: %v", err)
	}
	p = catest.ServerParams(t, "default", "a."+catest.EngineDNS)
	if _, err := c.Issue(t.Context(), catest.Grant(t, p), csr); err != nil {
		t.Errorf("a DNS name below the permitted one: %v", err)
	}
	p = catest.ClientParams(t, "default")
	p.Identity.ID = spiffeid.RequireFromString("spiffe://example.org/github/1/2")
	if _, err := c.Issue(t.Context(), catest.Grant(t, p), csr); err == nil {
		t.Error("another trust domain was issued")
	}
}

// FuzzCSR: for every request that parses, Issue returns a valid certificate with
// the grant and the request's own key, or a *CSRError.
func FuzzCSR(f *testing.F) {
	c := catest.New(f, catest.Options{})
	config := c.Config
	config.Store = forgetful{config.Store}
	a := catest.OpenConfig(f, config)
	p := catest.ClientParams(f, "default")
	g := catest.Grant(f, p)
	f.Add(catest.CSR(f, catest.Key(f)).Raw)
	f.Add(catest.CSRFor(f, catest.Key(f), &x509.CertificateRequest{Subject: pkix.Name{CommonName: "x"}, DNSNames: []string{"a.example"}}).Raw)
	f.Fuzz(func(t *testing.T, der []byte) {
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			return
		}
		issued, err := a.Issue(t.Context(), g, csr)
		var csrErr *ca.CSRError
		if errors.As(err, &csrErr) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := identity.FromCertificate(issued.Certificate, a.TrustDomain())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(p.Identity, got, compareIDs); diff != "" {
			t.Fatal(diff)
		}
		if err := csr.CheckSignature(); err != nil {
			t.Fatal("issued without proof of possession")
		}
		if k, ok := csr.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(issued.Certificate.PublicKey) {
			t.Fatal("another key than the request's")
		}
	})
}
