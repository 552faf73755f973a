// Package issuertest runs a real issuer for tests. It has its own CA, the embedded
// store, a policy file, and local OIDC providers that play GitHub, Fly and the staff's
// login, all on loopback.
//
// It is for _test.go files of any package. Its files are in the test's temporary
// folder, and it ends with the test.
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

// The names in the default policy.
const (
	TrustDomain = "ci.example.com"
	Audience    = "mayfly:" + TrustDomain
	// SessionsAudience is the audience of an engine's token for POST /v1/sessions.
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

// Options changes the issuer that Start makes. The zero value is usable.
type Options struct {
	// Endpoint is the engine's endpoint in the policy. Default: tcp://127.0.0.1:8080.
	Endpoint string
	// Policy, when not nil, edits the text of the policy file.
	Policy func(text string) string
	// Config, when not nil, edits the configuration.
	Config func(*issuer.Config)
	// Store is the DSN of a store to create and use. Default: a SQLite file.
	Store string
	// Log receives the issuer's log. Default: none.
	Log io.Writer
}

// Issuer is a running issuer.
type Issuer struct {
	// URL is the issuer's URL: https, with a certificate of its own CA.
	URL string
	// CAFile is the root's certificate in PEM. Root is the same, parsed, and
	// TrustAnchor pins it: sha256:HEX.
	CAFile      string
	Root        *x509.Certificate
	TrustAnchor string
	// PolicyFile is the file of the policy. After a change to it, call Reload.
	PolicyFile string
	Config     issuer.Config
	// GitHub, Fly and Staff are the token providers.
	GitHub, Fly, Staff *idtokentest.Provider
	// Service is the running service. Its Server has the admin calls as methods.
	Service *issuer.Service

	t      testing.TB
	client *http.Client
	reload chan struct{}
	stop   context.CancelFunc
	done   chan struct{}
	err    error
	once   sync.Once
}

// Start makes a CA and an issuer and serves. The issuer stops when the test ends.
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

// Restart stops the issuer if it runs, and serves again on another port.
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

// Stop shuts the issuer down in order and returns the result of Serve.
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

// Stopping begins the shutdown and does not wait for it; Stop does.
func (i *Issuer) Stopping() { i.stop() }

// Reload makes the issuer read the policy file again, as on SIGHUP. It returns when
// the reload has begun.
func (i *Issuer) Reload() { i.reload <- struct{}{} }

// Client returns an HTTP client that trusts only the issuer's CA.
func (i *Issuer) Client() *http.Client { return i.client }

// GitHubToken mints a token of a job. With nil overrides, rule app-main admits it.
func (i *Issuer) GitHubToken(overrides map[string]any) string {
	return i.mint(i.GitHub, Audience, overrides)
}

// FlyToken mints a token of a machine. With nil overrides, rule engine admits it.
func (i *Issuer) FlyToken(overrides map[string]any) string {
	return i.mint(i.Fly, Audience, overrides)
}

// SessionsToken mints a machine's token for POST /v1/sessions.
func (i *Issuer) SessionsToken(overrides map[string]any) string {
	return i.mint(i.Fly, SessionsAudience, overrides)
}

// AdminToken mints an ID token whose rule grants role admin.
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

// Issue requests a certificate for a new key. If the issuer refuses, the error is a
// *wire.Problem.
func (i *Issuer) Issue(token string) (*wire.IssueResponse, error) {
	i.t.Helper()
	_, csr := Key(i.t)
	return i.IssueCSR(token, csr)
}

// IssueCSR is like Issue, for the caller's certificate request.
func (i *Issuer) IssueCSR(token, csr string) (*wire.IssueResponse, error) {
	var out wire.IssueResponse
	if err := i.Call(http.MethodPost, wire.PathCertificates, token, wire.IssueRequest{CSR: csr}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Revoke revokes as an admin.
func (i *Issuer) Revoke(req wire.RevokeRequest) (*wire.RevokeResponse, error) {
	var out wire.RevokeResponse
	if err := i.Call(http.MethodPost, wire.PathRevocations, i.AdminToken(), req, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Call makes one call of the API. It sends in, if not nil, as JSON, and decodes a
// successful response into out, if not nil. Any other response is a *wire.Problem.
func (i *Issuer) Call(method, path, token string, in, out any) error {
	return Call(i.client, method, i.URL+path, token, in, out)
}

// Call is like Issuer.Call, for any URL. If the issuer does not answer, the error is
// that of the transport.
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
