package policy_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/issuer/idtokentest"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
)

type claims = map[string]any

// The providers of all tests. TestMain starts and closes them.
var hub, fly, cluster, staff *idtokentest.Provider

func TestMain(m *testing.M) {
	code := 1
	defer func() { os.Exit(code) }()
	for p, o := range map[**idtokentest.Provider]idtokentest.Options{
		&hub:     {Type: idtoken.GitHub},
		&fly:     {Type: idtoken.Fly},
		&cluster: {Type: idtoken.OIDC},
		&staff:   {Type: idtoken.People},
	} {
		s, err := idtokentest.New(o)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
		defer s.Close()
		*p = s
	}
	code = m.Run()
}

// head returns everything but rules: providers on loopback and three engines.
func head() string {
	return fmt.Sprintf(`version: 1
trust_domain: ci.example.com
providers:
  github: {type: github, issuer: "%s", unsafe_http: true}
  fly: {type: fly, issuer: "%s", unsafe_http: true}
  cluster: {type: oidc, issuer: "%s", unsafe_http: true}
  staff: {type: people, issuer: "%s", client_id: mayfly, unsafe_http: true}
engines:
  default: {endpoint: "tcp://engine.example.com:8080", server_name: engine.example.com}
  arm: {endpoint: "edge://arm.example.com:443", server_name: arm.example.com}
  prs: {endpoint: "tcp://[::1]:8080", server_name: prs.example.com}
`, hub.URL(), fly.URL(), cluster.URL(), staff.URL())
}

// ordinary has one rule of each kind.
const ordinary = `rules:
  - name: app-main
    provider: github
    match: {repository_owner_id: "285964", repository_id: "1339936803", ref: refs/heads/main, event_name: [push, workflow_dispatch]}
    grant: {profile: client, engines: [default, arm], ttl: 1h}
  - name: engine
    provider: fly
    match: {org_id: "11111111", app_id: "22222222"}
    grant: {profile: server, engines: [default], dns: [engine.example.com], ttl: 24h}
  - name: pods
    provider: cluster
    match: {sub: "system:serviceaccount:builds:runner"}
    grant: {profile: client, engines: [default], ttl: 30m}
  - name: admins
    provider: staff
    match: {email: [ops@example.com], email_verified: true}
    grant: {role: admin}
  - name: laptops
    provider: staff
    match: {email: [ops@example.com, dev@example.com], email_verified: true}
    grant: {profile: client, engines: [arm], ttl: 10m}
`

func parse(t testing.TB, text string) *policy.Set {
	t.Helper()
	s, err := policy.Parse([]byte(text), policy.Options{})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return s
}

// token mints a token of p for the set's audience and verifies it.
func token(t testing.TB, s *policy.Set, p *idtokentest.Provider, overrides claims) idtoken.Claims {
	t.Helper()
	return tokenFor(t, s, p, s.Audience(), overrides)
}

func tokenFor(t testing.TB, s *policy.Set, p *idtokentest.Provider, audience string, overrides claims) idtoken.Claims {
	t.Helper()
	v, err := idtoken.NewVerifier(s.Providers(), idtoken.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	c := claims{}
	if p != staff {
		c["aud"] = audience
	}
	maps.Copy(c, overrides)
	raw, err := p.Mint(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	got, err := v.Verify(ctx, raw, audience)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// wantDenied fails unless err is a *Denial of rule by claim.
func wantDenied(t testing.TB, err error, rule, claim string) *policy.Denial {
	t.Helper()
	var d *policy.Denial
	if !errors.As(err, &d) {
		t.Fatalf("got %v, want a denial by %s", err, claim)
	}
	if d.Rule != rule || d.Claim != claim {
		t.Errorf("denied by rule %q claim %q (%s), want rule %q claim %q", d.Rule, d.Claim, d.Got, rule, claim)
	}
	return d
}

var certificate = policy.Request{Want: policy.WantCertificate}

// githubRule returns a policy with one github rule.
func githubRule(match string) string {
	return head() + "rules:\n  - name: r\n    provider: github\n    match: {" + match + "}\n    grant: {profile: client, engines: [default], ttl: 1h}\n"
}

const ids = `repository_owner_id: "285964", repository_id: "1339936803"`

// TestClaimsOfAJob is ATTACKS 1, 3, 6-9, 11-14: a job's claims against the conditions
// of a rule.
func TestClaimsOfAJob(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		match  string // in addition to ids and event_name
		claims claims
		denied string // the claim; "" means admitted
	}{
		"1 as written":                          {`workflow: "CI (a|b) [x].+?"`, claims{"workflow": "CI (a|b) [x].+?"}, ""},
		"1 pattern characters match no more":    {`workflow: "CI (a|b) [x].+?"`, claims{"workflow": "CI a x"}, "workflow"},
		"1 a dot is a dot":                      {`workflow: "a.b"`, claims{"workflow": "axb"}, "workflow"},
		"1 an alternative":                      {`workflow: "a|b"`, claims{"workflow": "a"}, "workflow"},
		"3 one segment":                         {`ref: "refs/heads/*"`, claims{"ref": "refs/heads/main"}, ""},
		"3 two segments":                        {`ref: "refs/heads/*"`, claims{"ref": "refs/heads/a/b"}, "ref"},
		"3 no segment":                          {`ref: "refs/heads/*"`, claims{"ref": "refs/heads"}, "ref"},
		"3 an empty segment":                    {`ref: "refs/heads/*"`, claims{"ref": "refs/heads/"}, "ref"},
		"3 a newline within":                    {`ref: "refs/heads/*"`, claims{"ref": "refs/heads/a\nb"}, "ref"},
		"3 a line separator within":             {`ref: "refs/heads/*"`, claims{"ref": "refs/heads/a\u2028b"}, "ref"},
		"3 a newline after":                     {`ref: refs/heads/main`, claims{"ref": "refs/heads/main\n"}, "ref"},
		"3 a prefix":                            {`ref: "refs/heads/release-*"`, claims{"ref": "refs/heads/release-1.2"}, ""},
		"3 nothing after the prefix":            {`ref: "refs/heads/release-*"`, claims{"ref": "refs/heads/release-"}, ""},
		"3 another prefix":                      {`ref: "refs/heads/release-*"`, claims{"ref": "refs/heads/released"}, "ref"},
		"3 a prefix crossing":                   {`ref: "refs/heads/release-*"`, claims{"ref": "refs/heads/release-1/x"}, "ref"},
		"3 in the middle":                       {`ref: "refs/heads/*/stable"`, claims{"ref": "refs/heads/v1/stable"}, ""},
		"3 in the middle, crossing":             {`ref: "refs/heads/*/stable"`, claims{"ref": "refs/heads/v1/x/stable"}, "ref"},
		"3 a tag named like the branch":         {`ref: "refs/heads/*"`, claims{"ref": "refs/tags/main"}, "ref"},
		"6 the repository itself":               {`repository: andreaso/actions-tester`, nil, ""},
		"6 renamed and squatted":                {`repository: andreaso/actions-tester`, claims{"repository_id": "9"}, "repository_id"},
		"6 the owner too":                       {`repository: andreaso/actions-tester`, claims{"repository_id": "9", "repository_owner_id": "8"}, "repository_owner_id"},
		"6 renamed, ids decide":                 {``, claims{"repository": "new/name"}, ""},
		"7 the old sub":                         {``, claims{"sub": "repo:andreaso/actions-tester:ref:refs/heads/main"}, ""},
		"7 the immutable sub":                   {``, claims{"sub": "repo:andreaso@285964/actions-tester@1339936803:ref:refs/heads/main"}, ""},
		"7 a custom sub":                        {``, claims{"sub": "repository_owner:andreaso:repository_visibility:private"}, ""},
		"7 a custom sub of another repository":  {``, claims{"sub": "repo:andreaso/actions-tester:ref:refs/heads/main", "repository_id": "9"}, "repository_id"},
		"8 a list":                              {`environment: production`, claims{"environment": []any{"production"}}, "environment"},
		"8 a boolean":                           {`ref_protected: "true"`, claims{"ref_protected": true}, "ref_protected"},
		"8 a string":                            {`ref_protected: "true"`, claims{"ref_protected": "true"}, ""},
		"8 an object":                           {`environment: ""`, claims{"environment": claims{}}, "environment"},
		"9 missing":                             {`environment: production`, nil, "environment"},
		"9 empty is not missing":                {`head_ref: ""`, nil, ""},
		"9 missing is not empty":                {`environment: ""`, nil, "environment"},
		"11 head_ref and actor of the attacker": {`actor: andreaso`, claims{"actor": "andreaso", "head_ref": "main", "ref": "refs/heads/main", "repository_id": "9"}, "repository_id"},
		"12 the called workflow": {`job_workflow_ref: octo/templates/.github/workflows/build.yml@refs/tags/v1`,
			claims{"job_workflow_ref": "octo/templates/.github/workflows/build.yml@refs/tags/v1"}, ""},
		"12 the caller is not it": {`job_workflow_ref: octo/templates/.github/workflows/build.yml@refs/tags/v1`,
			claims{"workflow_ref": "octo/templates/.github/workflows/build.yml@refs/tags/v1", "job_workflow_ref": "andreaso/x/.github/workflows/y.yml@refs/heads/main"}, "job_workflow_ref"},
		"12 any version tag": {`job_workflow_ref: "octo/templates/.github/workflows/build.yml@refs/tags/v*"`,
			claims{"job_workflow_ref": "octo/templates/.github/workflows/build.yml@refs/tags/v1.2"}, ""},
		"12 a branch named like a tag": {`job_workflow_ref: "octo/templates/.github/workflows/build.yml@refs/tags/v*"`,
			claims{"job_workflow_ref": "octo/templates/.github/workflows/build.yml@refs/heads/v1.2"}, "job_workflow_ref"},
		"13 github-hosted":                {`runner_environment: github-hosted`, nil, ""},
		"13 self-hosted":                  {`runner_environment: github-hosted`, claims{"runner_environment": "self-hosted"}, "runner_environment"},
		"14 another case":                 {`ref: refs/heads/main`, claims{"ref": "refs/heads/Main"}, "ref"},
		"14 a letter that looks alike":    {`ref: refs/heads/main`, claims{"ref": "refs/heads/m\u0430in"}, "ref"},
		"14 composed":                     {"workflow: \"\u00e9\"", claims{"workflow": "\u00e9"}, ""},
		"14 decomposed":                   {"workflow: \"\u00e9\"", claims{"workflow": "e\u0301"}, "workflow"},
		"14 full width":                   {`ref: refs/heads/main`, claims{"ref": "refs/heads/\uff4dain"}, "ref"},
		"14 an invisible character":       {`ref: refs/heads/main`, claims{"ref": "refs/heads/main\u200b"}, "ref"},
		"a list of values, the second":    {`environment: [staging, production]`, claims{"environment": "production"}, ""},
		"a list of values, none":          {`environment: [staging, production]`, claims{"environment": "staging2"}, "environment"},
		"a custom property of the org":    {`repo_property_tier: gold`, claims{"repo_property_tier": "gold"}, ""},
		"another value of it":             {`repo_property_tier: gold`, claims{"repo_property_tier": "golden"}, "repo_property_tier"},
		"a star in the token is no more":  {`ref: refs/heads/main`, claims{"ref": "refs/heads/*"}, "ref"},
		"a star in the token is one byte": {`ref: "refs/heads/*"`, claims{"ref": "refs/heads/*"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			match := ids + ", event_name: push"
			if tc.match != "" {
				match += ", " + tc.match
			}
			s := parse(t, githubRule(match))
			d, err := s.Decide(token(t, s, hub, tc.claims), certificate)
			if tc.denied != "" {
				wantDenied(t, err, "r", tc.denied)
				if !d.IsZero() || !d.Grant.IsZero() {
					t.Error("a decision beside a denial")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d.Rule != "r" || d.Grant.IsZero() {
				t.Errorf("decision %+v", d)
			}
		})
	}
}

// TestEvents is ATTACKS 10.
func TestEvents(t *testing.T) {
	t.Parallel()
	s := parse(t, githubRule(ids+", event_name: [push, pull_request]"))
	for _, event := range []string{"push", "pull_request"} {
		if _, err := s.Decide(token(t, s, hub, claims{"event_name": event}), certificate); err != nil {
			t.Errorf("%s: %v", event, err)
		}
	}
	privileged := []string{"pull_request_target", "workflow_run", "issue_comment", "repository_dispatch", "discussion", "check_run", "label"}
	for _, event := range privileged {
		_, err := s.Decide(token(t, s, hub, claims{"event_name": event}), certificate)
		wantDenied(t, err, "r", "event_name")
		text := githubRule(ids + ", event_name: [push, " + event + "]")
		if _, err := policy.Parse([]byte(text), policy.Options{}); err == nil || !strings.Contains(err.Error(), "unsafe_allow_privileged_events") {
			t.Errorf("%s: got %v", event, err)
		}
		said := parse(t, strings.Replace(text, "    grant:", "    unsafe_allow_privileged_events: true\n    grant:", 1))
		if _, err := said.Decide(token(t, said, hub, claims{"event_name": event}), certificate); err != nil {
			t.Errorf("%s, listed: %v", event, err)
		}
	}
}

// TestMachines is ATTACKS 44.
func TestMachines(t *testing.T) {
	t.Parallel()
	s := parse(t, head()+ordinary)
	if _, err := s.Decide(token(t, s, fly, nil), certificate); err != nil {
		t.Fatal(err)
	}
	_, err := s.Decide(token(t, s, fly, claims{"org_id": "9"}), certificate)
	wantDenied(t, err, "engine", "org_id")
	_, err = s.Decide(token(t, s, fly, claims{"app_id": "9"}), certificate)
	wantDenied(t, err, "engine", "app_id")
	_, err = s.Decide(token(t, s, fly, claims{"app_id": "9", "app_name": "example-app", "sub": "example-org:example-app:example-machine"}), certificate)
	wantDenied(t, err, "engine", "app_id")
}

// TestPeopleAndMachines is ATTACKS 48 and 58: roles are for people.
func TestPeopleAndMachines(t *testing.T) {
	t.Parallel()
	s := parse(t, head()+ordinary)
	role := policy.Request{Want: policy.WantRole}
	d, err := s.Decide(token(t, s, staff, nil), role)
	if err != nil || d.Role != policy.Admin || d.Rule != "admins" || !d.Grant.IsZero() || len(d.Engines) != 0 {
		t.Errorf("an admin: %+v, %v", d, err)
	}
	for _, p := range []*idtokentest.Provider{hub, fly, cluster} {
		_, err := s.Decide(token(t, s, p, claims{"email": "ops@example.com", "email_verified": true}), role)
		wantDenied(t, err, "", "")
	}
	_, err = s.Decide(token(t, s, staff, claims{"email": "dev@example.com"}), role)
	wantDenied(t, err, "admins", "email")
	_, err = s.Decide(token(t, s, staff, claims{"email_verified": false}), role)
	wantDenied(t, err, "admins", "email_verified")
	_, err = s.Decide(token(t, s, staff, claims{"email_verified": "true"}), role)
	wantDenied(t, err, "admins", "email_verified")
	// A laptop gets a certificate by its own rule and not by the admins'.
	d, err = s.Decide(token(t, s, staff, claims{"email": "dev@example.com"}), certificate)
	if err != nil || d.Rule != "laptops" || d.Role != "" || d.Grant.Params().Token.SingleUse {
		t.Errorf("a laptop: %+v, %v", d, err)
	}
	_, err = s.Decide(token(t, s, staff, nil), policy.Request{Want: policy.WantSessions})
	wantDenied(t, err, "", "")
}

// TestRoleAge checks that a role requires a token of the last hour. A login has its
// own end.
func TestRoleAge(t *testing.T) {
	t.Parallel()
	s := parse(t, head()+ordinary)
	aged := func(age time.Duration) idtoken.Claims {
		iat := time.Now().Add(-age).Unix()
		return token(t, s, staff, claims{"iat": iat, "exp": iat + 86400})
	}
	role := policy.Request{Want: policy.WantRole}
	if _, err := s.Decide(aged(59*time.Minute), role); err != nil {
		t.Error(err)
	}
	old := aged(62 * time.Minute)
	_, err := s.Decide(old, role)
	var refused *idtoken.TokenError
	if !errors.As(err, &refused) {
		t.Errorf("got %v, want a *TokenError", err)
	}
	if _, err := s.Decide(old, certificate); err != nil {
		t.Errorf("a certificate: %v", err)
	}
	v, err := idtoken.NewVerifier(s.Providers(), idtoken.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	login, err := v.Restore("staff", old.JSON())
	if err != nil {
		t.Fatal(err)
	}
	if d, err := s.Decide(login, role); err != nil || d.Role != policy.Admin {
		t.Errorf("a login: %+v, %v", d, err)
	}
	if _, err := s.Decide(login, certificate); !errors.Is(err, policy.ErrUnverified) {
		t.Errorf("a certificate for a login: %v", err)
	}
}

// TestUnacceptableClaims checks that Decide accepts only claims that a Verifier made
// for this request.
func TestUnacceptableClaims(t *testing.T) {
	t.Parallel()
	s := parse(t, head()+ordinary)
	good := token(t, s, hub, nil)
	if _, err := s.Decide(good, certificate); err != nil {
		t.Fatal(err)
	}
	recorded, err := idtoken.ParseClaims(good.Provider(), good.JSON())
	if err != nil {
		t.Fatal(err)
	}
	sessions := tokenFor(t, s, fly, s.SessionsAudience(), nil)
	other := parse(t, strings.Replace(head()+ordinary, "github: {type: github,", "github: {type: github, server_url: \"https://git.example.com\",", 1))
	elsewhere := parse(t, strings.Replace(head()+ordinary, "trust_domain: ci", "trust_domain: other", 1))
	renamed := parse(t, strings.NewReplacer("\n  github: ", "\n  hub: ", "provider: github", "provider: hub").Replace(head()+ordinary))
	for name, tc := range map[string]struct {
		set     *policy.Set
		claims  idtoken.Claims
		request policy.Request
		want    error
	}{
		"zero":                        {s, idtoken.Claims{}, certificate, policy.ErrUnverified},
		"recorded":                    {s, recorded, certificate, policy.ErrUnverified},
		"recorded, for a role":        {s, recorded, policy.Request{Want: policy.WantRole}, policy.ErrUnverified},
		"sessions, for a certificate": {s, sessions, certificate, policy.ErrAudience},
		"certificate, for sessions":   {s, token(t, s, fly, nil), policy.Request{Want: policy.WantSessions}, policy.ErrAudience},
		"another mayfly's":            {elsewhere, good, certificate, policy.ErrAudience},
		"another configuration":       {other, good, certificate, policy.ErrProvider},
		"a provider that is gone":     {renamed, good, certificate, policy.ErrProvider},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := tc.set.Decide(tc.claims, tc.request)
			if !errors.Is(err, tc.want) || !d.IsZero() {
				t.Errorf("got %+v, %v; want %v", d, err, tc.want)
			}
		})
	}
	if _, err := s.Decide(good, policy.Request{}); err == nil {
		t.Error("nothing was wanted, and decided")
	}
}

func TestSessions(t *testing.T) {
	t.Parallel()
	s := parse(t, head()+ordinary)
	d, err := s.Decide(tokenFor(t, s, fly, s.SessionsAudience(), nil), policy.Request{Want: policy.WantSessions})
	if err != nil {
		t.Fatal(err)
	}
	if !d.Grant.IsZero() || d.Identity.String() != "spiffe://ci.example.com/engine/default/fly/22222222/148e21ea7e46e8" ||
		len(d.Engines) != 1 || d.Engines[0].Name != "default" {
		t.Errorf("decision %+v", d)
	}
	_, err = s.Decide(tokenFor(t, s, fly, s.SessionsAudience(), claims{"app_id": "9"}), policy.Request{Want: policy.WantSessions})
	wantDenied(t, err, "engine", "app_id")
	// A client's rule does not admit reports.
	_, err = s.Decide(tokenFor(t, s, hub, s.SessionsAudience(), nil), policy.Request{Want: policy.WantSessions})
	wantDenied(t, err, "", "")
}

// TestEngines checks that a rule does not match if it does not grant the requested
// engine.
func TestEngines(t *testing.T) {
	t.Parallel()
	s := parse(t, head()+ordinary)
	c := token(t, s, hub, nil)
	names := func(engine string) []string {
		d, err := s.Decide(c, policy.Request{Want: policy.WantCertificate, Engine: engine})
		if err != nil {
			t.Fatal(err)
		}
		granted := d.Grant.Params().Identity.Grant.Engines
		if len(granted) != len(d.Engines) {
			t.Errorf("%d engines granted, %d told", len(granted), len(d.Engines))
		}
		return granted
	}
	if got := names(""); fmt.Sprint(got) != "[default arm]" {
		t.Errorf("none requested: %v", got)
	}
	if got := names("arm"); fmt.Sprint(got) != "[arm]" {
		t.Errorf("arm requested: %v", got)
	}
	for _, engine := range []string{"prs", "none", "default,arm", "*", " default"} {
		_, err := s.Decide(c, policy.Request{Want: policy.WantCertificate, Engine: engine})
		if d := wantDenied(t, err, "app-main", "engine"); d.Got != fmt.Sprintf("%q", engine) {
			t.Errorf("got %s", d.Got)
		}
	}
	// Another rule that grants the engine is tried too.
	two := parse(t, githubRule(ids+", event_name: push")+`  - {name: second, provider: github, match: {`+ids+`, event_name: push}, grant: {profile: client, engines: [prs], ttl: 1h}}`)
	d, err := two.Decide(token(t, two, hub, nil), policy.Request{Want: policy.WantCertificate, Engine: "prs"})
	if err != nil || d.Rule != "second" {
		t.Errorf("rule %q, %v", d.Rule, err)
	}
	d, err = two.Decide(token(t, two, hub, nil), certificate)
	if err != nil || d.Rule != "r" {
		t.Errorf("the first that fits: rule %q, %v", d.Rule, err)
	}
}

// TestNearestRule checks that a denial names the rule meant for the token.
func TestNearestRule(t *testing.T) {
	t.Parallel()
	rule := func(name, id, ref, events string) string {
		return fmt.Sprintf("  - {name: %s, provider: github, match: {repository_id: %q, ref: %s, event_name: %s}, grant: {profile: client, engines: [default], ttl: 1h}}\n", name, id, ref, events)
	}
	s := parse(t, head()+"rules:\n"+
		rule("other", "1", "refs/heads/dev", "pull_request")+
		rule("mine", "1339936803", "refs/heads/main", "push")+
		rule("mine-release", "1339936803", "refs/heads/release", "push"))
	for name, tc := range map[string]struct {
		claims      claims
		rule, claim string
	}{
		"my repository, all else the other's": {claims{"ref": "refs/heads/dev", "event_name": "pull_request"}, "mine", "ref"},
		"one miss before two":                 {claims{"ref": "refs/heads/release", "event_name": "schedule"}, "mine-release", "event_name"},
		"the first of equals":                 {claims{"ref": "refs/heads/x"}, "mine", "ref"},
		"nobody's repository":                 {claims{"repository_id": "7"}, "mine", "repository_id"},
		"nobody's, nearest by the rest":       {claims{"repository_id": "7", "ref": "refs/heads/dev", "event_name": "pull_request"}, "other", "repository_id"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Decide(token(t, s, hub, tc.claims), certificate)
			wantDenied(t, err, tc.rule, tc.claim)
		})
	}
}

// TestDenialTellsNoSecrets checks that a denial has the caller's value and never the
// rule's.
func TestDenialTellsNoSecrets(t *testing.T) {
	t.Parallel()
	s := parse(t, githubRule(ids+`, event_name: push, environment: [secret-plan, other-plan]`))
	_, err := s.Decide(token(t, s, hub, claims{"environment": "mine \"<b>"}), certificate)
	d := wantDenied(t, err, "r", "environment")
	if strings.Contains(err.Error(), "plan") || strings.Contains(d.Got, "plan") || d.Got != `"mine \"<b>"` {
		t.Errorf("got %s: %v", d.Got, err)
	}
	_, err = s.Decide(token(t, s, hub, nil), certificate)
	if d := wantDenied(t, err, "r", "environment"); d.Got != "" || !strings.Contains(d.Error(), "missing") {
		t.Errorf("missing: got %q: %v", d.Got, d)
	}
	_, err = s.Decide(token(t, s, hub, claims{"environment": strings.Repeat("é", 1000)}), certificate)
	if d := wantDenied(t, err, "r", "environment"); len(d.Got) > 260 || !strings.HasSuffix(d.Got, "é...") {
		t.Errorf("%d bytes: %s", len(d.Got), d.Got)
	}
	_, err = s.Decide(token(t, s, hub, claims{"environment": []any{"secret-plan"}}), certificate)
	if d := wantDenied(t, err, "r", "environment"); d.Got != `["secret-plan"]` {
		t.Errorf("a list: %s", d.Got)
	}
}
