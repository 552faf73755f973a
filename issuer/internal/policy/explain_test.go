package policy_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mayfly-ca/mayfly/ca/grant"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
)

func recorded(t testing.TB, s *policy.Set, provider, payload string) idtoken.Claims {
	t.Helper()
	for _, p := range s.Providers() {
		if p.Name == provider {
			c, err := idtoken.ParseClaims(p, []byte(payload))
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
	}
	t.Fatalf("no provider %s", provider)
	return idtoken.Claims{}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	s := parse(t, example)
	const issGitHub, issFly = `"https://token.actions.githubusercontent.com"`, `"https://oidc.fly.io/example-org"`
	got := s.Explain(recorded(t, s, "github", `{"repository_owner_id":"285964","repository_id":"1339936803","ref":"refs/heads/main","event_name":"push"}`), certificate)
	want := policy.Explanation{
		Allowed: true, Rule: "app-main", Profile: grant.Client, Engines: []string{"default"},
		Rules: []policy.ExplainedRule{
			{Rule: "app-main", Matched: true},
			{Rule: "engine", Claim: "iss", Got: issGitHub, Want: issFly},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	got = s.Explain(recorded(t, s, "github", `{"repository_owner_id":"285964","repository_id":"7","event_name":"delete"}`), certificate)
	want = policy.Explanation{Rules: []policy.ExplainedRule{
		{Rule: "app-main", Claim: "repository_id", Got: `"7"`, Want: `"1339936803"`},
		{Rule: "engine", Claim: "iss", Got: issGitHub, Want: issFly},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	got = s.Explain(recorded(t, s, "github", `{"repository_owner_id":"285964","repository_id":"1339936803","ref":"refs/heads/main"}`), certificate)
	if diff := cmp.Diff(policy.ExplainedRule{Rule: "app-main", Claim: "event_name", Want: `"push" or "workflow_dispatch"`}, got.Rules[0]); diff != "" {
		t.Error(diff)
	}
	person := recorded(t, s, "staff", `{"email":"ops@example.com","email_verified":true}`)
	if got := s.Explain(person, policy.Request{Want: policy.WantRole}); !got.Allowed || got.Role != policy.Admin || len(got.Rules) != 1 {
		t.Errorf("%+v", got)
	}
	for name, r := range map[string]policy.Request{
		"a certificate": certificate, "nothing": {}, "sessions": {Want: policy.WantSessions}, "a role for an engine": {Want: policy.WantRole, Engine: "default"},
	} {
		if got := s.Explain(person, r); got.Allowed || got.Rule != "" || got.Role != "" {
			t.Errorf("a person asks for %s: %+v", name, got)
		}
	}
	if got := s.Explain(idtoken.Claims{}, certificate); got.Allowed {
		t.Errorf("zero claims: %+v", got)
	}
	got = s.Explain(recorded(t, s, "fly", `{"org_id":"11111111","app_id":"22222222"}`), certificate)
	if diff := cmp.Diff(policy.ExplainedRule{Rule: "engine", Claim: "machine_id", Want: "a value that fits into a certificate"}, got.Rules[1]); diff != "" || got.Allowed {
		t.Errorf("a machine without an id: %s", diff)
	}
	got = s.Explain(recorded(t, s, "fly", `{"org_id":"11111111","app_id":"22222222"}`), policy.Request{Want: policy.WantCertificate, Engine: "other"})
	if diff := cmp.Diff(policy.ExplainedRule{Rule: "engine", Claim: "engine", Got: `"other"`, Want: `"default"`}, got.Rules[1]); diff != "" {
		t.Error(diff)
	}
}

const tests = `tests:
  - name: main may build
    provider: github
    claims: {repository_owner_id: "285964", repository_id: "1339936803", ref: refs/heads/main, event_name: push, iat: 1787166757, aud: [x]}
    rule: app-main
  - name: a branch may not
    provider: github
    claims: {repository_owner_id: "285964", repository_id: "1339936803", ref: refs/heads/dev, event_name: push}
    denied: ref
  - name: nor another engine
    provider: github
    claims: {repository_owner_id: "285964", repository_id: "1339936803", ref: refs/heads/main, event_name: push}
    engine: other
    denied: engine
  - name: an operator
    provider: staff
    claims: {email: ops@example.com, email_verified: true, nested: {list: [1, null, "x"]}}
    want: role
    rule: admins
  - provider: fly
    claims: {org_id: "9", app_id: "22222222"}
    denied: app_id
  - name: wrongly hoped for
    provider: fly
    claims: {org_id: "9", app_id: "22222222"}
    rule: engine
  - name: a machine
    provider: fly
    claims: {org_id: "11111111", app_id: "22222222"}
    rule: engine
  - name: an operator's certificate
    provider: staff
    claims: {email: ops@example.com, email_verified: true}
    denied: email
`

func TestRunTests(t *testing.T) {
	t.Parallel()
	got := parse(t, example+tests).RunTests()
	want := []policy.TestResult{
		{Name: "main may build", OK: true, Want: "rule app-main", Got: "rule app-main"},
		{Name: "a branch may not", OK: true, Want: "denied by ref", Got: "denied by ref"},
		{Name: "nor another engine", OK: true, Want: "denied by engine", Got: "denied by engine"},
		{Name: "an operator", OK: true, Want: "rule admins", Got: "rule admins"},
		{Name: "tests[4]", Want: "denied by app_id", Got: "denied by org_id"},
		{Name: "wrongly hoped for", Want: "rule engine", Got: "denied by org_id"},
		{Name: "a machine", OK: true, Want: "rule engine", Got: "rule engine"},
		{Name: "an operator's certificate", Want: "denied by email", Got: "denied"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got := parse(t, example).RunTests(); len(got) != 0 {
		t.Errorf("without tests: %v", got)
	}
}

func TestBadTests(t *testing.T) {
	t.Parallel()
	for name, line := range map[string]string{
		"neither rule nor denied": `{provider: fly, claims: {org_id: "1"}}`,
		"both":                    `{provider: fly, claims: {org_id: "1"}, rule: engine, denied: org_id}`,
		"another rule":            `{provider: fly, claims: {org_id: "1"}, rule: gone}`,
		"another provider":        `{provider: gone, claims: {org_id: "1"}, denied: org_id}`,
		"no claims":               `{provider: fly, denied: org_id}`,
		"claims that are a list":  `{provider: fly, claims: [a], denied: org_id}`,
		"an unquoted id":          `{provider: fly, claims: {org_id: 1}, denied: org_id}`,
		"a float":                 `{provider: staff, claims: {x: 1.5}, denied: org_id}`,
		"another want":            `{provider: fly, want: all, claims: {org_id: "1"}, denied: org_id}`,
		"an unknown key":          `{provider: fly, expect: x, claims: {org_id: "1"}, denied: org_id}`,
	} {
		if _, err := policy.Parse([]byte(example+"tests:\n  - "+line+"\n"), policy.Options{}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestTypedValues is ATTACKS 8 for every type that JSON has.
func TestTypedValues(t *testing.T) {
	t.Parallel()
	s := parse(t, head()+`rules:
  - {name: text, provider: cluster, match: {sub: a, x: "1"}, grant: {profile: client, engines: [default], ttl: 1h}}
  - {name: number, provider: cluster, match: {sub: a, x: 1}, grant: {profile: client, engines: [default], ttl: 1h}}
  - {name: boolean, provider: cluster, match: {sub: a, x: true}, grant: {profile: client, engines: [default], ttl: 1h}}
`)
	for value, rule := range map[string]string{
		`"1"`: "text", `1`: "number", `true`: "boolean",
		`1.0`: "", `10e-1`: "", `"true"`: "", `false`: "", `null`: "", `["1"]`: "", `{"1":1}`: "", `"01"`: "", `""`: "",
	} {
		got := s.Explain(recorded(t, s, "cluster", `{"sub":"a","x":`+value+`}`), certificate)
		if got.Rule != rule {
			t.Errorf("%s is admitted by %q, want %q", value, got.Rule, rule)
		}
		if rule == "" && got.Rules[0].Got == "" {
			t.Errorf("%s reads as missing", value)
		}
	}
}

// TestExplainIsTheDecision checks that Explain and Decide agree for every request.
func TestExplainIsTheDecision(t *testing.T) {
	t.Parallel()
	s := parse(t, head()+ordinary+`  - {name: person, provider: staff, match: {sub: "2"}, grant: {profile: client, engines: [default, arm], ttl: 1h}}
`)
	tokens := map[string]idtoken.Claims{
		"a job":                     token(t, s, hub, nil),
		"a job of another branch":   token(t, s, hub, claims{"ref": "refs/heads/dev"}),
		"a job without an owner":    token(t, s, hub, claims{"repository_owner_id": ""}),
		"a machine":                 token(t, s, fly, nil),
		"a machine without an id":   token(t, s, fly, claims{"machine_id": ""}),
		"a pod":                     token(t, s, cluster, claims{"sub": "system:serviceaccount:builds:runner"}),
		"an admin":                  token(t, s, staff, claims{"sub": "1", "email": "ops@example.com", "email_verified": true}),
		"a person":                  token(t, s, staff, claims{"sub": "2"}),
		"a person whom none admits": token(t, s, staff, claims{"sub": "3"}),
	}
	allowed := 0
	for name, c := range tokens {
		for _, want := range []policy.Want{0, policy.WantCertificate, policy.WantRole} {
			for _, engine := range []string{"", "default", "arm", "nope"} {
				r := policy.Request{Want: want, Engine: engine}
				d, err := s.Decide(c, r)
				x := s.Explain(c, r)
				if x.Allowed != (err == nil) || x.Rule != d.Rule || x.Role != d.Role || len(x.Engines) != len(d.Engines) {
					t.Errorf("%s, %+v: explained as %+v, decided as %+v, %v", name, r, x, d, err)
				}
				if x.Allowed {
					allowed++
				}
			}
		}
	}
	if allowed < 10 {
		t.Errorf("only %d are allowed", allowed)
	}
}
