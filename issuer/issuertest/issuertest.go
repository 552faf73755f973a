// Package issuertest runs a real issuer for tests: a CA of its own, the
// embedded store, a policy file, and local OIDC providers that stand for
// GitHub, Fly and the staff's login, all on loopback.
//
// It is for _test.go files of any room. What it makes lives in the test's
// temporary folder and ends with the test.
package issuertest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer"
	"github.com/mayfly-ca/mayfly/issuer/idtokentest"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

// What the default policy is about.
const (
	TrustDomain = "ci.example.com"
	Audience    = "mayfly:" + TrustDomain
	// SessionsAudience is what an engine's token for POST /v1/sessions is for.
	SessionsAudience = Audience + ":sessions"
	Engine           = "default"
	ServerName       = "engine.example.com"
	ClientID         = "mayfly"
	Admin            = "ops@example.com"
	Viewer           = "eyes@example.com"
	OwnerID          = "285964"
	RepositoryID     = "1339936803"
	OrgID            = "11111111"
	AppID            = "22222222"
)

// Options changes what Start makes. The zero value is good.
type Options struct {
	// Endpoint is where the policy says that the engine is. Default
	// tcp://127.0.0.1:8080.
	Endpoint string
	// Policy, when not nil, edits the text of the policy file.
	Policy func(text string) string
	// Config, when not nil, edits the configuration.
	Config func(*issuer.Config)
	// Store is the DSN of a store to make and use. Default: a SQLite file.
	Store string
	// Log receives the issuer's log. Default: none.
	Log io.Writer
}

// Issuer is a running issuer.
type Issuer struct {
	// URL is where it is reached; https, by a certificate of its own CA.
	URL string
	// CAFile is the root's certificate in PEM. Root is the same, parsed, and
	// TrustAnchor pins it: sha256:HEX.
	CAFile      string
	Root        *x509.Certificate
	TrustAnchor string
	// PolicyFile is the policy in force; rewrite it and call Reload.
	PolicyFile string
	Config     issuer.Config
	// GitHub, Fly and Staff are the token providers.
	GitHub, Fly, Staff *idtokentest.Provider
	// Service is what runs: its Server has the admin calls as methods.
	Service *issuer.Service

	t      testing.TB
	client *http.Client
	reload chan struct{}
	stop   context.CancelFunc
	done   chan struct{}
	err    error
	once   sync.Once
}

// Start makes a CA and an issuer and serves. It is stopped when the test ends.
func Start(t testing.TB, o Options) *Issuer {
	t.Helper()
	if o.Endpoint == "" {
		o.Endpoint = "tcp://127.0.0.1:8080"
	}
	dir := t.TempDir()
	i := &Issuer{t: t, PolicyFile: filepath.Join(dir, "policy.yaml")}
	i.GitHub = provider(t, idtoken.GitHub, idtoken.RS256, map[string]any{
		"repository_owner_id": OwnerID, "repository_id": RepositoryID, "ref": "refs/heads/main", "event_name": "push",
	})
	i.Fly = provider(t, idtoken.Fly, idtoken.RS256, map[string]any{"org_id": OrgID, "app_id": AppID})
	i.Staff = provider(t, idtoken.People, idtoken.ES256, map[string]any{"aud": ClientID, "email": Admin, "email_verified": true})
	text := fmt.Sprintf(defaultPolicy, TrustDomain, i.GitHub.URL(), i.Fly.URL(), i.Staff.URL(), ClientID, o.Endpoint, ServerName,
		OwnerID, RepositoryID, OrgID, AppID, ServerName, Admin, Viewer)
	if o.Policy != nil {
		text = o.Policy(text)
	}
	if err := os.WriteFile(i.PolicyFile, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	res, err := ca.Init(t.Context(), ca.InitOptions{
		Dir: filepath.Join(dir, "ca"), TrustDomain: TrustDomain, EngineDNS: []string{"example.com"},
		IssuerURL: "https://127.0.0.1", RootPassword: []byte("for a test"),
	})
	if err != nil {
		t.Fatal(err)
	}
	c := issuer.DefaultConfig()
	c.Listen = "127.0.0.1:0"
	c.CA = issuer.CAConfig{Root: res.Root, RootCRL: res.RootCRL, Intermediate: res.Intermediate, Key: res.IntermediateKey}
	c.Store, c.Policy, c.StateKey = res.DSN, i.PolicyFile, []string{res.StateKey}
	c.MetricsListen = "127.0.0.1:0"
	if o.Log != nil {
		c.Logger = slog.New(slog.NewTextHandler(o.Log, nil))
	}
	if o.Config != nil {
		o.Config(&c)
	}
	if o.Store != "" {
		c.Store = o.Store
		if err := issuer.CreateStore(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	i.Config, i.CAFile = c, res.Root
	i.TrustAnchor = "sha256:" + res.Fingerprint
	if i.Root, err = c.RootCertificate(); err != nil {
		t.Fatal(err)
	}
	i.serve()
	return i
}

// Replica serves a second issuer over the same CA, store, policy and providers.
func (i *Issuer) Replica() *Issuer {
	i.t.Helper()
	r := &Issuer{
		t: i.t, CAFile: i.CAFile, Root: i.Root, TrustAnchor: i.TrustAnchor, PolicyFile: i.PolicyFile, Config: i.Config,
		GitHub: i.GitHub, Fly: i.Fly, Staff: i.Staff,
	}
	r.serve()
	return r
}

// Restart stops the issuer, when it runs, and serves again, on another port.
func (i *Issuer) Restart() {
	i.t.Helper()
	if err := i.Stop(); err != nil {
		i.t.Fatal(err)
	}
	i.once = sync.Once{}
	i.serve()
}

func (i *Issuer) serve() {
	i.t.Helper()
	l, err := net.Listen("tcp", i.Config.Listen)
	if err != nil {
		i.t.Fatal(err)
	}
	c := i.Config
	c.Listener = l.(*net.TCPListener)
	scheme := "https"
	if c.TLS.Mode == issuer.TLSOff {
		scheme = "http"
	}
	if c.PublicURL == "" {
		c.PublicURL = scheme + "://" + l.Addr().String()
	}
	i.URL = scheme + "://" + l.Addr().String()
	i.reload = make(chan struct{})
	c.Reload = i.reload
	ctx, stop := context.WithCancel(context.WithoutCancel(i.t.Context()))
	i.stop, i.done = stop, make(chan struct{})
	started := make(chan struct{})
	c.Started = func(net.Addr) { close(started) }
	if i.Service, err = issuer.Open(ctx, c); err != nil {
		stop()
		i.t.Fatal(err)
	}
	go func(svc *issuer.Service, done chan struct{}) {
		defer close(done)
		i.err = svc.Serve(ctx)
	}(i.Service, i.done)
	i.t.Cleanup(func() {
		if err := i.Stop(); err != nil {
			i.t.Errorf("issuer: %v", err)
		}
	})
	select {
	case <-started:
	case <-i.done:
		i.t.Fatalf("issuer: %v", i.err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(i.Root)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 64}
	i.client = &http.Client{Transport: transport, Timeout: time.Minute}
	i.t.Cleanup(transport.CloseIdleConnections)
}

// Stop stops the issuer in order and returns what Serve returned.
func (i *Issuer) Stop() error {
	i.once.Do(func() {
		i.stop()
		<-i.done
		if i.client != nil {
			i.client.CloseIdleConnections()
		}
	})
	<-i.done
	return i.err
}

// Stopping begins the stop and does not wait; Stop does.
func (i *Issuer) Stopping() { i.stop() }

// Reload has the policy file read again, as SIGHUP does, and returns when that
// has begun.
func (i *Issuer) Reload() { i.reload <- struct{}{} }

// Client is an HTTP client that trusts the CA and follows no other.
func (i *Issuer) Client() *http.Client { return i.client }

// GitHubToken mints a token of a job; nil overrides admit it by rule app-main.
func (i *Issuer) GitHubToken(overrides map[string]any) string {
	return i.mint(i.GitHub, Audience, overrides)
}

// FlyToken mints a token of a machine; nil overrides admit it by rule engine.
func (i *Issuer) FlyToken(overrides map[string]any) string {
	return i.mint(i.Fly, Audience, overrides)
}

// SessionsToken mints a machine's token for POST /v1/sessions.
func (i *Issuer) SessionsToken(overrides map[string]any) string {
	return i.mint(i.Fly, SessionsAudience, overrides)
}

// AdminToken and ViewerToken mint people's ID tokens.
func (i *Issuer) AdminToken() string { return i.mint(i.Staff, ClientID, nil) }

// ViewerToken mints an ID token whose rule grants role viewer.
func (i *Issuer) ViewerToken() string {
	return i.mint(i.Staff, ClientID, map[string]any{"email": Viewer, "sub": "viewer"})
}

// PersonToken mints an ID token with other claims.
func (i *Issuer) PersonToken(overrides map[string]any) string {
	return i.mint(i.Staff, ClientID, overrides)
}

func (i *Issuer) mint(p *idtokentest.Provider, audience string, overrides map[string]any) string {
	i.t.Helper()
	claims := map[string]any{"aud": audience}
	for k, v := range overrides {
		claims[k] = v
	}
	token, err := p.Mint(claims)
	if err != nil {
		i.t.Fatal(err)
	}
	return token
}

// Key makes a P-256 key and its certificate request in PEM.
func Key(t testing.TB) (*ecdsa.PrivateKey, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// Issue buys a certificate for a fresh key. The error, when the issuer refused,
// is a *wire.Problem.
func (i *Issuer) Issue(token string) (*wire.IssueResponse, error) {
	i.t.Helper()
	_, csr := Key(i.t)
	return i.IssueCSR(token, csr)
}

// IssueCSR is Issue for a request of the caller's.
func (i *Issuer) IssueCSR(token, csr string) (*wire.IssueResponse, error) {
	var out wire.IssueResponse
	if err := i.Call(http.MethodPost, wire.PathCertificates, token, wire.IssueRequest{CSR: csr}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Revoke revokes as the admin.
func (i *Issuer) Revoke(req wire.RevokeRequest) (*wire.RevokeResponse, error) {
	var out wire.RevokeResponse
	if err := i.Call(http.MethodPost, wire.PathRevocations, i.AdminToken(), req, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Call makes one call of the API: in, when not nil, is sent as JSON; a good
// answer is read into out, when that is not nil; any other is a *wire.Problem.
func (i *Issuer) Call(method, path, token string, in, out any) error {
	return Call(i.client, method, i.URL+path, token, in, out)
}

// Call does the same at a URL; an issuer that is gone is an error of the
// transport.
func Call(client *http.Client, method, url, token string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		return err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, wire.MaxResponseBytes))
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		p := &wire.Problem{}
		if err := json.Unmarshal(data, p); err != nil {
			return errors.Join(fmt.Errorf("%s: %q", resp.Status, data), err)
		}
		return p
	}
	if out == nil || resp.StatusCode == http.StatusNoContent {
		return nil
	}
	return json.Unmarshal(data, out)
}

func provider(t testing.TB, kind idtoken.Type, algorithm string, defaults map[string]any) *idtokentest.Provider {
	t.Helper()
	p, err := idtokentest.New(idtokentest.Options{Type: kind, Algorithm: algorithm, Defaults: defaults})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

const defaultPolicy = `version: 1
trust_domain: %s
providers:
  github: {type: github, issuer: "%s", unsafe_http: true}
  fly: {type: fly, issuer: "%s", unsafe_http: true}
  staff: {type: people, issuer: "%s", client_id: %s, algorithms: [ES256], unsafe_http: true}
engines:
  default: {endpoint: "%s", server_name: %s}
rules:
  - name: app-main
    provider: github
    match: {repository_owner_id: "%s", repository_id: "%s", ref: refs/heads/main, event_name: [push, workflow_dispatch]}
    grant: {profile: client, engines: [default], ttl: 1h}
  - name: engine
    provider: fly
    match: {org_id: "%s", app_id: "%s"}
    grant: {profile: server, engines: [default], dns: ["%s"], ttl: 24h}
  - name: admins
    provider: staff
    match: {email: [%s], email_verified: true}
    grant: {role: admin}
  - name: viewers
    provider: staff
    match: {email: [%s], email_verified: true}
    grant: {role: viewer}
`
