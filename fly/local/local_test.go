package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		args   []string
		engine string
		err    string
	}{
		{name: "nothing", engine: "buildkit"},
		{name: "command", args: []string{"--", "true", "--json"}, engine: "buildkit"},
		{name: "engine command implies cmd", args: []string{"--engine-cmd", "e --addr x", "--engine-socket", "/run/e.sock", "--", "true"}, engine: "cmd"},
		{name: "cmd without socket", args: []string{"--engine-cmd", "e", "--", "true"}, err: "--engine-socket PATH"},
		{name: "relative socket", args: []string{"--engine-cmd", "e", "--engine-socket", "e.sock", "--", "true"}, err: "absolute"},
		{name: "cmd shows nothing by itself", args: []string{"--engine-cmd", "e", "--engine-socket", "/e.sock"}, err: "-- CMD"},
		{name: "socket of buildkit", args: []string{"--engine-socket", "/e.sock"}, err: "go with --engine cmd"},
		{name: "other engine", args: []string{"--engine", "podman"}, err: "none of buildkit, dagger, cmd"},
		{name: "dir alone", args: []string{"--dir", "d"}, err: "goes with --keep"},
		{name: "keep where", args: []string{"--keep"}, err: "wants --dir"},
		{name: "unknown flag", args: []string{"--keeep"}, err: "keeep"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			o, err := parse(tc.args, &bytes.Buffer{})
			switch {
			case tc.err == "" && err != nil:
				t.Fatalf("parse: %v", err)
			case tc.err == "" && o.engine != tc.engine:
				t.Fatalf("engine %q, want %q", o.engine, tc.engine)
			case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
				t.Fatalf("parse: %v, want %q", err, tc.err)
			}
		})
	}
}

// The user's own files keep their values, except those that this machine sets.
func TestSettingsOfTheUser(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "policy.yaml"), `version: 1
trust_domain: ci.example.org
providers:
  hub: {type: github, issuer: https://token.actions.githubusercontent.com}
  ghes: {type: github, issuer: https://ghes.example.org/_services/token}
  cloud: {type: fly, issuer: https://oidc.fly.io/acme}
  staff: {type: people, issuer: https://login.example.org, client_id: admin-page}
engines:
  fast: {endpoint: "tcp://fast.example.org:8080", server_name: fast.example.org}
rules:
  - name: release
    provider: hub
    match: {repository_id: "7", ref: "refs/heads/release/*", event_name: [push, schedule]}
    grant: {profile: client, engines: [fast], ttl: 30m}
  - name: machine
    provider: cloud
    match: {org_id: "1", app_id: "2"}
    grant: {profile: server, engines: [fast], dns: [fast.example.org], ttl: 24h}
`)
	write(t, filepath.Join(dir, "issuer.yaml"), "listen: \":443\"\npublic_url: https://issuer.example.org\nstore: /data/store\n"+
		"retention: 240h\nca: {key: env:CA_KEY}\nbehind_proxy: true\nclient_ip_header: X-Real-IP\nrun_as: nobody\ntls: {mode: \"off\"}\npolicy: policy.yaml\nrate: {per_ip: 5}\n")
	s, err := loadSettings(dir)
	if err != nil {
		t.Fatal(err)
	}
	s.useProviders(map[string]string{"github": "http://127.0.0.1:1", "fly": "http://127.0.0.1:2/acme", "people": "http://127.0.0.1:3"})
	s.useEndpoint("tcp://127.0.0.1:4")
	s.useIssuer("127.0.0.1:5", "https://127.0.0.1:5", "/run/ca")

	providers := section(s.policy, "providers")
	for name, want := range map[string]any{"hub": "http://127.0.0.1:1", "ghes": "https://ghes.example.org/_services/token", "staff": "http://127.0.0.1:3"} {
		if got := section(providers, name)["issuer"]; got != want {
			t.Errorf("issuer of %s = %v, want %v", name, got, want)
		}
	}
	if section(providers, "hub")["unsafe_http"] != true || section(providers, "ghes")["unsafe_http"] != nil {
		t.Error("unsafe_http is for the stand-ins alone")
	}
	if got := section(section(s.policy, "engines"), "fast"); got["endpoint"] != "tcp://127.0.0.1:4" || got["server_name"] != "fast.example.org" {
		t.Errorf("engine = %v", got)
	}
	if s.issuer["retention"] != "240h" || s.issuer["store"] != "/run/ca/store" || s.issuer["client_ip_header"] != "X-Real-IP" || s.issuer["run_as"] != nil || section(s.issuer, "rate")["per_ip"] != 5 {
		t.Errorf("issuer = %v", s.issuer)
	}
	if got := s.admitted("github"); got["ref"] != "refs/heads/release/main" || got["event_name"] != "push" || got["repository_id"] != "7" {
		t.Errorf("a job's claims = %v", got)
	}
	if s.engine() != "fast" || s.clientID() != "admin-page" || s.trustDomain() != "ci.example.org" {
		t.Errorf("engine %q, client %q, trust domain %q", s.engine(), s.clientID(), s.trustDomain())
	}
}

// MAYFLY_ADMIN_TOKEN belongs to an admin, whatever the order of the user's rules.
func TestAdminOfTheUser(t *testing.T) {
	t.Parallel()
	const providers = "trust_domain: ci.example.org\nproviders: {staff: {type: people}}\nengines: {e: {}}\nrules:\n"
	for _, tc := range []struct {
		name, rules string
		want        map[string]any
	}{
		{"viewers first", "  - {name: v, provider: staff, match: {sub: eyes}, grant: {role: viewer}}\n" +
			"  - {name: a, provider: staff, match: {email: [ops@example.org], email_verified: true}, grant: {role: admin}}\n",
			map[string]any{"sub": "admin", "email": "ops@example.org", "email_verified": true}},
		{"the viewers' claims go", "  - {name: v, provider: staff, match: {email: eyes@example.org, email_verified: true}, grant: {role: viewer}}\n" +
			"  - {name: a, provider: staff, match: {sub: ops}, grant: {role: admin}}\n",
			map[string]any{"sub": "ops", "email": nil, "email_verified": nil}},
		{"admins first", "  - {name: a, provider: staff, match: {sub: ops}, grant: {role: admin}}\n", map[string]any{}},
		{"no admin", "  - {name: v, provider: staff, match: {sub: eyes}, grant: {role: viewer}}\n", map[string]any{}},
	} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "policy.yaml"), providers+tc.rules)
		write(t, filepath.Join(dir, "issuer.yaml"), "{}\n")
		s, err := loadSettings(dir)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(tc.want, s.admin()); d != "" {
			t.Errorf("%s: %s", tc.name, d)
		}
	}
}

// An error in the user's files names its place.
func TestBadSettings(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ policy, issuer, want string }{
		"policy, no YAML":   {"version: 1\nrules: [\n", "{}\n", "policy.yaml:2:8: "},
		"policy, a list":    {"- a\n", "{}\n", "policy.yaml:1:1: want keys with values"},
		"issuer, key twice": {"version: 1\n", "listen: a\nlisten: b\n", `issuer.yaml:2:1: key "listen" occurs twice`},
	} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "policy.yaml"), tc.policy)
		write(t, filepath.Join(dir, "issuer.yaml"), tc.issuer)
		if _, err := loadSettings(dir); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %s", name, err, tc.want)
		}
	}
}

func TestPostgresStoreStays(t *testing.T) {
	t.Parallel()
	s := settings{policy: map[string]any{}, issuer: map[string]any{"store": "postgres://localhost/mayfly"}}
	s.useIssuer("127.0.0.1:5", "https://127.0.0.1:5", "/run/ca")
	if s.issuer["store"] != "postgres://localhost/mayfly" || !s.foreignStore() {
		t.Errorf("store = %v", s.issuer["store"])
	}
}

func TestShellQuote(t *testing.T) {
	t.Parallel()
	const hostile = `a'b"c$(id) ` + "`x`"
	out, err := exec.Command("sh", "-c", "v="+shellQuote(hostile)+`; printf %s "$v"`).Output()
	if err != nil || string(out) != hostile {
		t.Errorf("a shell reads %q (%v), want %q", out, err, hostile)
	}
}

// buildkitd has an OCI worker if its configuration says so, or if PATH has a runc,
// which our engine does not need. Each run has its own control groups.
func TestBuildkitEngine(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e, err := buildkitEngine(tools{buildkitd: "/buildkitd", runc: "/our/runc"}, dir)
	if err != nil {
		t.Fatal(err)
	}
	command := strings.Join(e.command, " ")
	if !strings.Contains(command, "--oci-worker-binary /our/runc") || !strings.Contains(command, "--config "+dir) {
		t.Errorf("command = %s", command)
	}
	data, err := os.ReadFile(filepath.Join(dir, "buildkitd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Worker map[string]struct {
			Enabled *bool `toml:"enabled"`
		} `toml:"worker"`
	}
	if err := toml.Unmarshal(data, &config); err != nil {
		t.Fatal(err)
	}
	if oci := config.Worker["oci"].Enabled; oci == nil || !*oci {
		t.Errorf("buildkitd looks for a runc in PATH:\n%s", data)
	}
	// --keep's folder has the same name in every run.
	other, err := buildkitEngine(tools{}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if e.cgroup == other.cgroup || !strings.Contains(string(data), `"/`+e.cgroup+`"`) {
		t.Errorf("two runs share the control group %s", e.cgroup)
	}
}

func TestWithoutSeccomp(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "config.json")
	write(t, path, `{"ociVersion":"1.2.0","linux":{"seccomp":{"defaultAction":"SCMP_ACT_ERRNO"},"maskedPaths":["/proc/kcore"]}}`)
	if err := withoutSeccomp(path); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(data); strings.Contains(got, "seccomp") || !strings.Contains(got, `"maskedPaths":["/proc/kcore"]`) || !strings.Contains(got, `"ociVersion":"1.2.0"`) {
		t.Errorf("config = %s", got)
	}
	write(t, path, `not json`)
	if err := withoutSeccomp(path); err == nil {
		t.Error("a broken configuration is passed on")
	}
}

func TestReportOfAFailure(t *testing.T) {
	t.Parallel()
	var progress, stdout bytes.Buffer
	r := &report{progress: &progress}
	if err := r.run("tools", func() (string, error) { return "", os.ErrNotExist }); err == nil {
		t.Fatal("the failure is lost")
	}
	if err := r.json(&stdout); err != nil {
		t.Fatal(err)
	}
	var got struct {
		OK    bool
		Steps []struct {
			Name  string
			OK    bool
			Error string
		}
	}
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.OK || len(got.Steps) != 1 || got.Steps[0].OK || got.Steps[0].Error == "" || strings.Count(stdout.String(), "\n") != 1 {
		t.Errorf("report = %s", stdout.String())
	}
	if !strings.HasPrefix(progress.String(), "FAIL tools") {
		t.Errorf("progress = %q", progress.String())
	}
}

// DIR/env means that all servers answer. So the file of a killed run is removed
// before the next run starts. The file of a live run is kept.
func TestEnvOfAKilledRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	env := filepath.Join(dir, "env")
	write(t, env, "export ISSUER_PID='1'\n")
	s, err := newStack(options{keep: true, dir: dir}, &report{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(env); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("env is still there: %v", err)
	}
	write(t, env, "export ISSUER_PID='2'\n")
	if _, err := newStack(options{keep: true, dir: dir}, &report{}); err == nil || !strings.Contains(err.Error(), "state") {
		t.Errorf("a second run in the folder: %v", err)
	}
	if _, err := os.Stat(env); err != nil {
		t.Errorf("the living run's env is gone: %v", err)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A run that cannot start leaves the folder free for the next run.
func TestBadConfigLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dir")
	if _, err := newStack(options{keep: true, dir: dir, config: t.TempDir()}, &report{}); err == nil {
		t.Fatal("started from an empty --config")
	}
	if left, err := os.ReadDir(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
