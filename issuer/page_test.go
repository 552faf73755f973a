package issuer

import (
	"testing"

	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
)

func TestRunURL(t *testing.T) {
	t.Parallel()
	set, err := policy.Parse([]byte(`version: 1
trust_domain: ci.example.com
providers:
  github: {type: github, issuer: "https://token.actions.githubusercontent.com"}
  octocorp: {type: github, issuer: "https://token.actions.octocorp.ghe.com"}
  gitlab: {type: oidc, issuer: "https://gitlab.example.com"}
engines:
  default: {endpoint: "tcp://engine.example.com:8080", server_name: engine.example.com}
rules:
  - name: app
    provider: github
    match: {repository_id: "1", event_name: push}
    grant: {profile: client, engines: [default], ttl: 1h}
`), policy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	policies := &Policies{}
	policies.current.Store(&loadedPolicy{set: set})
	p := webBackend{&Server{policies: policies}}
	const at = "https://github.com/octo/app/actions/runs/4711"
	for _, c := range []struct{ identity, repository, run, want string }{
		{"spiffe://ci.example.com/github/1/2", "octo/app", "4711", at},
		{"spiffe://ci.example.com/github/1/2", "octo/app", "4711/1/99", at},
		{"github/repo:octo/app:ref:refs/heads/main", "octo/app", "4711", at},
		{"spiffe://ci.example.com/octocorp/1/2", "octo/app", "4711", "https://octocorp.ghe.com/octo/app/actions/runs/4711"},
		{"spiffe://ci.example.com/gitlab/project_5F1", "octo/app", "4711", ""},
		{"spiffe://ci.example.com/gone/1/2", "octo/app", "4711", ""},
		{"spiffe://ci.example.com/engine/default/github/1", "octo/app", "4711", ""},
		{"", "octo/app", "4711", ""}, // two providers may have it
		{"github/x", "octo/app", "", ""},
		{"github/x", "", "4711", ""},
		{"github/x", "octo", "4711", ""},
		{"github/x", "octo/app/../..", "4711", ""},
		{"github/x", `octo/"onclick=`, "4711", "https://github.com/octo/%22onclick=/actions/runs/4711"},
		{"github/x", "octo/app", "47a", ""},
		{"github/x", "octo/app", "javascript:alert(1)", ""},
	} {
		if got := p.RunURL(c.identity, c.repository, c.run); got != c.want {
			t.Errorf("RunURL(%q, %q, %q) = %q, want %q", c.identity, c.repository, c.run, got, c.want)
		}
	}
}
