package policy_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
)

// FuzzPolicy checks every accepted file: it grants nothing to a token without claims,
// each rule identifies its tokens, it stays within the caps, and it reads the same
// twice.
func FuzzPolicy(f *testing.F) {
	f.Add(example)
	f.Add(example + tests)
	f.Add(strings.Replace(example, "ref: refs/heads/main", `ref: ["refs/heads/*", "refs/tags/v*"]`, 1))
	f.Add(strings.Replace(example, "match: {org_id", "all_repositories: true\n    match: {org_id", 1))
	f.Add(strings.Replace(example, `"22222222"`, `&a "2"`, 1) + "---\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := policy.Parse([]byte(text), policy.Options{})
		if err != nil {
			return
		}
		again, err := policy.Parse([]byte(text), policy.Options{})
		if err != nil {
			t.Fatalf("read once only: %v", err)
		}
		if diff := cmp.Diff(s.Rules(), again.Rules()); diff != "" {
			t.Fatal(diff)
		}
		if len(s.Rules()) == 0 {
			t.Fatal("accepted without a rule")
		}
		for _, r := range s.Rules() {
			checkRule(t, r)
		}
		for _, p := range s.Providers() {
			c, err := idtoken.ParseClaims(p, []byte(`{}`))
			if err != nil {
				t.Fatal(err)
			}
			if x := s.Explain(c, policy.Request{}); x.Allowed {
				t.Fatalf("rule %s admits a token that says nothing", x.Rule)
			}
			if _, err := s.Decide(c, certificate); !errors.Is(err, policy.ErrUnverified) {
				t.Fatalf("unverified claims: %v", err)
			}
		}
		s.RunTests()
	})
}

func checkRule(t *testing.T, r policy.RuleView) {
	t.Helper()
	has := map[string]bool{}
	for _, m := range r.Match {
		has[m.Claim] = true
		for _, v := range m.Values {
			star := strings.Contains(v, "*")
			if star && m.Claim != "ref" && m.Claim != "workflow_ref" && m.Claim != "job_workflow_ref" {
				t.Fatalf("rule %s: %s has a star", r.Name, m.Claim)
			}
		}
	}
	who := false
	switch r.ProviderType {
	case idtoken.GitHub:
		who = has["event_name"] && (has["repository_id"] || has["repository_owner_id"] && r.AllRepositories)
	case idtoken.Fly:
		who = has["org_id"] && has["app_id"]
	case idtoken.OIDC:
		who = has["sub"] || has["project_id"]
	case idtoken.People:
		who = has["sub"] || has["email"] && has["email_verified"]
	}
	switch {
	case !who:
		t.Fatalf("rule %s does not say who", r.Name)
	case (r.Role == "") == (r.Profile == ""):
		t.Fatalf("rule %s grants %q and %q", r.Name, r.Role, r.Profile)
	case r.Role != "" && r.ProviderType != idtoken.People:
		t.Fatalf("rule %s grants a role to %s", r.Name, r.ProviderType)
	case r.Profile != "" && (r.TTL <= 0 || r.TTL > r.Profile.MaxTTL() || len(r.Engines) == 0):
		t.Fatalf("rule %s: ttl %v, engines %v", r.Name, r.TTL, r.Engines)
	}
}

// BenchmarkDecide decides on one job's token, with the match in the last of 100 rules.
func BenchmarkDecide(b *testing.B) {
	var rules strings.Builder
	rules.WriteString(head() + "rules:\n")
	for i := range 99 {
		fmt.Fprintf(&rules, "  - {name: r%d, provider: github, match: {repository_id: \"7\", event_name: push}, grant: {profile: client, engines: [default], ttl: 1h}}\n", i)
	}
	s := parse(b, rules.String()+strings.TrimPrefix(ordinary, "rules:\n"))
	c := token(b, s, hub, nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Decide(c, certificate); err != nil {
			b.Fatal(err)
		}
	}
}
