package policy_test

import (
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	fulcio "github.com/sigstore/fulcio/pkg/certificate"

	"github.com/mayfly-ca/mayfly/ca/grant"
	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/issuer/idtokentest"
	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
)

func TestGrantOfAJob(t *testing.T) {
	t.Parallel()
	s := parse(t, head()+ordinary)
	c := token(t, s, hub, claims{"jti": "token-1", "sub": "custom", "environment": "production"})
	d, err := s.Decide(c, certificate)
	if err != nil {
		t.Fatal(err)
	}
	const repo = "https://github.com/andreaso/actions-tester"
	const workflow = repo + "/.github/workflows/ci.yml@refs/heads/main"
	const sha = "b8962f4e2a1c0d9e8f7a6b5c4d3e2f1a0b9c8d7e"
	want := grant.Params{
		Profile: grant.Client, TTL: time.Hour, Provider: "github",
		Identity: identity.Identity{
			CommonName: "github/andreaso/actions-tester",
			Grant:      identity.Scope{Engines: []string{"default", "arm"}, Rule: "app-main", Run: "32291736541/1/96193868770"},
			Workflow: identity.Workflow{
				Issuer: hub.URL(), BuildSignerURI: workflow, BuildSignerDigest: sha, RunnerEnvironment: "github-hosted",
				SourceRepositoryURI: repo, SourceRepositoryDigest: sha, SourceRepositoryRef: "refs/heads/main",
				SourceRepositoryID: "1339936803", SourceRepositoryOwnerURI: "https://github.com/andreaso", SourceRepositoryOwnerID: "285964",
				BuildConfigURI: workflow, BuildConfigDigest: sha, BuildTrigger: "push",
				RunInvocationURI:           repo + "/actions/runs/32291736541/attempts/1",
				SourceRepositoryVisibility: "private", DeploymentEnvironment: "production", Subject: "custom",
			},
		},
		Token: grant.Token{Issuer: hub.URL(), ID: "token-1", SingleUse: true, IssuedAt: c.IssuedAt(), ExpiresAt: c.ExpiresAt()},
		Subject: grant.Labels{
			Repository: "andreaso/actions-tester", RepositoryID: "1339936803", RunID: "32291736541", Actor: "andreaso",
		},
		Claims: c.JSON(),
	}
	got := d.Grant.Params()
	if id := got.Identity.ID.String(); id != "spiffe://ci.example.com/github/285964/1339936803" {
		t.Errorf("identity %s", id)
	}
	got.Identity.ID = want.Identity.ID
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(identity.Identity{}.ID)); diff != "" {
		t.Error(diff)
	}
	wantEngines := []policy.Engine{
		{Name: "default", Endpoint: "tcp://engine.example.com:8080", ServerName: "engine.example.com"},
		{Name: "arm", Endpoint: "edge://arm.example.com:443", ServerName: "arm.example.com"},
	}
	if diff := cmp.Diff(wantEngines, d.Engines); diff != "" {
		t.Error(diff)
	}
}

// TestFulcioReadsTheExtensions runs Fulcio's own parser on the leaf's extensions.
func TestFulcioReadsTheExtensions(t *testing.T) {
	t.Parallel()
	s := parse(t, strings.Replace(head()+ordinary, "github: {type: github,", `github: {type: github, server_url: "https://octocorp.ghe.com",`, 1))
	decide := func(overrides claims) fulcio.Extensions {
		d, err := s.Decide(token(t, s, hub, overrides), certificate)
		if err != nil {
			t.Fatal(err)
		}
		var leaf x509.Certificate
		if err := identity.Embed(d.Grant.Params().Identity, &leaf); err != nil {
			t.Fatal(err)
		}
		got, err := fulcio.ParseExtensions(leaf.ExtraExtensions)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	got := decide(nil)
	if got.SourceRepositoryURI != "https://octocorp.ghe.com/andreaso/actions-tester" || got.Issuer != hub.URL() ||
		got.RunInvocationURI != "https://octocorp.ghe.com/andreaso/actions-tester/actions/runs/32291736541/attempts/1" {
		t.Errorf("%+v", got)
	}
	// Missing, empty and wrongly typed claims leave no extension and no URI.
	got = decide(claims{"repository": nil, "sha": "", "job_workflow_ref": nil, "run_attempt": nil, "workflow_sha": 7, "environment": ""})
	if got.SourceRepositoryURI+got.SourceRepositoryDigest+got.BuildSignerURI+got.RunInvocationURI+got.BuildConfigDigest+got.DeploymentEnvironment != "" {
		t.Errorf("%+v", got)
	}
}

func TestGrantOfAMachine(t *testing.T) {
	t.Parallel()
	s := parse(t, head()+ordinary)
	d, err := s.Decide(token(t, s, fly, nil), certificate)
	if err != nil {
		t.Fatal(err)
	}
	p := d.Grant.Params()
	got := []any{p.Profile, p.TTL, p.DNSNames, p.Identity.ID.String(), p.Identity.CommonName, p.Identity.Grant.Run, p.Identity.Workflow, p.Token.SingleUse, p.Subject}
	want := []any{grant.Server, 24 * time.Hour, []string{"engine.example.com"},
		"spiffe://ci.example.com/engine/default/fly/22222222/148e21ea7e46e8", "default", "", identity.Workflow{}, true, grant.Labels{}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestGrantOfAPodAndAPerson(t *testing.T) {
	t.Parallel()
	s := parse(t, head()+ordinary)
	for _, tc := range []struct {
		name, id, cn, run, actor string
		ttl                      time.Duration
		p                        *idtokentest.Provider
	}{
		{"a pod", "spiffe://ci.example.com/cluster/system_3Aserviceaccount_3Abuilds_3Arunner",
			"cluster/system:serviceaccount:builds:runner", "system:serviceaccount:builds:runner", "", 30 * time.Minute, cluster},
		{"a person", "spiffe://ci.example.com/staff/person-ops_40example.com",
			"staff/person-ops@example.com", "person-ops@example.com", "ops@example.com", 10 * time.Minute, staff},
	} {
		d, err := s.Decide(token(t, s, tc.p, nil), certificate)
		if err != nil {
			t.Fatal(err)
		}
		p := d.Grant.Params()
		got := []any{p.Identity.ID.String(), p.Identity.CommonName, p.Identity.Grant.Run, p.Subject.Actor, p.TTL, p.Token.SingleUse}
		if diff := cmp.Diff([]any{tc.id, tc.cn, tc.run, tc.actor, tc.ttl, false}, got); diff != "" {
			t.Errorf("%s: %s", tc.name, diff)
		}
	}
}

// TestClaimsOfTheIdentity checks that a matching token is denied if its identity
// cannot be made.
func TestClaimsOfTheIdentity(t *testing.T) {
	t.Parallel()
	owner := strings.Replace(githubRule(`repository_owner_id: "285964", event_name: push`), "    grant:", "    all_repositories: true\n    grant:", 1)
	s := parse(t, owner)
	if d, err := s.Decide(token(t, s, hub, claims{"repository_id": "7", "repository": "andreaso/other"}), certificate); err != nil || d.Identity.Path() != "/github/285964/7" {
		t.Errorf("another repository of the owner: %v, %v", d.Identity, err)
	}
	_, err := s.Decide(token(t, s, hub, claims{"repository_id": nil}), certificate)
	wantDenied(t, err, "r", "repository_id")
	_, err = s.Decide(token(t, s, hub, claims{"repository_id": ""}), certificate)
	wantDenied(t, err, "r", "repository_id")
	_, err = s.Decide(token(t, s, hub, claims{"repository_id": 7}), certificate)
	wantDenied(t, err, "r", "repository_id")
	_, err = s.Decide(token(t, s, hub, claims{"repository_id": strings.Repeat("7", 4000), "sub": "short"}), certificate)
	wantDenied(t, err, "r", "repository_id")
	_, err = s.Decide(token(t, s, hub, claims{"workflow_ref": strings.Repeat("x", 4000), "job_workflow_ref": "short"}), certificate)
	wantDenied(t, err, "r", "workflow_ref")
	_, err = s.Decide(token(t, s, hub, claims{"runner_environment": strings.Repeat("x", 2100), "a stranger's": strings.Repeat("x", 2200)}), certificate)
	wantDenied(t, err, "r", "runner_environment") // the claim of the denial is also a metric's label

	all := parse(t, head()+ordinary)
	_, err = all.Decide(token(t, all, fly, claims{"machine_id": nil}), certificate)
	wantDenied(t, err, "engine", "machine_id")
}

// TestRunOfAnOldServer checks GitHub Enterprise Server, which has no check_run_id, and
// a token without a run, which holds no relays.
func TestRunOfAnOldServer(t *testing.T) {
	t.Parallel()
	s := parse(t, head()+ordinary)
	for want, overrides := range map[string]claims{
		"5/2/":  {"run_id": "5", "run_attempt": "2", "check_run_id": nil},
		"5/2/9": {"run_id": "5", "run_attempt": "2", "check_run_id": "9"},
		"":      {"run_id": nil},
	} {
		d, err := s.Decide(token(t, s, hub, overrides), certificate)
		if err != nil || d.Grant.Params().Identity.Grant.Run != want {
			t.Errorf("run %q, %v; want %q", d.Grant.Params().Identity.Grant.Run, err, want)
		}
	}
}

// TestSubjectsDoNotMeet checks that two subjects never share an identity.
func TestSubjectsDoNotMeet(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, sub := range []string{"a/b", "a_2Fb", "a:b", "a_b", "A", "a", ".", "..", "a b", "a%20b", "é"} {
		s := parse(t, head()+fmt.Sprintf("rules:\n  - {name: r, provider: cluster, match: {sub: %q}, grant: {profile: client, engines: [default], ttl: 1h}}\n", sub))
		d, err := s.Decide(token(t, s, cluster, claims{"sub": sub}), certificate)
		if err != nil {
			t.Fatal(err)
		}
		id := d.Identity.String()
		if other, ok := seen[id]; ok {
			t.Errorf("%q and %q are both %s", sub, other, id)
		}
		seen[id] = sub
	}
}
