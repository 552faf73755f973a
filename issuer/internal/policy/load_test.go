package policy_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mayfly-ca/mayfly/ca/grant"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
)

// example is the exact policy file of the design.
const example = `version: 1
trust_domain: ci.example.com             # SPIFFE trust domain: lower-case DNS name of two labels or more
providers:
  github: {type: github, issuer: https://token.actions.githubusercontent.com}
  fly:    {type: fly,    issuer: https://oidc.fly.io/example-org}
  staff:  {type: people, issuer: https://accounts.example.com, client_id: mayfly}
engines:
  default: {endpoint: "tcp://example-engine.fly.dev:8080", server_name: example-engine.fly.dev}
rules:
  - name: app-main
    provider: github
    match: {repository_owner_id: "285964", repository_id: "1339936803", ref: refs/heads/main, event_name: [push, workflow_dispatch]}
    grant: {profile: client, engines: [default], ttl: 1h}
  - name: engine
    provider: fly
    match: {org_id: "11111111", app_id: "22222222"}
    grant: {profile: server, engines: [default], dns: ["example-engine.fly.dev"], ttl: 24h}
  - name: admins
    provider: staff
    match: {email: [ops@example.com], email_verified: true}
    grant: {role: admin}                   # or viewer
`

func TestExample(t *testing.T) {
	t.Parallel()
	s := parse(t, example)
	if s.Audience() != "mayfly:ci.example.com" || s.SessionsAudience() != "mayfly:ci.example.com:sessions" || s.TrustDomain().Name() != "ci.example.com" {
		t.Errorf("audience %s, sessions %s, trust domain %s", s.Audience(), s.SessionsAudience(), s.TrustDomain())
	}
	if f := s.Findings(); len(f) != 0 {
		t.Errorf("findings: %v", f)
	}
	want := []policy.RuleView{
		{Name: "app-main", Provider: "github", ProviderType: idtoken.GitHub, Match: []policy.MatchView{
			{Claim: "repository_owner_id", Values: []string{`"285964"`}}, {Claim: "repository_id", Values: []string{`"1339936803"`}},
			{Claim: "ref", Values: []string{`"refs/heads/main"`}}, {Claim: "event_name", Values: []string{`"push"`, `"workflow_dispatch"`}},
		}, Profile: grant.Client, Engines: []string{"default"}, TTL: time.Hour},
		{Name: "engine", Provider: "fly", ProviderType: idtoken.Fly, Match: []policy.MatchView{
			{Claim: "org_id", Values: []string{`"11111111"`}}, {Claim: "app_id", Values: []string{`"22222222"`}},
		}, Profile: grant.Server, Engines: []string{"default"}, DNS: []string{"example-engine.fly.dev"}, TTL: 24 * time.Hour},
		{Name: "admins", Provider: "staff", ProviderType: idtoken.People, Match: []policy.MatchView{
			{Claim: "email", Values: []string{`"ops@example.com"`}}, {Claim: "email_verified", Values: []string{"true"}},
		}, Role: policy.Admin},
	}
	if diff := cmp.Diff(want, s.Rules()); diff != "" {
		t.Error(diff)
	}
	var names []string
	for _, p := range s.Providers() {
		names = append(names, p.Name+" "+p.Issuer)
	}
	if diff := cmp.Diff([]string{"fly https://oidc.fly.io/example-org", "github https://token.actions.githubusercontent.com", "staff https://accounts.example.com"}, names); diff != "" {
		t.Error(diff)
	}
}

func TestSetIsImmutable(t *testing.T) {
	t.Parallel()
	s := parse(t, example)
	before := s.Rules()
	s.Rules()[0].Engines[0] = "x"
	s.Rules()[0].Match[0].Values[0] = "x"
	s.Rules()[1].DNS[0] = "x"
	s.Engines()[0].Name = "x"
	s.Providers()[0].Algorithms[0] = "none"
	if diff := cmp.Diff(before, s.Rules()); diff != "" || s.Engines()[0].Name != "default" || s.Providers()[0].Algorithms[0] != "RS256" {
		t.Errorf("the set was changed: %s", diff)
	}
}

// TestSuggestion checks the form that mayfly policy suggest prints in a job.
func TestSuggestion(t *testing.T) {
	t.Parallel()
	rule := `rules:
  - name: andreaso-actions-tester-main
    provider: github
    match:
      repository_owner_id: "285964" # andreaso
      repository_id: "1339936803" # andreaso/actions-tester
      ref: "refs/heads/main"
      event_name: ["push"]
    grant: {profile: client, engines: [default], ttl: 1h}
`
	s := parse(t, head()+rule)
	if _, err := s.Decide(token(t, s, hub, nil), certificate); err != nil {
		t.Error(err)
	}
}

// edit replaces one line of the example.
type edit struct{ old, new string }

// TestRefusals covers every load-time refusal, among them ATTACKS 4, 5, 10 and 57.
func TestRefusals(t *testing.T) {
	t.Parallel()
	const (
		job      = `match: {repository_owner_id: "285964", repository_id: "1339936803", ref: refs/heads/main, event_name: [push, workflow_dispatch]}`
		jobGrant = `grant: {profile: client, engines: [default], ttl: 1h}`
		machine  = `match: {org_id: "11111111", app_id: "22222222"}`
		mGrant   = `grant: {profile: server, engines: [default], dns: ["example-engine.fly.dev"], ttl: 24h}`
		person   = `match: {email: [ops@example.com], email_verified: true}`
		pGrant   = `grant: {role: admin}`
		hubLine  = `{type: github, issuer: https://token.actions.githubusercontent.com}`
		engine   = `{endpoint: "tcp://example-engine.fly.dev:8080", server_name: example-engine.fly.dev}`
	)
	for name, tc := range map[string]struct {
		edit
		part string
	}{
		"4 all repositories of an owner":    {edit{job, `match: {repository_owner_id: "285964", event_name: [push]}`}, "all_repositories"},
		"4 all repositories of everybody":   {edit{job, "all_repositories: true\n    match: {event_name: [push]}"}, "match.repository_id is missing"},
		"4 all, and one":                    {edit{job, "all_repositories: true\n    " + job}, "contradict"},
		"4 all repositories of a machine":   {edit{machine, "all_repositories: true\n    " + machine}, "all_repositories"},
		"5 a name is no identity":           {edit{job, `match: {repository: andreaso/actions-tester, event_name: [push]}`}, "match.repository_id is missing"},
		"5 nor is sub":                      {edit{job, `match: {sub: "repo:o/r:ref:refs/heads/main", event_name: [push]}`}, "match.repository_id is missing"},
		"5 a machine without org":           {edit{machine, `match: {app_id: "22222222"}`}, "org_id"},
		"5 a machine without app":           {edit{machine, `match: {org_id: "11111111"}`}, "app_id"},
		"5 a person by unverified email":    {edit{person, `match: {email: ops@example.com}`}, "email_verified"},
		"5 a person by falsely verified":    {edit{person, `match: {email: ops@example.com, email_verified: false}`}, "email_verified"},
		"5 a person verified or not":        {edit{person, `match: {email: ops@example.com, email_verified: [true, false]}`}, "email_verified"},
		"5 a person verified by a string":   {edit{person, `match: {email: ops@example.com, email_verified: "true"}`}, "without quotes"},
		"5 a person by group":               {edit{person, `match: {groups: admins}`}, "match.sub"},
		"5 a workload by namespace":         {edit{hubLine, `{type: oidc, issuer: https://gitlab.com}`}, "match.sub"},
		"5 no match":                        {edit{"    " + machine + "\n", ""}, "for everybody"},
		"5 an empty match":                  {edit{machine, "match: {}"}, "for everybody"},
		"5 a match of null":                 {edit{machine, "match: ~"}, "for everybody"},
		"10 no event":                       {edit{job, `match: {repository_id: "1339936803"}`}, "event_name is missing"},
		"5 an id mistyped":                  {edit{job, `match: {repositry_id: "1339936803", event_name: push}`}, "in place of repositry_id, did you mean repository_id?"},
		"5 a machine's id mistyped":         {edit{machine, `match: {org_id: "11111111", ap_id: "22222222"}`}, "in place of ap_id, did you mean app_id?"},
		"10 the event's key mistyped":       {edit{job, `match: {repository_id: "1339936803", event_nme: push}`}, "in place of event_nme, did you mean event_name?"},
		"10 a privileged event":             {edit{job, `match: {repository_id: "1339936803", event_name: [push, pull_request_target]}`}, "unsafe_allow_privileged_events"},
		"10 an event of the future":         {edit{job, `match: {repository_id: "1339936803", event_name: later}`}, `GitHub has no event "later"; an event that is new at GitHub needs unsafe_allow_privileged_events`},
		"10 a mistyped event":               {edit{job, `match: {repository_id: "1339936803", event_name: workflow_dipatch}`}, `did you mean "workflow_dispatch"?`},
		"10 privileged events of machines":  {edit{machine, "unsafe_allow_privileged_events: true\n    " + machine}, "unsafe_allow_privileged_events"},
		"57 a role for a job":               {edit{jobGrant, pGrant}, "only providers of type people"},
		"57 a role for a machine":           {edit{mGrant, pGrant}, "only providers of type people"},
		"57 a role and a certificate":       {edit{pGrant, `grant: {role: admin, profile: client, engines: [default], ttl: 1h}`}, "not both"},
		"a role and engines":                {edit{pGrant, `grant: {role: admin, engines: [default]}`}, "go with a profile"},
		"another role":                      {edit{pGrant, `grant: {role: root}`}, "viewer or admin"},
		"nothing granted":                   {edit{pGrant, `grant: {}`}, "want profile"},
		"no grant":                          {edit{pGrant, `all_repositories: false`}, "want profile"},
		"another profile":                   {edit{jobGrant, `grant: {profile: both, engines: [default], ttl: 1h}`}, "client or server"},
		"no ttl":                            {edit{jobGrant, `grant: {profile: client, engines: [default]}`}, "ttl"},
		"a ttl of days":                     {edit{jobGrant, `grant: {profile: client, engines: [default], ttl: 1d}`}, "ttl"},
		"a ttl of seconds unsaid":           {edit{jobGrant, `grant: {profile: client, engines: [default], ttl: 3600}`}, "ttl"},
		"a ttl over the cap":                {edit{jobGrant, `grant: {profile: client, engines: [default], ttl: 1h0m1s}`}, "cap of profile client"},
		"a server's ttl over the cap":       {edit{mGrant, `grant: {profile: server, engines: [default], dns: [example-engine.fly.dev], ttl: 25h}`}, "cap of profile server"},
		"a ttl of nothing":                  {edit{jobGrant, `grant: {profile: client, engines: [default], ttl: 0s}`}, "ttl"},
		"a negative ttl":                    {edit{jobGrant, `grant: {profile: client, engines: [default], ttl: -1h}`}, "ttl"},
		"a ttl of part of a second":         {edit{jobGrant, `grant: {profile: client, engines: [default], ttl: 1500ms}`}, "ttl"},
		"no engine":                         {edit{jobGrant, `grant: {profile: client, engines: [], ttl: 1h}`}, "engines"},
		"an engine that is not there":       {edit{jobGrant, `grant: {profile: client, engines: [default, gone], ttl: 1h}`}, `no engine "gone"`},
		"an engine twice":                   {edit{jobGrant, `grant: {profile: client, engines: [default, default], ttl: 1h}`}, "twice"},
		"a client with dns":                 {edit{jobGrant, `grant: {profile: client, engines: [default], dns: [example-engine.fly.dev], ttl: 1h}`}, "profile: server"},
		"a server without dns":              {edit{mGrant, `grant: {profile: server, engines: [default], ttl: 24h}`}, "server_name"},
		"a server with another dns":         {edit{mGrant, `grant: {profile: server, engines: [default], dns: [evil.fly.dev], ttl: 24h}`}, "not the server_name"},
		"a server with one dns more":        {edit{mGrant, `grant: {profile: server, engines: [default], dns: [example-engine.fly.dev, evil.fly.dev], ttl: 24h}`}, "exactly"},
		"a server with a wildcard":          {edit{mGrant, `grant: {profile: server, engines: [default], dns: ["*.fly.dev"], ttl: 24h}`}, "wildcard"},
		"a server without an engine":        {edit{mGrant, `grant: {profile: server, engines: [], dns: [example-engine.fly.dev], ttl: 24h}`}, "engines"},
		"zero rules":                        {edit{example[strings.Index(example, "rules:"):], "rules: []\n"}, "rules"},
		"no rules":                          {edit{example[strings.Index(example, "rules:"):], ""}, "rules"},
		"a rule twice":                      {edit{"name: engine", "name: app-main"}, "two rules"},
		"a rule without name":               {edit{"  - name: engine\n    provider", "  - provider"}, "rules[1].name"},
		"a rule of another alphabet":        {edit{"name: engine", "name: \"a b\""}, "rules[1].name"},
		"another provider":                  {edit{"provider: fly", "provider: flyy"}, "no provider"},
		"an unquoted id":                    {edit{job, `match: {repository_id: 1339936803, event_name: [push]}`}, `quote it, "1339936803"`},
		"an unquoted id of a machine":       {edit{machine, `match: {org_id: 11111111, app_id: "22222222"}`}, "quote it"},
		"an unquoted number in a list":      {edit{job, `match: {repository_id: "1339936803", run_number: ["1", 2], event_name: [push]}`}, "quote it"},
		"an unquoted octal":                 {edit{machine, `match: {org_id: 0o17, app_id: "22222222"}`}, "quote it"},
		"an unquoted float":                 {edit{machine, `match: {org_id: 1.5, app_id: "22222222"}`}, "quote it"},
		"an unquoted number of a person":    {edit{person, `match: {sub: 1}`}, "quote it"},
		"an unquoted boolean":               {edit{job, `match: {repository_id: "1339936803", ref_protected: true, event_name: [push]}`}, "quote it"},
		"an unquoted date":                  {edit{job, `match: {repository_id: "1339936803", ref: 2026-01-01, event_name: [push]}`}, "quote it"},
		"a value of null":                   {edit{machine, `match: {org_id: ~, app_id: "22222222"}`}, "no value"},
		"no values":                         {edit{machine, `match: {org_id: [], app_id: "22222222"}`}, "values"},
		"values in values":                  {edit{machine, `match: {org_id: [["1"]], app_id: "22222222"}`}, "a value is"},
		"an object":                         {edit{machine, `match: {org_id: {a: b}, app_id: "22222222"}`}, "a value is"},
		"a name for an id":                  {edit{job, `match: {repository_id: andreaso/actions-tester, event_name: [push]}`}, "is not an id"},
		"a star for an id":                  {edit{job, `match: {repository_id: "*", event_name: [push]}`}, "is not an id"},
		"a star elsewhere":                  {edit{job, `match: {repository_id: "1339936803", environment: "prod*", event_name: [push]}`}, "'*' is only for"},
		"a star for an event":               {edit{job, `match: {repository_id: "1339936803", event_name: "*"}`}, "'*' is only for"},
		"a star in the middle":              {edit{job, `match: {repository_id: "1339936803", ref: "refs/heads/*-x", event_name: [push]}`}, "end of a path segment"},
		"two stars":                         {edit{job, `match: {repository_id: "1339936803", ref: "refs/heads/**", event_name: [push]}`}, "end of a path segment"},
		"a star before the at sign":         {edit{job, `match: {repository_id: "1339936803", workflow_ref: "o/r/*@refs/heads/main", event_name: [push]}`}, "end of a path segment"},
		"an audience in a rule":             {edit{machine, `match: {org_id: "1", app_id: "2", aud: x}`}, "checked with the token"},
		"an expiry in a rule":               {edit{machine, `match: {org_id: "1", app_id: "2", exp: 1}`}, "checked with the token"},
		"a value too long":                  {edit{machine, `match: {org_id: "` + strings.Repeat("1", 1025) + `", app_id: "2"}`}, "longer than"},
		"two providers, one issuer":         {edit{`https://accounts.example.com, client_id: mayfly}`, "https://accounts.example.com, client_id: mayfly}\n  more: {type: oidc, issuer: https://accounts.example.com}"}, "share the issuer"},
		"GitHub as people":                  {edit{`https://accounts.example.com`, "https://token.actions.githubusercontent.com/x"}, "GitHub's"},
		"Fly as people":                     {edit{`https://accounts.example.com`, "https://oidc.fly.io/o"}, "Fly's"},
		"a provider named engine":           {edit{"\n  fly:    {", "\n  engine: {type: oidc, issuer: https://gitlab.com}\n  fly:    {"}, "not engine"},
		"a provider named in upper case":    {edit{"\n  fly:    {", "\n  Fly: {"}, "[a-z][a-z0-9-]*"},
		"a provider without client_id":      {edit{", client_id: mayfly", ""}, "client_id"},
		"a provider over http":              {edit{`issuer: https://accounts`, "issuer: http://accounts"}, "https"},
		"no providers":                      {edit{example[strings.Index(example, "providers:"):strings.Index(example, "engines:")], ""}, "providers"},
		"an engine named in upper case":     {edit{"\n  default: {", "\n  Default: {"}, "[a-z][a-z0-9-]*"},
		"an engine without a port":          {edit{engine, `{endpoint: "tcp://example-engine.fly.dev", server_name: example-engine.fly.dev}`}, "endpoint"},
		"an engine by http":                 {edit{engine, `{endpoint: "http://example-engine.fly.dev:80", server_name: example-engine.fly.dev}`}, "endpoint"},
		"an engine with a path":             {edit{engine, `{endpoint: "tcp://example-engine.fly.dev:80/x", server_name: example-engine.fly.dev}`}, "endpoint"},
		"an engine with userinfo":           {edit{engine, `{endpoint: "tcp://x@example-engine.fly.dev:80", server_name: example-engine.fly.dev}`}, "endpoint"},
		"an engine on port 0":               {edit{engine, `{endpoint: "tcp://example-engine.fly.dev:0", server_name: example-engine.fly.dev}`}, "endpoint"},
		"an engine with a wildcard":         {edit{engine, `{endpoint: "tcp://example-engine.fly.dev:80", server_name: "*.fly.dev"}`}, "server_name"},
		"an engine by address":              {edit{engine, `{endpoint: "tcp://example-engine.fly.dev:80", server_name: 10.0.0.1}`}, "server_name"},
		"an engine in upper case":           {edit{engine, `{endpoint: "tcp://example-engine.fly.dev:80", server_name: Example.fly.dev}`}, "server_name"},
		"a trust domain of one label":       {edit{"ci.example.com ", "local "}, "trust_domain"},
		"a trust domain in upper case":      {edit{"ci.example.com ", "CI.example.com "}, "trust_domain"},
		"a trust domain with a slash":       {edit{"ci.example.com ", "ci.example.com/x "}, "trust_domain"},
		"a trust domain with an underscore": {edit{"ci.example.com ", "ci_x.example.com "}, "trust_domain"},
		"another version":                   {edit{"version: 1", "version: 2"}, "version"},
		"no version":                        {edit{"version: 1\n", ""}, "version"},
		"an unknown key":                    {edit{"version: 1", "version: 1\nextra: 1"}, `policy.yaml:2:1: unknown key "extra"; the keys here are version, trust_domain, providers, engines, rules, tests`},
		"an unknown key of a provider":      {edit{", client_id: mayfly", ", client_id: mayfly, secret: x"}, "secret"},
		"an unknown key of a rule":          {edit{"provider: fly", "provider: fly\n    grants: now"}, `policy.yaml:16:5: unknown key "grants" in rules[1]; did you mean "grant"?`},
		"an unknown key of a grant":         {edit{pGrant, "grant: {role: admin, groups: [x]}"}, "groups"},
		"a key twice":                       {edit{"version: 1", "version: 1\nversion: 1"}, "version"},
		"a claim twice":                     {edit{machine, `match: {org_id: "11111111", org_id: "9", app_id: "22222222"}`}, `policy.yaml:16:33: key "org_id" occurs twice, first on line 16; keep one`},
		"a claim twice, quoted":             {edit{machine, `match: {org_id: "11111111", "org_id": "9", app_id: "22222222"}`}, "twice"},
		"a second document":                 {edit{pGrant, pGrant + "\n---\nversion: 1"}, "second document"},
		"an empty second document":          {edit{pGrant, pGrant + "\n---\n"}, "second document"},
		"an anchor":                         {edit{machine, `match: &m {org_id: "11111111", app_id: "22222222"}`}, "anchors"},
		"an alias":                          {edit{machine, `match: {org_id: &x "11111111", app_id: *x}`}, "anchors"},
		"a merge":                           {edit{machine, `match: {<<: {org_id: "1"}, app_id: "2"}`}, "not a string"},
		"a tag":                             {edit{machine, `match: {org_id: !!str 11111111, app_id: "22222222"}`}, "tags"},
		"a key that is a number":            {edit{machine, `match: {1: "11111111", app_id: "22222222"}`}, "not a string"},
		"a key that is a list":              {edit{machine, `match: {? [a] : "11111111", app_id: "22222222"}`}, "not a string"},
		"nested too deep":                   {edit{machine, `match: ` + strings.Repeat("[", 20) + strings.Repeat("]", 20)}, "nested"},
		"too large":                         {edit{"version: 1", "version: 1\n" + strings.Repeat("#", 1<<20)}, "larger than"},
		"no YAML":                           {edit{"version: 1", "version: [1"}, "policy.yaml:1:10: a list or mapping in brackets is not closed"},
		"no mapping":                        {edit{example, "- version: 1\n"}, "policy.yaml:1:1: want keys with values"},
		"nothing":                           {edit{example, ""}, "empty"},
		"only a comment":                    {edit{example, "# later\n"}, "empty"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if strings.Count(example, tc.old) != 1 {
				t.Fatalf("%q occurs %d times in the example", tc.old, strings.Count(example, tc.old))
			}
			_, err := policy.Parse([]byte(strings.Replace(example, tc.old, tc.new, 1)), policy.Options{})
			if err == nil || !strings.Contains(err.Error(), tc.part) {
				t.Errorf("got %v, want an error about %q", err, tc.part)
			}
		})
	}
}

// TestAllowed holds the twins of TestRefusals.
func TestAllowed(t *testing.T) {
	t.Parallel()
	const rules = `rules:
  - {name: all, provider: github, all_repositories: true, match: {repository_owner_id: ["1", "2"], event_name: [push, schedule, merge_group, release, deployment, pull_request, workflow_dispatch]}, grant: {profile: client, engines: [default, arm], ttl: 1s}}
  - {name: target, provider: github, unsafe_allow_privileged_events: true, match: {repository_id: "1", event_name: pull_request_target}, grant: {profile: client, engines: [prs], ttl: 59m30s}}
  - {name: project, provider: cluster, match: {project_id: "22", runner_id: 1, protected: [true, false], ref: "v*"}, grant: {profile: client, engines: [arm], ttl: 1h}}
  - {name: pods, provider: cluster, match: {sub: a}, grant: {profile: server, engines: [arm], dns: [arm.example.com], ttl: 24h}}
  - {name: person.1_x-Y, provider: staff, match: {sub: "1"}, grant: {role: viewer}}
`
	s := parse(t, head()+rules)
	if len(s.Rules()) != 5 || !s.Rules()[0].AllRepositories || !s.Rules()[1].UnsafeAllowPrivilegedEvents {
		t.Errorf("%+v", s.Rules())
	}
	c := token(t, s, cluster, claims{"sub": "project_path:o/r", "project_id": "22", "runner_id": 1, "protected": false, "ref": "v1"})
	if d, err := s.Decide(c, certificate); err != nil || d.Rule != "project" {
		t.Errorf("a number and a boolean: %+v, %v", d, err)
	}
	wrong := claims{"runner_id": "1", "protected": "false", "project_id": 22, "ref": 1}
	for claim, v := range wrong {
		_, err := s.Decide(token(t, s, cluster, claims{"sub": "p", "project_id": "22", "runner_id": 1, "protected": false, "ref": "v1", claim: v}), certificate)
		wantDenied(t, err, "project", claim)
	}
}

// TestServerOfTwoEngines checks that a server is for one engine. With a certificate
// for two, either engine could pose as the other. The twin is rule pods of
// TestAllowed.
func TestServerOfTwoEngines(t *testing.T) {
	t.Parallel()
	const rules = `rules:
  - {name: pods, provider: cluster, match: {sub: a}, grant: {profile: server, engines: [arm, prs], dns: [arm.example.com], ttl: 24h}}
`
	if _, err := policy.Parse([]byte(head()+rules), policy.Options{}); err == nil || !strings.Contains(err.Error(), "exactly one engine") {
		t.Errorf("got %v", err)
	}
}

func TestNameConstraints(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		permitted []string
		ok        bool
	}{
		"not known":         {nil, true},
		"the name":          {[]string{"example-engine.fly.dev"}, true},
		"its parent":        {[]string{"other.example.com", "fly.dev"}, true},
		"its parent's dot":  {[]string{".fly.dev"}, true},
		"everything":        {[]string{""}, true},
		"nothing":           {[]string{}, false},
		"another":           {[]string{"example.com"}, false},
		"a suffix in bytes": {[]string{"engine.fly.dev"}, false},
		"only below":        {[]string{".example-engine.fly.dev"}, false},
		"a child":           {[]string{"x.example-engine.fly.dev"}, false},
	} {
		_, err := policy.Parse([]byte(example), policy.Options{PermittedDNS: tc.permitted})
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && !strings.Contains(err.Error(), "name constraints") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestProblemsAreToldAtOnce checks that one run of check shows all problems.
func TestProblemsAreToldAtOnce(t *testing.T) {
	t.Parallel()
	text := strings.NewReplacer("ttl: 1h", "ttl: 2h", "version: 1", "version: 3", `app_id: "22222222"`, `app_id: 22222222`).Replace(example)
	_, err := policy.Parse([]byte(text), policy.Options{})
	for _, part := range []string{"policy.yaml:1:10: version", "policy.yaml:13:55: rule app-main.grant: ttl", "policy.yaml:16:41: rule engine.match.app_id: 22222222 is a number"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not told: %v", part, err)
		}
	}
	many := head() + "rules:\n" + strings.Repeat("  - {name: r, provider: x}\n", 100)
	if _, err := policy.Parse([]byte(many), policy.Options{}); err == nil || strings.Count(err.Error(), "\n") > 20 || !strings.Contains(err.Error(), "more") {
		t.Errorf("%v", err)
	}
}
