package cli_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// admins is a real issuer and an admin's environment.
type admins struct {
	*issuertest.Issuer
	s *stand
}

func newAdmins(t *testing.T) *admins {
	t.Helper()
	i := issuertest.Start(t, issuertest.Options{})
	home := t.TempDir()
	return &admins{i, &stand{tb: t, env: []string{
		"HOME=" + home, "XDG_CONFIG_HOME=" + filepath.Join(home, "config"), "PATH=" + os.Getenv("PATH"),
		"MAYFLY_ISSUER=" + i.URL, "MAYFLY_CA_FILE=" + i.CAFile, "MAYFLY_TRUST_ANCHOR=" + i.TrustAnchor,
		"MAYFLY_ADMIN_TOKEN=" + i.AdminToken(),
	}}}
}

func (a *admins) as(token string) *stand {
	return &stand{tb: a.s.tb, env: append(append([]string(nil), a.s.env...), "MAYFLY_ADMIN_TOKEN="+token)}
}

func (a *admins) issueFor(t *testing.T, claims map[string]any) string {
	t.Helper()
	r, err := a.Issue(a.GitHubToken(claims))
	if err != nil {
		t.Fatal(err)
	}
	return r.Serial
}

func TestAdminFindsAndRevokes(t *testing.T) {
	t.Parallel()
	a := newAdmins(t)
	serials := map[string]string{}
	for _, run := range []string{"1001", "1002", "1003"} {
		serials[run] = a.issueFor(t, map[string]any{"run_id": run, "repository": "acme/app", "actor": "ann"})
	}
	o := a.s.run("certs", "list", "--run-id", "1002")
	o.check(t, 0)
	if !strings.Contains(o.stdout, serials["1002"]) || strings.Contains(o.stdout, serials["1001"]) {
		t.Errorf("list:\n%s", o.stdout)
	}
	o = a.s.run("--json", "certs", "list", "--repository", "acme/app", "--limit", "2")
	var page wire.List[wire.Certificate]
	if err := json.Unmarshal([]byte(o.stdout), &page); err != nil || len(page.Items) != 2 || page.NextCursor == "" {
		t.Errorf("%v: %s", err, o.stdout)
	}
	o = a.s.run("certs", "show", serials["1001"][:10])
	o.check(t, 0)
	for _, want := range []string{serials["1001"], "acme/app", "app-main", "Claims", "event_name", "push"} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("show lacks %q:\n%s", want, o.stdout)
		}
	}
	a.s.run("certs", "show", "--pem", serials["1001"]).check(t, 1, "without its signature", "--json")
	if o = a.s.run("--json", "certs", "show", serials["1001"]); !strings.Contains(o.stdout, `"tbs":"MII`) {
		t.Errorf("show as JSON:\n%s", o.stdout)
	}

	// Without a terminal there is no question, so nothing is revoked.
	a.s.run("certs", "revoke", serials["1001"]).check(t, 2, "--yes")
	a.s.run("certs", "revoke", "run-1001").check(t, 2, `"run-1001" is not a serial`)
	o = a.s.run("certs", "revoke", serials["1001"][:12]+"…", "--dry-run") // as a narrow table shows it
	o.check(t, 0, "would revoke 1 certificate")
	if strings.Contains(a.s.run("certs", "list", "--status", "revoked").stdout, serials["1001"]) {
		t.Error("a dry run revoked")
	}
	o = a.s.run("certs", "revoke", serials["1001"][:12], "--reason", "leaked", "--yes")
	o.check(t, 0)
	if !strings.Contains(o.stdout, "revoked "+serials["1001"]) || !regexp.MustCompile(`(?m)^crl_number \d+$`).MatchString(o.stdout) {
		t.Errorf("revoke:\n%s", o.stdout)
	}
	o = a.s.run("certs", "show", serials["1001"])
	if !strings.Contains(o.stdout, "leaked") || !strings.Contains(o.stdout, "revoked") {
		t.Errorf("show:\n%s", o.stdout)
	}
	o = a.s.run("certs", "revoke", "--run-id", "1002", "--block", "none", "--yes", "--json")
	var done wire.RevokeResponse
	if err := json.Unmarshal([]byte(o.stdout), &done); err != nil || len(done.Revoked) != 1 || done.Revoked[0] != serials["1002"] || len(done.BlockIDs) != 0 {
		t.Errorf("%v: %s", err, o.stdout)
	}
}

// When an engine's own certificate is revoked, a script gets both the announcement
// and the result.
func TestRevokeOfAnEngine(t *testing.T) {
	t.Parallel()
	a := newAdmins(t)
	engine, err := a.Issue(a.FlyToken(nil))
	if err != nil {
		t.Fatal(err)
	}
	const blocked = "Engines lose their own certificates and admit no build until 20"
	a.s.run("certs", "revoke", engine.Serial).check(t, 2, "--yes", "--dry-run")
	a.s.run("certs", "revoke", engine.Serial, "--dry-run").check(t, 0, blocked, "/engine/default/")
	a.s.run("certs", "revoke", engine.Serial, "--dry-run", "--block", "none").check(t, 0, "get other certificates at once")
	if _, err := a.Issue(a.FlyToken(nil)); err != nil {
		t.Fatalf("a question blocked it: %v", err)
	}
	a.s.run("certs", "revoke", engine.Serial, "--yes", "--reason", "taken over").check(t, 0, "mayfly: warning: "+blocked, "mayfly blocks remove")
	if _, err := a.Issue(a.FlyToken(nil)); err == nil {
		t.Error("the blocked engine got another certificate")
	}
}

// "nobody is connected" appears only if all engines report.
func TestSessionsOfEnginesThatReport(t *testing.T) {
	t.Parallel()
	a := newAdmins(t)
	o := a.s.run("sessions")
	o.check(t, 0, "mayfly: warning: engine default has never reported: who is connected there is not known", "token from a file", "no engine that reports has a connection")
	if strings.Contains(o.stderr, "nobody is connected") {
		t.Errorf("nothing is known, and:\n%s", o.stderr)
	}
	a.s.run("sessions", "--json").check(t, 0, "engine default has never reported")
	status := wire.SidecarStatus{State: wire.SidecarListening, Version: "v1", EngineSocket: wire.SocketOK, CertificateNotAfter: time.Now().Add(time.Hour)}
	if err := a.Call("POST", wire.PathSessions, a.SessionsToken(nil), wire.SessionsRequest{Status: &status}, nil); err != nil {
		t.Fatal(err)
	}
	o = a.s.run("sessions")
	o.check(t, 0, "nobody is connected")
	if strings.Contains(o.stderr, "warning") {
		t.Errorf("it reports, and:\n%s", o.stderr)
	}
	a.s.run("sessions", "--all").check(t, 0, "no session is recorded")
	a.s.run("sessions", "--cut", "--since", "24h").check(t, 0, "no engine cut a session")

	// Silent engines, as an issuer lists them.
	now := time.Now().UTC()
	s := newStand(t)
	s.env = append(s.env, "MAYFLY_ADMIN_TOKEN=x")
	s.set(func() {
		s.api = func(w http.ResponseWriter, r *http.Request) bool {
			switch r.URL.Path {
			case wire.PathSessions:
				return answer(200, "application/json", `{"items":[],"next_cursor":""}`)(w, r)
			case wire.PathEngines:
				body, err := json.Marshal(wire.List[wire.EngineStatus]{Items: []wire.EngineStatus{
					{Name: "awake", State: wire.EngineAwake, Machines: []wire.MachineStatus{
						{Machine: "spiffe://x/one", State: wire.EngineAwake, SeenAt: now, CertificateNotAfter: now.Add(time.Hour)},
						{Machine: "spiffe://x/two", State: wire.EngineSilent, SeenAt: now.Add(-time.Hour), CertificateNotAfter: now.Add(time.Hour)},
						{Machine: "spiffe://x/gone", State: wire.EngineSilent, SeenAt: now.Add(-time.Hour), CertificateNotAfter: now.Add(-time.Minute)},
					}},
					{Name: "asleep", State: wire.EngineAsleep, Machines: []wire.MachineStatus{{Machine: "spiffe://x/three", State: wire.EngineAsleep, SeenAt: now.Add(-time.Hour), CertificateNotAfter: now.Add(time.Hour)}}},
				}})
				if err != nil {
					t.Error(err)
				}
				return answer(200, "application/json", string(body))(w, r)
			}
			return false
		}
	})
	o = s.run("sessions")
	o.check(t, 0, "engine awake has not reported since", "spiffe://x/two")
	if strings.Contains(o.stderr, "spiffe://x/gone") || strings.Contains(o.stderr, "asleep") || strings.Contains(o.stderr, "spiffe://x/one") {
		t.Errorf("engines that admit nobody, or that report, are named:\n%s", o.stderr)
	}
	s.run("sessions", "--engine", "asleep").check(t, 0, "nobody is connected")

	// An issuer without reports of its engines.
	s.set(func() {
		s.api = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == wire.PathSessions {
				return answer(200, "application/json", `{"items":[],"next_cursor":""}`)(w, r)
			}
			return r.URL.Path == wire.PathEngines && problem(wire.ProblemNotFound, "no such path")(w, r)
		}
	})
	s.run("sessions").check(t, 0, "nobody is connected")
}

// TestAdminEngines checks the table of the sidecars' reports.
func TestAdminEngines(t *testing.T) {
	t.Parallel()
	a := newAdmins(t)
	o := a.s.run("engines")
	if o.check(t, 0); !strings.Contains(o.stdout, "no report") {
		t.Errorf("before any report:\n%s", o.stdout)
	}
	for machine, state := range map[string]string{"m1": wire.SidecarListening, "m2": wire.SidecarStopped} {
		report := wire.SessionsRequest{Status: &wire.SidecarStatus{
			State: state, Version: "v1.2.3", EngineVersion: "engine:v0.21.8", EngineSocket: wire.SocketUnreachable,
			CertificateNotAfter: time.Now().Add(time.Hour), FeedAgeSeconds: 7,
		}}
		if err := a.Call("POST", wire.PathSessions, a.SessionsToken(map[string]any{"machine_id": machine}), report, nil); err != nil {
			t.Fatal(err)
		}
	}
	o = a.s.run("engines")
	o.check(t, 0)
	for _, want := range []string{"default", "awake", "/m1", "asleep", "/m2", "engine:v0.21.8", "v1.2.3", "unreachable", "7s"} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("the table lacks %s:\n%s", want, o.stdout)
		}
	}
	if strings.Count(o.stdout, "unreachable") != 1 {
		t.Errorf("the socket of a machine that is asleep is shown:\n%s", o.stdout)
	}
	var list wire.List[wire.EngineStatus]
	if err := json.Unmarshal([]byte(a.s.run("engines", "--json").stdout), &list); err != nil || len(list.Items) != 1 || len(list.Items[0].Machines) != 2 {
		t.Errorf("%v: %+v", err, list)
	}
}

func TestAdminBlocksAndEvents(t *testing.T) {
	t.Parallel()
	a := newAdmins(t)
	serial := a.issueFor(t, map[string]any{"run_id": "1001"})
	a.s.run("certs", "revoke", serial, "--yes", "--reason", "why not").check(t, 0)
	o := a.s.run("blocks")
	o.check(t, 0)
	if !strings.Contains(o.stdout, "run_id 1001") || !strings.Contains(o.stdout, "why not") {
		t.Errorf("blocks:\n%s", o.stdout)
	}
	if _, err := a.Issue(a.GitHubToken(map[string]any{"run_id": "1001"})); err == nil {
		t.Error("the blocked run got another certificate")
	}
	var list wire.List[wire.Block]
	if err := json.Unmarshal([]byte(a.s.run("blocks", "list", "--json").stdout), &list); err != nil || len(list.Items) != 1 {
		t.Fatalf("%v: %+v", err, list)
	}
	a.s.run("blocks", "remove", list.Items[0].ID).check(t, 0)
	a.s.run("blocks", "remove", list.Items[0].ID).check(t, 1, "there is no block "+list.Items[0].ID, "mayfly blocks list")
	a.s.run("blocks", "remove", "../certificates").check(t, 2)
	a.s.run("blocks", "remove", list.Items[0].ID[:9]).check(t, 2, "is not the id of a block")
	if _, err := a.Issue(a.GitHubToken(map[string]any{"run_id": "1001"})); err != nil {
		t.Errorf("after the block: %v", err)
	}
	o = a.s.run("events", "--run-id", "1001")
	for _, want := range []string{"issued", "revoked"} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("events lack %s:\n%s", want, o.stdout)
		}
	}
	// Export all events as JSON lines, oldest first, then those after a number.
	lines := func(args ...string) (seqs []int64) {
		t.Helper()
		o := a.s.run(append([]string{"events", "--export"}, args...)...)
		o.check(t, 0)
		for line := range strings.Lines(o.stdout) {
			var e wire.Event
			if err := json.Unmarshal([]byte(line), &e); err != nil || e.Type == "" {
				t.Fatalf("%v: %s", err, line)
			}
			seqs = append(seqs, e.Seq)
		}
		return seqs
	}
	exported := lines()
	for i, seq := range exported {
		if seq != int64(i+1) {
			t.Fatalf("exported %v", exported)
		}
	}
	if later := lines("--after", "2"); len(later) != len(exported)-2 || later[0] != 3 {
		t.Errorf("after 2: %v of %v", later, exported)
	}
	cmd, out := a.s.start("issued", "events", "--follow", "--type", "issued")
	fresh := a.issueFor(t, map[string]any{"run_id": "1009"})
	waitFor(t, func() bool { return strings.Contains(out.String(), fresh) })
	if strings.Count(out.String(), fresh) != 1 {
		t.Errorf("followed twice:\n%s", out)
	}
	cmd.Process.Signal(os.Interrupt)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("code %d", code)
	}
	a.s.run("sessions").check(t, 0, "engine default has never reported")
}

func TestAdminRoles(t *testing.T) {
	t.Parallel()
	a := newAdmins(t)
	serial := a.issueFor(t, nil)
	viewer := a.as(a.ViewerToken())
	viewer.run("certs", "list").check(t, 0)
	viewer.run("certs", "revoke", serial, "--yes").check(t, 3, "viewer")
	a.as(a.PersonToken(map[string]any{"email": "stranger@example.com"})).run("certs", "list").check(t, 3, "role")
	a.as(a.GitHubToken(nil)).run("certs", "list").check(t, 3, "role")
	a.as("").run("certs", "list").check(t, 1, "not logged in", "mayfly login")
	a.s.run("certs", "show", "zz").check(t, 2, "serial")
	a.s.run("certs", "show", "00000000").check(t, 1, "begins with 00000000")
	a.s.run("certs", "show", strings.Repeat("0", 32)).check(t, 1)
	a.s.run("certs", "revoke", "--yes").check(t, 2)
	a.s.run("certs", "revoke", "--repository", "acme/app", "--run-id", "", "--yes").check(t, 2, "--run-id is empty")
	a.s.run("certs", "list", "--run-id=").check(t, 2, "--run-id is empty")
	a.s.run("certs", "revoke", serial, "--all", "--yes").check(t, 2)
	a.s.run("certs", "revoke", serial, "--block", "soon", "--yes").check(t, 2)
	a.s.run("certs", "list", "--since", "yesterday").check(t, 2, "RFC 3339")
	a.s.run("certs", "list", "--limit", "0").check(t, 2)
}

// TestHostileClaims checks that an attacker's claims have no effect on a terminal or
// a runner.
func TestHostileClaims(t *testing.T) {
	t.Parallel()
	a := newAdmins(t)
	hostile := "x\x1b[2J\x1b]0;t\x07\r\n::set-output name=a::b\n##[command]\u202egnp.exe\u2066<script>\u0085\u009b31m"
	serial := a.issueFor(t, map[string]any{"actor": hostile, "run_id": "1", "workflow": hostile, "head_ref": hostile, "repository": "acme/" + hostile})
	for _, args := range [][]string{
		{"certs", "list"}, {"certs", "show", serial}, {"events"}, {"certs", "revoke", serial, "--yes", "--reason", hostile},
		{"certs", "show", serial}, {"events"}, {"blocks"}, {"certs", "list", "--actor", hostile},
	} {
		o := a.s.run(args...)
		o.check(t, 0)
		if args[0] == "certs" && args[1] == "show" && !strings.Contains(o.stdout, `\x1b[2J`) {
			t.Errorf("%v does not show what was there:\n%s", args, o.stdout)
		}
		for _, r := range o.stdout + o.stderr {
			if r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
				t.Errorf("%v prints %U", args, r)
			}
		}
		for line := range strings.Lines(o.stdout) {
			if strings.HasPrefix(strings.TrimSpace(line), "::") || strings.Contains(line, "##[") {
				t.Errorf("%v prints a runner's command: %s", args, line)
			}
		}
	}
}

// TestDoctorAndSuggest runs doctor and suggest with a job's token.
func TestDoctorAndSuggest(t *testing.T) {
	t.Parallel()
	a := newAdmins(t)
	job := a.GitHub.NewJob(nil)
	a.s.env = append(a.s.env, "ACTIONS_ID_TOKEN_REQUEST_URL="+job.RequestURL, "ACTIONS_ID_TOKEN_REQUEST_TOKEN="+job.RequestToken, "MAYFLY_ADMIN_TOKEN=")
	o := a.s.run("doctor", "--wake-timeout", "1s")
	o.check(t, 5, "did not answer") // no engine runs at the policy's endpoint
	for _, want := range []string{"ok    issuer", "ok    clock", "ok    token", "repository_id", "ok    policy     rule app-main grants default", "ok    ca", "fail  tls"} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("doctor lacks %q:\n%s", want, o.stdout)
		}
	}
	denied := a.GitHub.NewJob(map[string]any{"ref": "refs/heads/evil"})
	s := &stand{tb: t, env: append(append([]string(nil), a.s.env...), "ACTIONS_ID_TOKEN_REQUEST_URL="+denied.RequestURL, "ACTIONS_ID_TOKEN_REQUEST_TOKEN="+denied.RequestToken)}
	o = s.run("doctor")
	o.check(t, 3, "nearest rule: app-main", "policy.yaml")
	if !strings.Contains(o.stdout, "fail  policy") || strings.Contains(o.stdout, "tls") {
		t.Errorf("doctor goes on:\n%s", o.stdout)
	}
	o = s.run("policy", "suggest")
	o.check(t, 0)
	for _, want := range []string{`repository_id: "1339936803"`, `repository_owner_id: "285964"`, `ref: "refs/heads/evil"`, `event_name: "push"`} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("suggest lacks %s:\n%s", want, o.stdout)
		}
	}
	// The rule works: with it in the policy, the issuer admits the job.
	text, err := os.ReadFile(a.PolicyFile)
	if err != nil {
		t.Fatal(err)
	}
	admitted := strings.Replace(string(text), "\nrules:\n", "\nrules:\n"+o.stdout, 1)
	if err := os.WriteFile(a.PolicyFile, []byte(admitted), 0o600); err != nil {
		t.Fatal(err)
	}
	a.Reload()
	waitFor(t, func() bool { return s.run("doctor", "--wake-timeout", "1s").code == 5 })
}
