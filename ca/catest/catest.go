// Package catest makes real authorities for tests: ca.Init and ca.Open over a
// SQLite store in the test's folder, and leaves for given engines without a token.
// It also starts PostgreSQL servers. It imports ca and what ca's callers use. Only
// tests and benchmarks import it.
package catest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/grant"
	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/ca/store"
)

// Names of an authority made with the zero Options.
const (
	TrustDomain = "ci.example.com"
	EngineDNS   = "example-engine.fly.dev"
	PublicURL   = "https://127.0.0.1:8443"
)

// Options describe an authority. Zero values mean the constants above.
type Options struct {
	TrustDomain string
	EngineDNS   []string
	// IssuerURL and PublicURL default to the constant PublicURL.
	IssuerURL, PublicURL string
}

// CA is an authority that belongs to the test.
type CA struct {
	*ca.Authority
	// Files are the files that Init wrote, RootPassword included.
	Files *ca.InitResult
	// Config opens the authority again, as a second replica would.
	Config ca.Config
}

// New makes and opens an authority. It closes the authority and its store when the
// test ends.
func New(t testing.TB, o Options) *CA {
	t.Helper()
	return Open(t, Init(t, o), o)
}

// Init makes the files of an authority in a folder of the test.
func Init(t testing.TB, o Options) *ca.InitResult {
	t.Helper()
	o = o.defaults()
	files, err := ca.Init(t.Context(), ca.InitOptions{
		Dir:         filepath.Join(t.TempDir(), "ca"),
		TrustDomain: o.TrustDomain,
		EngineDNS:   o.EngineDNS,
		IssuerURL:   o.IssuerURL,
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Open opens the authority that Init wrote.
func Open(t testing.TB, files *ca.InitResult, o Options) *CA {
	t.Helper()
	o = o.defaults()
	c := &CA{Files: files, Config: ca.Config{
		Root:         ReadFile(t, files.Root),
		RootCRL:      ReadFile(t, files.RootCRL),
		Intermediate: ReadFile(t, files.Intermediate),
		Key:          files.IntermediateKey,
		PublicURL:    o.PublicURL,
	}}
	st, err := ca.OpenStore(t.Context(), files.DSN, Certificate(t, c.Config.Root), store.StateKey{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	c.Config.Store = st
	c.Authority = OpenConfig(t, c.Config)
	return c
}

// OpenConfig opens an authority and closes it when the test ends.
func OpenConfig(t testing.TB, c ca.Config) *ca.Authority {
	t.Helper()
	a, err := ca.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Errorf("close authority: %v", err)
		}
	})
	return a
}

func (o Options) defaults() Options {
	if o.TrustDomain == "" {
		o.TrustDomain = TrustDomain
	}
	if len(o.EngineDNS) == 0 {
		o.EngineDNS = []string{EngineDNS}
	}
	if o.PublicURL == "" {
		o.PublicURL = PublicURL
	}
	if o.IssuerURL == "" {
		o.IssuerURL = o.PublicURL
	}
	return o
}

// ClientParams returns the params of a GitHub job's certificate for engines, with
// its own token. Change them before you call Grant.
func ClientParams(t testing.TB, engines ...string) grant.Params {
	t.Helper()
	id, err := identity.ClientID(trustDomain(t), "github", "285964", "1339936803")
	if err != nil {
		t.Fatal(err)
	}
	return grant.Params{
		Profile:  grant.Client,
		TTL:      time.Hour,
		Provider: "github",
		Identity: identity.Identity{
			ID:         id,
			CommonName: identity.CommonName("github/example-org/app"),
			Grant:      identity.Scope{Engines: engines, Rule: "app-main", Run: "1001/1/2002"},
			Workflow: identity.Workflow{
				Issuer:                  "https://token.actions.githubusercontent.com",
				SourceRepositoryURI:     "https://github.com/example-org/app",
				SourceRepositoryID:      "1339936803",
				SourceRepositoryRef:     "refs/heads/main",
				BuildTrigger:            "push",
				RunInvocationURI:        "https://github.com/example-org/app/actions/runs/1001/attempts/1",
				Subject:                 "repo:example-org/app:ref:refs/heads/main",
				RunnerEnvironment:       "github-hosted",
				SourceRepositoryOwnerID: "285964",
			},
		},
		Token:   token("https://token.actions.githubusercontent.com"),
		Subject: grant.Labels{Repository: "example-org/app", RepositoryID: "1339936803", RunID: "1001", Actor: "alice"},
		Claims:  []byte(`{"repository":"example-org/app"}`),
	}
}

// ServerParams returns the params of a Fly Machine's certificate for one engine,
// with its own token.
func ServerParams(t testing.TB, engine string, dns ...string) grant.Params {
	t.Helper()
	id, err := identity.EngineID(trustDomain(t), engine, "fly", "22222222", "148e21ea7e1d89")
	if err != nil {
		t.Fatal(err)
	}
	if len(dns) == 0 {
		dns = []string{EngineDNS}
	}
	return grant.Params{
		Profile:  grant.Server,
		TTL:      24 * time.Hour,
		Provider: "fly",
		Identity: identity.Identity{
			ID:         id,
			CommonName: identity.CommonName(engine),
			Grant:      identity.Scope{Engines: []string{engine}, Rule: "engine"},
		},
		DNSNames: dns,
		Token:    token("https://oidc.fly.io/example-org"),
		Claims:   []byte(`{"app_name":"example-engine"}`),
	}
}

func trustDomain(t testing.TB) spiffeid.TrustDomain {
	t.Helper()
	td, err := spiffeid.TrustDomainFromString(TrustDomain)
	if err != nil {
		t.Fatal(err)
	}
	return td
}

// token returns an unused token.
func token(issuer string) grant.Token {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	now := time.Now().Truncate(time.Second)
	return grant.Token{Issuer: issuer, ID: hex.EncodeToString(id[:]), SingleUse: true, IssuedAt: now, ExpiresAt: now.Add(5 * time.Minute)}
}

// Grant makes a grant from p.
func Grant(t testing.TB, p grant.Params) grant.Grant {
	t.Helper()
	g, err := grant.New(p)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// Client issues a client's certificate for engines.
func (c *CA) Client(t testing.TB, engines ...string) tls.Certificate {
	t.Helper()
	return c.Leaf(t, ClientParams(t, engines...))
}

// Server issues an engine's certificate; no dns means EngineDNS.
func (c *CA) Server(t testing.TB, engine string, dns ...string) tls.Certificate {
	t.Helper()
	return c.Leaf(t, ServerParams(t, engine, dns...))
}

// Leaf issues a certificate for p and a new key. Its Certificate holds leaf and
// intermediate.
func (c *CA) Leaf(t testing.TB, p grant.Params) tls.Certificate {
	t.Helper()
	key := Key(t)
	issued, err := c.Issue(t.Context(), Grant(t, p), CSR(t, key))
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{
		Certificate: [][]byte{issued.Chain[0].Raw, issued.Chain[1].Raw},
		PrivateKey:  key,
		Leaf:        issued.Certificate,
	}
}

// Roots returns the pool of the authority's roots.
func (c *CA) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, r := range c.TrustBundle() {
		pool.AddCert(r)
	}
	return pool
}

// Key makes an ECDSA P-256 key.
func Key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// PrivateKey parses a key in PKCS #8 PEM, as Init writes the intermediate's.
func PrivateKey(t testing.TB, data []byte) crypto.Signer {
	t.Helper()
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatal("no PEM block")
		return nil
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		t.Fatalf("a %T does not sign", key)
	}
	return signer
}

// CSR makes a request for key without names or extensions.
func CSR(t testing.TB, key crypto.Signer) *x509.CertificateRequest {
	t.Helper()
	return CSRFor(t, key, &x509.CertificateRequest{})
}

// CSRFor makes a request for key with the contents of template.
func CSRFor(t testing.TB, key crypto.Signer, template *x509.CertificateRequest) *x509.CertificateRequest {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// Certificate parses a certificate in PEM.
func Certificate(t testing.TB, data []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatal("no PEM block")
		return nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// ReadFile reads a file and fails the test on an error.
func ReadFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
