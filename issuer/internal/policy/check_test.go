package policy_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rhysd/actionlint"

	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
)

// checked is a file without findings, to which the tests add rules.
const checked = `version: 1
trust_domain: ci.example.com
providers:
  github: {type: github, issuer: https://token.actions.githubusercontent.com}
  fly: {type: fly, issuer: https://oidc.fly.io/example-org}
  gitlab: {type: oidc, issuer: https://gitlab.com}
  staff: {type: people, issuer: https://accounts.example.com, client_id: mayfly}
engines:
  default: {endpoint: "tcp://default.example.com:8080", server_name: default.example.com}
  prs: {endpoint: "tcp://prs.example.com:8080", server_name: prs.example.com}
rules:
  - {name: s1, provider: fly, match: {org_id: "1", app_id: "2"}, grant: {profile: server, engines: [default], dns: [default.example.com], ttl: 24h}}
  - {name: s2, provider: fly, match: {org_id: "1", app_id: "3"}, grant: {profile: server, engines: [prs], dns: [prs.example.com], ttl: 24h}}
`

// job returns a rule of a github provider with more conditions.
func job(match string) string { return jobOn("default", "r", match) }

func jobOn(engine, name, match string) string {
	return fmt.Sprintf("  - {name: %s, provider: github, match: {repository_id: \"1\", %s}, grant: {profile: client, engines: [%s], ttl: 1h}}\n", name, match, engine)
}

func found(t *testing.T, text string) []string {
	t.Helper()
	var out []string
	for _, f := range parse(t, text).Findings() {
		out = append(out, fmt.Sprintf("%s %s:%d: %s", f.Severity, f.Place.File, f.Place.Line, f))
		line := strings.Split(text, "\n")[f.Place.Line-1]
		written := line[f.Place.Column-1:]
		if _, after, ok := strings.Cut(f.String(), "\""); ok && strings.Contains(f.String(), "never matches") {
			wanted, _, _ := strings.Cut(after, "\"")
			if !strings.HasPrefix(strings.Trim(written, "\"["), wanted) {
				t.Errorf("%s: at %q", f, written)
			}
		}
		if _, after, ok := strings.Cut(f.String(), "claim "); ok && !strings.HasPrefix(after, strings.SplitN(written, ":", 2)[0]+" ") {
			t.Errorf("%s: at %q", f, written)
		}
	}
	return out
}

// TestFindings checks each finding, and the correct value next to it.
func TestFindings(t *testing.T) {
	t.Parallel()
	const at = "error policy.yaml:14: "
	privileged := func(events string) string {
		return strings.Replace(jobOn("default", "r", "event_name: "+events), "match:", "unsafe_allow_privileged_events: true, match:", 1)
	}
	of := func(provider, match string) string {
		grant := "{profile: client, engines: [default], ttl: 1h}"
		return fmt.Sprintf("  - {name: r, provider: %s, match: {%s}, grant: %s}\n", provider, match, grant)
	}
	const danger = "warning policy.yaml:14: rule r: unsafe_allow_privileged_events: such a run may build what a stranger wrote, under the base branch's name"
	for name, tc := range map[string]struct {
		rules string
		want  []string
	}{
		"nothing":                     {"", nil},
		"a branch":                    {job("event_name: push, ref: refs/heads/main"), nil},
		"a branch by name":            {job("event_name: push, ref: main"), []string{at + `rule r: ref "main" never matches: ref is "refs/heads/main" for a branch, "refs/tags/main" for a tag`}},
		"a branch by half its ref":    {job("event_name: push, ref: [refs/heads/a, heads/b]"), []string{at + `rule r: ref "heads/b" never matches: ref begins with refs/: write "refs/heads/b"`}},
		"branches":                    {job(`event_name: push, ref: "refs/heads/release-*"`), nil},
		"any ref of two segments":     {job(`event_name: push, ref: "refs/*/main"`), nil},
		"branches by name":            {job(`event_name: push, ref: "release-*"`), []string{at + `rule r: ref "release-*" never matches: ref is "refs/heads/release-*" for a branch, "refs/tags/release-*" for a tag`}},
		"a base by name":              {job("event_name: push, base_ref: main"), nil},
		"a base by ref":               {job("event_name: push, base_ref: refs/heads/main"), []string{at + `rule r: base_ref "refs/heads/main" never matches: base_ref is a branch's bare name: write "main"`}},
		"a claim":                     {job("event_name: push, environment: prod"), nil},
		"a claim mistyped":            {job("event_name: push, enviroment: prod"), []string{at + `rule r: claim enviroment is not in tokens of type github; did you mean environment?`}},
		"a claim of nowhere":          {job("event_name: push, xyzzy: prod"), []string{at + `rule r: claim xyzzy is not in tokens of type github; mayfly does not know it; check the spelling in a token`}},
		"a custom property":           {job("event_name: push, repo_property_team: build"), nil},
		"a custom property, unnamed":  {job("event_name: push, repo_property_: build"), []string{at + `rule r: claim repo_property_ is not in tokens of type github; mayfly does not know it; check the spelling in a token`}},
		"a repository":                {job("event_name: push, repository: o/r"), nil},
		"a repository without owner":  {job("event_name: push, repository: r"), []string{at + `rule r: repository "r" never matches: repository is written OWNER/NAME`}},
		"an actor's id":               {job(`event_name: push, actor_id: "7"`), nil},
		"an actor's name as id":       {job(`event_name: push, actor_id: me`), []string{at + `rule r: actor_id "me" never matches: actor_id is an id of digits`}},
		"a commit":                    {job("event_name: push, sha: " + strings.Repeat("a1", 20)), nil},
		"half a commit":               {job("event_name: push, sha: a1a1a1a"), []string{at + `rule r: sha "a1a1a1a" never matches: sha is a commit of 40 lower-case hex digits`}},
		"a visibility":                {job("event_name: push, repository_visibility: private"), nil},
		"another visibility":          {job("event_name: push, repository_visibility: secret"), []string{at + `rule r: repository_visibility "secret" never matches: repository_visibility is one of public, private, internal`}},
		"a runner":                    {job("event_name: push, runner_environment: github-hosted"), nil},
		"a runner mistyped":           {job("event_name: push, runner_environment: github_hosted"), []string{at + `rule r: runner_environment "github_hosted" never matches: runner_environment does not have this value; did you mean "github-hosted"?`}},
		"a workflow":                  {job("event_name: push, workflow_ref: o/r/.github/workflows/a.yml@refs/heads/main"), nil},
		"a workflow at a name":        {job("event_name: push, workflow_ref: o/r/.github/workflows/a.yml@main"), []string{at + `rule r: workflow_ref "o/r/.github/workflows/a.yml@main" never matches: workflow_ref is written OWNER/NAME/.github/workflows/FILE@refs/heads/BRANCH`}},
		"a workflow without ref":      {job("event_name: push, job_workflow_ref: o/r/.github/workflows/a.yml"), []string{at + `rule r: job_workflow_ref "o/r/.github/workflows/a.yml" never matches: job_workflow_ref is written OWNER/NAME/.github/workflows/FILE@refs/heads/BRANCH`}},
		"a called workflow at commit": {job("event_name: push, job_workflow_ref: o/r/.github/workflows/a.yml@" + strings.Repeat("0", 40)), nil},
		"a called workflow, any tag":  {job(`event_name: push, job_workflow_ref: "o/r/.github/workflows/a.yml@refs/tags/v*"`), nil},
		"any workflow of a ref":       {job(`event_name: push, job_workflow_ref: "o/r/.github/workflows/*/heads/main"`), nil},
		"a file's name alone":         {job("event_name: push, workflow_ref: a.yml@refs/heads/main"), []string{at + `rule r: workflow_ref "a.yml@refs/heads/main" never matches: workflow_ref is written OWNER/NAME/.github/workflows/FILE@refs/heads/BRANCH`}},

		"an event of strangers":      {privileged("issue_comment"), []string{danger}},
		"an event that is not there": {privileged("isue_comment"), []string{danger, at + `rule r: event_name "isue_comment" never matches: event_name does not have this value; did you mean "issue_comment"?`}},
		"the event of a call":        {privileged("workflow_call"), []string{danger, at + `rule r: event_name "workflow_call" never matches: event_name is never workflow_call: a called workflow has its caller's event`}},

		"pull requests":               {jobOn("prs", "r", `event_name: pull_request, ref: "refs/pull/*/merge"`), nil},
		"pull requests of a branch":   {jobOn("prs", "r", `event_name: pull_request, ref: refs/heads/main`), []string{at + `rule r: event_name "pull_request" never matches: the ref of such a run begins with refs/pull/, and the rule's ref does not`}},
		"merges of a branch":          {job(`event_name: [push, merge_group], ref: refs/heads/main`), []string{"warning policy.yaml:14: rule r: event_name \"merge_group\" never matches: the ref of such a run begins with refs/heads/gh-readonly-queue/, and the rule's ref does not"}},
		"merges of any branch":        {job(`event_name: [push, merge_group], ref: ["refs/heads/main", "refs/heads/gh-readonly-queue/main/*"]`), nil},
		"releases":                    {job(`event_name: release, ref: "refs/tags/v*"`), nil},
		"pull requests on one engine": {job("event_name: [push, pull_request]"), []string{"warning policy.yaml:9: rules r (pull requests) and r (branches) share engine default: a pull request's build can poison the cache that the branch builds from; give pull requests an engine of their own"}},
		"pull requests of their own":  {jobOn("prs", "r", "event_name: pull_request") + jobOn("default", "m", "event_name: push"), nil},

		"a machine":                  {of("fly", `org_id: "1", app_id: "2", region: ams`), nil},
		"a machine mistyped":         {of("fly", `org_id: "1", app_id: "2", regoin: ams`), []string{at + `rule r: claim regoin is not in tokens of type fly; did you mean region?`}},
		"a machine's org by name":    {of("fly", `org_id: example-org, app_id: "2"`), []string{at + `rule r: org_id "example-org" never matches: org_id is an id of digits`}},
		"a person":                   {of("staff", "sub: a, hd: example.com"), nil},
		"a person mistyped":          {of("staff", "sub: a, hda: example.com"), []string{at + `rule r: claim hda is not in tokens of type people; did you mean hd?`}},
		"a person's group":           {of("staff", "sub: a, groups: ops"), []string{at + `rule r: groups "ops" never matches: groups is a list or an object in tokens, and a rule compares single values only`}},
		"a person's own claim":       {of("staff", `sub: a, "https://example.com/team": ops`), nil},
		"a boolean as text":          {of("staff", `sub: a, phone_number_verified: "true"`), []string{at + `rule r: phone_number_verified "true" never matches: phone_number_verified is true or false in tokens, without quotes`}},
		"a project":                  {of("gitlab", `project_id: "1", ref: main, ref_type: branch`), nil},
		"a project's ref":            {of("gitlab", `project_id: "1", ref: refs/heads/main`), []string{"warning policy.yaml:14: rule r: ref \"refs/heads/main\" never matches: GitLab's ref is the bare name; match ref_path, or write the name with ref_type"}},
		"a project mistyped":         {of("gitlab", `project_id: "1", ref_typ: branch`), []string{"warning policy.yaml:14: rule r: claim ref_typ is not in tokens of type oidc; did you mean ref_type?"}},
		"a pod's account, as object": {of("gitlab", `sub: a, kubernetes.io: ci`), []string{"warning policy.yaml:14: rule r: kubernetes.io \"ci\" never matches: kubernetes.io is a list or an object in tokens, and a rule compares single values only"}},
	} {
		if diff := cmp.Diff(tc.want, found(t, checked+tc.rules)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestFindingsOfEngines(t *testing.T) {
	t.Parallel()
	const extra = "  extra: {endpoint: \"tcp://extra.example.com:8080\", server_name: extra.example.com}\nrules:\n"
	text := strings.Replace(checked, "rules:\n", extra, 1)
	if diff := cmp.Diff([]string{"warning policy.yaml:11: engine extra: no rule grants it; add one, or drop the engine"}, found(t, text)); diff != "" {
		t.Error(diff)
	}
	want := []string{"error policy.yaml:11: engine extra: no rule with profile: server grants it, so its sidecar gets no certificate and the clients of rule r reach nothing; add one"}
	if diff := cmp.Diff(want, found(t, text+jobOn("extra", "r", "event_name: push"))); diff != "" {
		t.Error(diff)
	}
	served := `  - {name: s3, provider: fly, match: {org_id: "1", app_id: "4"}, grant: {profile: server, engines: [extra], dns: [extra.example.com], ttl: 24h}}` + "\n"
	if got := found(t, text+served+jobOn("extra", "r", "event_name: push")); got != nil {
		t.Errorf("served: %q", got)
	}
	if got := found(t, head()+ordinary); len(got) < 4 || !strings.Contains(got[0], "unsafe_http: its keys come over plain http") {
		t.Errorf("stand-ins: %q", got)
	}
}

// TestFindingsAreBounded checks that a file with many faults does not fill the log.
func TestFindingsAreBounded(t *testing.T) {
	t.Parallel()
	var rules strings.Builder
	for i := range 2000 {
		rules.WriteString(jobOn("default", fmt.Sprintf("r%d", i), "event_name: push, ref: main, xyzzy: a"))
	}
	got := found(t, checked+rules.String())
	if len(got) != 101 || !strings.Contains(got[len(got)-1], "more than 100 findings") {
		t.Errorf("%d findings, the last %s", len(got), got[len(got)-1])
	}
}

// TestTrustDomain checks that the trust domain must be the CA's, if that is known.
func TestTrustDomain(t *testing.T) {
	t.Parallel()
	o := policy.Options{File: "p.yaml", TrustDomain: "ci.example.com"}
	if _, err := policy.Parse([]byte(checked), o); err != nil {
		t.Error(err)
	}
	o.TrustDomain = "ci.example.org"
	const want = "p.yaml:2:15: trust_domain is ci.example.com, the CA's is ci.example.org; write the CA's"
	if _, err := policy.Parse([]byte(checked), o); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// TestEventsOfGitHub checks that every event in GitHub's documentation is known,
// except workflow_call, which no token has.
func TestEventsOfGitHub(t *testing.T) {
	t.Parallel()
	if len(actionlint.AllWebhookTypes) < 30 {
		t.Fatalf("%d events", len(actionlint.AllWebhookTypes))
	}
	for event := range actionlint.AllWebhookTypes {
		rule := strings.Replace(job("event_name: "+event), "match:", "unsafe_allow_privileged_events: true, match:", 1)
		got := strings.Join(found(t, checked+rule), "\n")
		if strings.Contains(got, "never matches") != (event == "workflow_call") {
			t.Errorf("%s: %s", event, got)
		}
	}
}
