package issuer_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

func goodStatus() *wire.SidecarStatus {
	return &wire.SidecarStatus{
		State: wire.SidecarListening, Version: "v1.2.3", EngineVersion: "engine:v0.21.8", EngineSocket: wire.SocketOK,
		CertificateNotAfter: time.Now().UTC().Add(24 * time.Hour).Truncate(time.Second), FeedAgeSeconds: 7,
	}
}

// twoEngines adds a second engine, served by another app.
func twoEngines(text string) string {
	text = strings.Replace(text, "rules:\n", `  other: {endpoint: "tcp://other.example.com:8080", server_name: other.example.com}
rules:
  - name: other-engine
    provider: fly
    match: {org_id: "`+issuertest.OrgID+`", app_id: "33"}
    grant: {profile: server, engines: [other], dns: ["other.example.com"], ttl: 24h}
`, 1)
	return strings.Replace(text, "grant: {profile: client, engines: [default]", "grant: {profile: client, engines: [default, other]", 1)
}

func engines(t *testing.T, i *issuertest.Issuer) []wire.EngineStatus {
	t.Helper()
	var list wire.List[wire.EngineStatus]
	if err := i.Call("GET", wire.PathEngines, i.ViewerToken(), nil, &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// TestEngines checks that a status is stored for the engine and the machine of the
// token's rule and shown to viewers. An engine's version reaches the jobs that are
// granted the engine.
func TestEngines(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{Policy: twoEngines})
	report := func(claims map[string]any, st *wire.SidecarStatus) {
		t.Helper()
		var out wire.SessionsResponse
		if err := i.Call("POST", wire.PathSessions, i.SessionsToken(claims), wire.SessionsRequest{Status: st}, &out); err != nil || out.StatusRefused != "" {
			t.Fatalf("status: %v %+v", err, out)
		}
	}
	unknown := engines(t, i)
	if len(unknown) != 2 || unknown[0].State != wire.EngineUnknown || unknown[0].Machines == nil || len(unknown[0].Machines) != 0 {
		t.Errorf("before any status: %+v", unknown)
	}
	if out, err := i.Issue(i.GitHubToken(nil)); err != nil || out.Engines[0].Version != "" {
		t.Errorf("before any status: %+v, %v", out, err)
	}

	good := goodStatus()
	report(map[string]any{"machine_id": "m1"}, good)
	report(map[string]any{"machine_id": "m2"}, good)
	stopped := *good
	stopped.State, stopped.EngineSocket, stopped.EngineVersion = wire.SidecarStopped, wire.SocketUnreachable, ""
	report(map[string]any{"machine_id": "m2"}, &stopped)
	got := engines(t, i)
	if at := got[0].Machines[1].FeedAt; time.Since(at) < 7*time.Second || time.Since(at) > time.Minute {
		t.Errorf("the feed is of %v, want 7 s before the report", at)
	}
	for n := range got[0].Machines {
		got[0].Machines[n].SeenAt, got[0].Machines[n].FeedAt = time.Time{}, time.Time{}
	}
	const prefix = "spiffe://" + issuertest.TrustDomain + "/engine/default/fly/" + issuertest.AppID + "/"
	want := []wire.EngineStatus{
		{
			Name: "default", Endpoint: "tcp://127.0.0.1:8080", ServerName: issuertest.ServerName, State: wire.EngineAwake,
			Machines: []wire.MachineStatus{
				{Machine: prefix + "m2", State: wire.EngineAsleep, Sidecar: wire.SidecarStopped, Version: "v1.2.3", EngineSocket: wire.SocketUnreachable, CertificateNotAfter: good.CertificateNotAfter},
				{Machine: prefix + "m1", State: wire.EngineAwake, Sidecar: wire.SidecarListening, Version: "v1.2.3", EngineVersion: "engine:v0.21.8", EngineSocket: wire.SocketOK, CertificateNotAfter: good.CertificateNotAfter},
			},
		},
		{Name: "other", Endpoint: "tcp://other.example.com:8080", ServerName: "other.example.com", State: wire.EngineUnknown, Machines: []wire.MachineStatus{}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("engines (-want +got):\n%s", diff)
	}
	out, err := i.Issue(i.GitHubToken(nil))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]wire.Engine{
		{Name: "default", Endpoint: "tcp://127.0.0.1:8080", ServerName: issuertest.ServerName, Version: "engine:v0.21.8"},
		{Name: "other", Endpoint: "tcp://other.example.com:8080", ServerName: "other.example.com"},
	}, out.Engines); diff != "" {
		t.Errorf("engines of a certificate (-want +got):\n%s", diff)
	}

	// The machine of another app reports only for its own engine.
	stopped.EngineVersion = "buildkit:v0.34.2"
	report(map[string]any{"app_id": "33", "machine_id": "m1"}, &stopped)
	if got := engines(t, i); len(got[0].Machines) != 2 || len(got[1].Machines) != 1 || got[1].State != wire.EngineAsleep {
		t.Errorf("after the other engine's status: %+v", got)
	}
}

// TestStatusIsChecked checks that an invalid status is refused while the reports in
// the same request are stored. A status at the bounds is accepted.
func TestStatusIsChecked(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	cert, err := i.Issue(i.GitHubToken(nil))
	if err != nil {
		t.Fatal(err)
	}
	send := func(st *wire.SidecarStatus) wire.SessionsResponse {
		t.Helper()
		var out wire.SessionsResponse
		err := i.Call("POST", wire.PathSessions, i.SessionsToken(nil), wire.SessionsRequest{Status: st, Reports: []wire.SessionReport{
			{Kind: wire.SessionOpen, ID: strings.Repeat("a", 32), Serial: cert.Serial, At: time.Now()},
		}}, &out)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	now := time.Now()
	for name, c := range map[string]struct {
		change func(*wire.SidecarStatus)
		refuse string // the start of the refusal
	}{
		"good":                   {func(*wire.SidecarStatus) {}, ""},
		"paused":                 {func(s *wire.SidecarStatus) { s.State = wire.SidecarPaused }, ""},
		"no engine version":      {func(s *wire.SidecarStatus) { s.EngineVersion = "" }, ""},
		"longest version":        {func(s *wire.SidecarStatus) { s.Version = strings.Repeat("v", 128) }, ""},
		"long version":           {func(s *wire.SidecarStatus) { s.Version = strings.Repeat("v", 129) }, "version"},
		"no version":             {func(s *wire.SidecarStatus) { s.Version = "" }, "version"},
		"version with a space":   {func(s *wire.SidecarStatus) { s.Version = "v1 x" }, "version"},
		"version with a control": {func(s *wire.SidecarStatus) { s.EngineVersion = "v1\x1b[31m" }, "engine_version"},
		"version with a letter":  {func(s *wire.SidecarStatus) { s.EngineVersion = "vé" }, "engine_version"},
		"unknown state":          {func(s *wire.SidecarStatus) { s.State = "awake" }, "state"},
		"unknown socket":         {func(s *wire.SidecarStatus) { s.EngineSocket = "" }, "engine_socket"},
		"no feed yet":            {func(s *wire.SidecarStatus) { s.FeedAgeSeconds = 0 }, ""},
		"negative age":           {func(s *wire.SidecarStatus) { s.FeedAgeSeconds = -1 }, "feed_age_seconds"},
		"oldest feed":            {func(s *wire.SidecarStatus) { s.FeedAgeSeconds = 90 * 86400 }, ""},
		"older feed":             {func(s *wire.SidecarStatus) { s.FeedAgeSeconds = 90*86400 + 1 }, "feed_age_seconds"},
		"overflow":               {func(s *wire.SidecarStatus) { s.FeedAgeSeconds = 1 << 62 }, "feed_age_seconds"},
		"no end":                 {func(s *wire.SidecarStatus) { s.CertificateNotAfter = time.Time{} }, "certificate_not_after"},
		"end in a year":          {func(s *wire.SidecarStatus) { s.CertificateNotAfter = now.AddDate(1, 0, 0) }, "certificate_not_after"},
		"end a year ago":         {func(s *wire.SidecarStatus) { s.CertificateNotAfter = now.AddDate(-1, 0, 0) }, "certificate_not_after"},
		"end an hour ago":        {func(s *wire.SidecarStatus) { s.CertificateNotAfter = now.Add(-time.Hour) }, ""},
	} {
		st := goodStatus()
		c.change(st)
		out := send(st)
		if (out.StatusRefused == "") != (c.refuse == "") || !strings.HasPrefix(out.StatusRefused, c.refuse) {
			t.Errorf("%s: refused %q, want %q", name, out.StatusRefused, c.refuse)
		}
		if out.Accepted != 1 || len(out.Refused) > 0 {
			t.Errorf("%s: the session's report is not stored: %+v", name, out)
		}
	}
	for name, c := range map[string]struct {
		token string
		body  any
		want  string
	}{
		"neither":         {i.SessionsToken(nil), wire.SessionsRequest{}, wire.ProblemBadRequest},
		"unknown member":  {i.SessionsToken(nil), map[string]any{"status": map[string]any{"state": "listening", "mood": "good"}}, wire.ProblemBadRequest},
		"a job's":         {i.GitHubToken(map[string]any{"aud": issuertest.SessionsAudience}), wire.SessionsRequest{Status: goodStatus()}, wire.ProblemDenied},
		"other audience":  {i.FlyToken(nil), wire.SessionsRequest{Status: goodStatus()}, wire.ProblemBadToken},
		"another app's":   {i.SessionsToken(map[string]any{"app_id": "1"}), wire.SessionsRequest{Status: goodStatus()}, wire.ProblemDenied},
		"nobody's":        {"", wire.SessionsRequest{Status: goodStatus()}, wire.ProblemBadToken},
		"number for text": {i.SessionsToken(nil), map[string]any{"status": map[string]any{"state": 1}}, wire.ProblemBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			wantProblem(t, i.Call("POST", wire.PathSessions, c.token, c.body, nil), c.want)
		})
	}
}
