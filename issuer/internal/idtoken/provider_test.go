package idtoken_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

func TestComplete(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		p      idtoken.Provider
		part   string // of the error; "" means accepted
		server string // ServerURL if accepted
	}{
		"github.com":         {idtoken.Provider{Type: idtoken.GitHub, Issuer: "https://token.actions.githubusercontent.com"}, "", "https://github.com"},
		"an enterprise":      {idtoken.Provider{Type: idtoken.GitHub, Issuer: "https://token.actions.githubusercontent.com/octocat-inc"}, "", "https://github.com"},
		"data residency":     {idtoken.Provider{Type: idtoken.GitHub, Issuer: "https://token.actions.octocorp.ghe.com"}, "", "https://octocorp.ghe.com"},
		"its enterprise":     {idtoken.Provider{Type: idtoken.GitHub, Issuer: "https://token.actions.octocorp.ghe.com/slug"}, "", "https://octocorp.ghe.com"},
		"GHES":               {idtoken.Provider{Type: idtoken.GitHub, Issuer: "https://git.example.com/_services/token"}, "", "https://git.example.com"},
		"GHES with a port":   {idtoken.Provider{Type: idtoken.GitHub, Issuer: "https://git.example.com:8443/_services/token"}, "", "https://git.example.com:8443"},
		"a stand-in":         {idtoken.Provider{Type: idtoken.GitHub, Issuer: "http://127.0.0.1:4040/enterprise", UnsafeHTTP: true}, "", "https://github.com"},
		"server_url":         {idtoken.Provider{Type: idtoken.GitHub, Issuer: "https://oidc.example.com", ServerURL: "https://git.example.com"}, "", "https://git.example.com"},
		"another github":     {idtoken.Provider{Type: idtoken.GitHub, Issuer: "https://oidc.example.com"}, "server_url", ""},
		"ghe.com itself":     {idtoken.Provider{Type: idtoken.GitHub, Issuer: "https://token.actions.ghe.com"}, "server_url", ""},
		"server_url, slash":  {idtoken.Provider{Type: idtoken.GitHub, Issuer: "https://oidc.example.com", ServerURL: "https://git.example.com/"}, "trailing slash", ""},
		"server_url for fly": {idtoken.Provider{Type: idtoken.Fly, Issuer: "https://oidc.fly.io/o", ServerURL: "https://git.example.com"}, "server_url", ""},
		"fly":                {idtoken.Provider{Type: idtoken.Fly, Issuer: "https://oidc.fly.io/example-org"}, "", ""},
		"fly, another host":  {idtoken.Provider{Type: idtoken.Fly, Issuer: "https://oidc.fly.io.example.com/o"}, "https://oidc.fly.io/", ""},
		"fly as github":      {idtoken.Provider{Type: idtoken.GitHub, Issuer: "https://oidc.fly.io/o"}, "Fly's", ""},
		"github as fly":      {idtoken.Provider{Type: idtoken.Fly, Issuer: "https://token.actions.githubusercontent.com"}, "https://oidc.fly.io/", ""},
		"oidc":               {idtoken.Provider{Type: idtoken.OIDC, Issuer: "https://gitlab.com"}, "", ""},
		"github as oidc":     {idtoken.Provider{Type: idtoken.OIDC, Issuer: "https://token.actions.githubusercontent.com"}, "GitHub's", ""},
		"github, dot":        {idtoken.Provider{Type: idtoken.OIDC, Issuer: "https://token.actions.githubusercontent.com./x"}, "GitHub's", ""},
		"github, port":       {idtoken.Provider{Type: idtoken.OIDC, Issuer: "https://token.actions.githubusercontent.com:443"}, "GitHub's", ""},
		"ghe.com as oidc":    {idtoken.Provider{Type: idtoken.OIDC, Issuer: "https://token.actions.octocorp.ghe.com"}, "GitHub's", ""},
		"GHES as oidc":       {idtoken.Provider{Type: idtoken.OIDC, Issuer: "https://git.example.com/_services/token"}, "GitHub's", ""},
		"GHES as people":     {idtoken.Provider{Type: idtoken.People, ClientID: "m", Issuer: "https://git.example.com/_services/token/"}, "GitHub's", ""},
		"fly as oidc":        {idtoken.Provider{Type: idtoken.OIDC, Issuer: "https://oidc.fly.io/o"}, "Fly's", ""},
		"fly as people":      {idtoken.Provider{Type: idtoken.People, ClientID: "m", Issuer: "https://oidc.fly.io/o"}, "Fly's", ""},
		"people":             {idtoken.Provider{Type: idtoken.People, ClientID: "m", Issuer: "https://tenant.auth0.example/"}, "", ""},
		"people, no client":  {idtoken.Provider{Type: idtoken.People, Issuer: "https://accounts.example.com"}, "client_id", ""},
		"oidc with a client": {idtoken.Provider{Type: idtoken.OIDC, ClientID: "m", Issuer: "https://accounts.example.com"}, "client_id", ""},
		"no type":            {idtoken.Provider{Issuer: "https://accounts.example.com"}, "unknown type", ""},
		"another type":       {idtoken.Provider{Type: "saml", Issuer: "https://accounts.example.com"}, "unknown type", ""},
		"no issuer":          {idtoken.Provider{Type: idtoken.OIDC}, "issuer", ""},
		"a bare host":        {idtoken.Provider{Type: idtoken.OIDC, Issuer: "gitlab.com"}, "absolute URL", ""},
		"http":               {idtoken.Provider{Type: idtoken.OIDC, Issuer: "http://gitlab.com"}, "want https", ""},
		"http, unsafe":       {idtoken.Provider{Type: idtoken.OIDC, Issuer: "http://gitlab.com", UnsafeHTTP: true}, "loopback only", ""},
		"http, looks local":  {idtoken.Provider{Type: idtoken.OIDC, Issuer: "http://127.0.0.1.example.com", UnsafeHTTP: true}, "loopback only", ""},
		"http, private":      {idtoken.Provider{Type: idtoken.OIDC, Issuer: "http://10.0.0.1", UnsafeHTTP: true, UnsafeAllowPrivate: true}, "loopback only", ""},
		"http on loopback":   {idtoken.Provider{Type: idtoken.OIDC, Issuer: "http://[::1]:80", UnsafeHTTP: true}, "", ""},
		"http, not unsafe":   {idtoken.Provider{Type: idtoken.OIDC, Issuer: "http://127.0.0.1"}, "unsafe_http", ""},
		"userinfo":           {idtoken.Provider{Type: idtoken.OIDC, Issuer: "https://x@gitlab.com"}, "userinfo", ""},
		"a query":            {idtoken.Provider{Type: idtoken.OIDC, Issuer: "https://gitlab.com?x"}, "query", ""},
		"a fragment":         {idtoken.Provider{Type: idtoken.OIDC, Issuer: "https://gitlab.com#"}, "fragment", ""},
		"upper case":         {idtoken.Provider{Type: idtoken.OIDC, Issuer: "https://GitLab.com"}, "lower case", ""},
		"too long":           {idtoken.Provider{Type: idtoken.OIDC, Issuer: "https://gitlab.com/" + strings.Repeat("x", 1024)}, "1024", ""},
		"a pinned jwks_uri":  {idtoken.Provider{Type: idtoken.OIDC, Issuer: "https://gitlab.com", JWKSURI: "https://keys.example.com/jwks"}, "", ""},
		"jwks_uri, a query":  {idtoken.Provider{Type: idtoken.OIDC, Issuer: "https://gitlab.com", JWKSURI: "https://keys.example.com/jwks?p=x"}, "", ""},
		"jwks_uri by http":   {idtoken.Provider{Type: idtoken.OIDC, Issuer: "https://gitlab.com", JWKSURI: "http://keys.example.com"}, "jwks_uri", ""},
		"ES256":              {idtoken.Provider{Type: idtoken.OIDC, Issuer: "https://gitlab.com", Algorithms: []string{"RS256", "ES256", "EdDSA"}}, "", ""},
		"HS256":              {idtoken.Provider{Type: idtoken.OIDC, Issuer: "https://gitlab.com", Algorithms: []string{"HS256"}}, "algorithm", ""},
		"none":               {idtoken.Provider{Type: idtoken.OIDC, Issuer: "https://gitlab.com", Algorithms: []string{"none"}}, "algorithm", ""},
		"ES256 twice":        {idtoken.Provider{Type: idtoken.OIDC, Issuer: "https://gitlab.com", Algorithms: []string{"ES256", "ES256"}}, "twice", ""},
		"github by ES256":    {idtoken.Provider{Type: idtoken.GitHub, Issuer: "https://token.actions.githubusercontent.com", Algorithms: []string{"ES256"}}, "sign by RS256", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := tc.p.Complete()
			if tc.part != "" {
				if err == nil || !strings.Contains(err.Error(), tc.part) {
					t.Errorf("got %v, want an error about %q", err, tc.part)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.ServerURL != tc.server || len(got.Algorithms) == 0 {
				t.Errorf("server %q, algorithms %v; want server %q", got.ServerURL, got.Algorithms, tc.server)
			}
			again, err := got.Complete()
			if err != nil || !again.Equal(got) {
				t.Errorf("completed twice: %s (%v)", cmp.Diff(got, again), err)
			}
		})
	}
}

// TestDistinctIssuers is ATTACKS 60: two providers never have the same issuer.
func TestDistinctIssuers(t *testing.T) {
	t.Parallel()
	const issuer = "https://accounts.example.com"
	provider := func(name, issuer string) idtoken.Provider {
		return idtoken.Provider{Name: name, Type: idtoken.OIDC, Issuer: issuer}
	}
	for _, same := range []string{issuer, issuer + "/", issuer + ":443", "https://accounts.example.com."} {
		_, err := idtoken.NewVerifier([]idtoken.Provider{provider("a", issuer), provider("b", same)}, idtoken.Options{})
		if err == nil || !strings.Contains(err.Error(), "share the issuer") {
			t.Errorf("%s: got %v", same, err)
		}
	}
	if err := idtoken.CheckDistinct([]idtoken.Provider{provider("a", issuer), provider("b", issuer+"/tenant")}); err != nil {
		t.Errorf("two tenants: %v", err)
	}
	if err := idtoken.CheckDistinct([]idtoken.Provider{provider("a", issuer), provider("a", issuer+"/tenant")}); err == nil {
		t.Error("two providers of one name were accepted")
	}
	if _, err := idtoken.NewVerifier(nil, idtoken.Options{}); err == nil {
		t.Error("a verifier of no provider was made")
	}
}
