package grant_test

import (
	"encoding/json"
	"math/big"
	"net"
	"testing"
	"time"

	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/ca/grant"
	"github.com/mayfly-ca/mayfly/ca/identity"
)

func client() grant.Params {
	return grant.Params{
		Profile: grant.Client, TTL: time.Hour, Provider: "github",
		Identity: identity.Identity{
			ID:    spiffeid.RequireFromString("spiffe://ci.example.com/github/1/2"),
			Grant: identity.Scope{Engines: []string{"default", "large"}, Rule: "app-main", Run: "1/1/1"},
		},
		Token:  grant.Token{Issuer: "https://token.example.com", ID: "1", SingleUse: true},
		Claims: json.RawMessage(`{}`),
	}
}

func server() grant.Params {
	p := client()
	p.Profile, p.TTL, p.Provider = grant.Server, 24*time.Hour, "fly"
	p.Identity.ID = spiffeid.RequireFromString("spiffe://ci.example.com/engine/default/fly/1/2")
	p.Identity.Grant = identity.Scope{Engines: []string{"default"}, Rule: "engine"}
	p.DNSNames = []string{"example-engine.fly.dev"}
	return p
}

// Attack 37: the caps are in code, whatever policy allows.
func TestNewGrantRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		from   func() grant.Params
		change func(*grant.Params)
	}{
		"no profile":             {client, func(p *grant.Params) { p.Profile = "" }},
		"unknown profile":        {client, func(p *grant.Params) { p.Profile = "ca" }},
		"client over 1 h":        {client, func(p *grant.Params) { p.TTL = time.Hour + time.Second }},
		"server over 24 h":       {server, func(p *grant.Params) { p.TTL = 24*time.Hour + time.Second }},
		"no ttl":                 {client, func(p *grant.Params) { p.TTL = 0 }},
		"negative ttl":           {client, func(p *grant.Params) { p.TTL = -time.Hour }},
		"part of a second":       {client, func(p *grant.Params) { p.TTL = time.Millisecond }},
		"no ID":                  {client, func(p *grant.Params) { p.Identity.ID = spiffeid.ID{} }},
		"no engine":              {client, func(p *grant.Params) { p.Identity.Grant.Engines = nil }},
		"no rule":                {client, func(p *grant.Params) { p.Identity.Grant.Rule = "" }},
		"no provider":            {client, func(p *grant.Params) { p.Provider = "" }},
		"no token issuer":        {client, func(p *grant.Params) { p.Token.Issuer = "" }},
		"single use without jti": {client, func(p *grant.Params) { p.Token.ID = "" }},
		"client with DNS":        {client, func(p *grant.Params) { p.DNSNames = []string{"a.example.com"} }},
		"client as an engine":    {client, func(p *grant.Params) { p.Identity.ID = server().Identity.ID }},
		"server as a client":     {server, func(p *grant.Params) { p.Identity.ID = client().Identity.ID }},
		"server as another engine": {server, func(p *grant.Params) {
			p.Identity.ID = spiffeid.RequireFromString("spiffe://ci.example.com/engine/large/fly/1/2")
		}},
		"server without DNS":        {server, func(p *grant.Params) { p.DNSNames = nil }},
		"server of two engines":     {server, func(p *grant.Params) { p.Identity.Grant.Engines = []string{"default", "large"} }},
		"wildcard":                  {server, func(p *grant.Params) { p.DNSNames = []string{"*.fly.dev"} }},
		"upper case":                {server, func(p *grant.Params) { p.DNSNames = []string{"Example.fly.dev"} }},
		"IP address as a DNS name":  {server, func(p *grant.Params) { p.DNSNames = []string{"10.0.0.1"} }},
		"value beyond its bound":    {client, func(p *grant.Params) { p.Identity.Workflow.Subject = string(make([]byte, identity.MaxValue+1)) }},
		"common name with controls": {client, func(p *grant.Params) { p.Identity.CommonName = "a\x1b[31m" }},
	} {
		t.Run(name, func(t *testing.T) {
			p := c.from()
			if _, err := grant.New(p); err != nil {
				t.Fatalf("unchanged: %v", err)
			}
			c.change(&p)
			if g, err := grant.New(p); err == nil || !g.IsZero() {
				t.Errorf("granted %+v", g)
			}
		})
	}
}

// A Grant shares no memory with the Params given to New, nor with those that Params
// returns.
func TestGrantIsImmutable(t *testing.T) {
	t.Parallel()
	p := server()
	g, err := grant.New(p)
	if err != nil {
		t.Fatal(err)
	}
	p.DNSNames[0], p.Identity.Grant.Engines[0], p.Claims[0] = "evil.example.com", "evil", 'x'
	got := g.Params()
	got.DNSNames[0], got.Identity.Grant.Engines[0], got.Claims[0] = "evil.example.com", "evil", 'x'
	ids := cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b })
	if diff := cmp.Diff(server(), g.Params(), ids); diff != "" {
		t.Error(diff)
	}
	var zero grant.Grant
	if !zero.IsZero() || g.IsZero() || zero.Params().Profile != "" {
		t.Error("zero grants are told apart wrongly")
	}
}

// CheckSubject finds a record whose identity or grant differs from its leaf's.
func TestCheckSubject(t *testing.T) {
	t.Parallel()
	p := client()
	p.Identity.Workflow = identity.Workflow{SourceRepositoryURI: "https://github.com/octo-org/app", SourceRepositoryID: "42", RunInvocationURI: "https://github.com/octo-org/app/actions/runs/1/attempts/1"}
	p.Subject = grant.Labels{Repository: "octo-org/app", RepositoryID: "42", RunID: "1", Actor: "octocat"}
	leaf := &x509.Certificate{}
	if err := p.Embed(leaf); err != nil {
		t.Fatal(err)
	}
	leaf.Extensions = leaf.ExtraExtensions // as parsing has them
	td, id, scope := p.Identity.ID.TrustDomain(), p.Identity.ID.String(), p.Identity.Grant
	if err := grant.CheckSubject(leaf, td, id, scope.Rule, scope.Run, scope.Engines, p.Subject); err != nil {
		t.Errorf("its own record: %v", err)
	}
	sub := spiffeid.RequireTrustDomainFromString("sub.ci.example.com")
	for name, err := range map[string]error{
		"identity":      grant.CheckSubject(leaf, td, id+"3", scope.Rule, scope.Run, scope.Engines, p.Subject),
		"rule":          grant.CheckSubject(leaf, td, id, "other", scope.Run, scope.Engines, p.Subject),
		"run":           grant.CheckSubject(leaf, td, id, scope.Rule, "1/2/1", scope.Engines, p.Subject),
		"engines":       grant.CheckSubject(leaf, td, id, scope.Rule, scope.Run, scope.Engines[:1], p.Subject),
		"repository":    grant.CheckSubject(leaf, td, id, scope.Rule, scope.Run, scope.Engines, grant.Labels{Repository: "octo-org/octo", RepositoryID: p.Subject.RepositoryID, RunID: p.Subject.RunID}),
		"repository id": grant.CheckSubject(leaf, td, id, scope.Rule, scope.Run, scope.Engines, grant.Labels{Repository: p.Subject.Repository, RepositoryID: "1", RunID: p.Subject.RunID}),
		"run id":        grant.CheckSubject(leaf, td, id, scope.Rule, scope.Run, scope.Engines, grant.Labels{Repository: p.Subject.Repository, RepositoryID: p.Subject.RepositoryID, RunID: "2"}),
		"nobody":        grant.CheckSubject(leaf, td, id, scope.Rule, scope.Run, scope.Engines, grant.Labels{}),
		"trust domain":  grant.CheckSubject(leaf, sub, id, scope.Rule, scope.Run, scope.Engines, p.Subject),
	} {
		if err == nil {
			t.Errorf("a record of another %s passes", name)
		}
	}
}

func TestNotAfterIsNeverPastTheIntermediate(t *testing.T) {
	t.Parallel()
	notBefore := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	for end, want := range map[time.Duration]time.Duration{48 * time.Hour: 61 * time.Minute, 10 * time.Minute: 10 * time.Minute} {
		issuer := &x509.Certificate{NotAfter: notBefore.Add(end)}
		if got := grant.NotAfter(notBefore, time.Hour, issuer).Sub(notBefore); got != want {
			t.Errorf("issuer ends after %v: leaf after %v, want %v", end, got, want)
		}
	}
}

func TestCheckKey(t *testing.T) {
	t.Parallel()
	modulus := func(bits uint) *big.Int { return new(big.Int).SetBit(big.NewInt(1), int(bits)-1, 1) }
	for name, c := range map[string]struct {
		pub any
		ok  bool
	}{
		"P-256":       {&ecdsa.PublicKey{Curve: elliptic.P256()}, true},
		"P-384":       {&ecdsa.PublicKey{Curve: elliptic.P384()}, true},
		"P-521":       {&ecdsa.PublicKey{Curve: elliptic.P521()}, false},
		"P-224":       {&ecdsa.PublicKey{Curve: elliptic.P224()}, false},
		"Ed25519":     {ed25519.PublicKey(make([]byte, ed25519.PublicKeySize)), true},
		"RSA 2048":    {&rsa.PublicKey{N: modulus(2048), E: 65537}, true},
		"RSA 8192":    {&rsa.PublicKey{N: modulus(8192), E: 65537}, true},
		"RSA 2047":    {&rsa.PublicKey{N: modulus(2047), E: 65537}, false},
		"RSA 16384":   {&rsa.PublicKey{N: modulus(16384), E: 65537}, false},
		"RSA e=3":     {&rsa.PublicKey{N: modulus(2048), E: 3}, false},
		"RSA e=65539": {&rsa.PublicKey{N: modulus(2048), E: 65539}, false},
		"nothing":     {nil, false},
	} {
		if err := grant.CheckKey(c.pub); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A name that ValidHostName accepts is given to Go's verifier as a DNS name. The
// verifier must not read it as an address or a pattern.
func FuzzHostName(f *testing.F) {
	for _, s := range []string{"example-engine.fly.dev", "localhost", "*.fly.dev", "10.0.0.1", "::1", "a..b", "-a.example", "a_b.example", "fly.dev."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !grant.ValidHostName(s) {
			return
		}
		if net.ParseIP(s) != nil {
			t.Fatalf("%q is an address", s)
		}
		cert := &x509.Certificate{DNSNames: []string{s}}
		if err := cert.VerifyHostname(s); err != nil {
			t.Fatal(err)
		}
		if err := cert.VerifyHostname("x." + s); err == nil {
			t.Fatalf("%q matches more than itself", s)
		}
	})
}
