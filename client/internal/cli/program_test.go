package cli_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestVersionAndHelp(t *testing.T) {
	t.Parallel()
	s := &stand{tb: t, env: []string{"PATH=" + os.Getenv("PATH")}}
	if o := s.run("version"); o.code != 0 || !strings.HasPrefix(o.stdout, "mayfly ") || o.stderr != "" {
		t.Errorf("%+v", o)
	}
	var v map[string]any
	if o := s.run("--json", "version"); json.Unmarshal([]byte(o.stdout), &v) != nil || v["go"] == nil {
		t.Errorf("%s", o.stdout)
	}
	for _, c := range []string{"", "exec", "proxy", "cert", "wake", "policy suggest", "doctor", "certs list", "certs show", "certs revoke",
		"sessions", "engines", "events", "blocks list", "blocks remove", "login", "whoami", "logout", "inspect", "help", "completion", "man", "version"} {
		o := s.run(append(strings.Fields(c), "--help")...)
		if o.code != 0 || !strings.Contains(o.stdout, "Usage: mayfly") || !strings.Contains(o.stdout, "MAYFLY_ISSUER") || o.stderr != "" {
			t.Errorf("%s --help: %+v", c, o)
		}
	}
	help := s.run("--help").stdout
	for _, want := range []string{"Exit codes:", "3    the issuer's policy", "MAYFLY_ADMIN_TOKEN", "NO_COLOR", "--trust-anchor=sha256:HEX", "--token-source=SOURCE"} {
		if !strings.Contains(help, want) {
			t.Errorf("mayfly --help lacks %q:\n%s", want, help)
		}
	}
	// Flags that filter have the same names as the API's query parameters.
	for command, queries := range map[string][]string{
		"certs list":   {"serial", "repository", "repository_id", "run_id", "actor", "identity", "profile", "status", "since", "until", "limit", "cursor"},
		"certs revoke": {"repository", "repository_id", "run_id", "actor", "identity", "profile", "since", "until", "all", "block", "reason"},
		"sessions":     {"engine", "serial", "run_id", "repository", "since", "until", "cut", "limit", "cursor"},
		"events":       {"type", "serial", "repository", "run_id", "since", "until", "after", "limit", "cursor"},
	} {
		text := s.run(append(strings.Fields(command), "--help")...).stdout
		for _, q := range queries {
			if flag := "--" + strings.ReplaceAll(q, "_", "-"); !strings.Contains(text, flag+"=") && !strings.Contains(text, flag+" ") {
				t.Errorf("%s has no %s", command, flag)
			}
		}
	}
	if o := s.run("exec", "--help"); !strings.HasPrefix(o.stdout, "Usage: mayfly exec [flags] -- <command> ...\n") {
		t.Errorf("exec --help begins\n%s", o.stdout)
	}
	for _, args := range [][]string{{"nothing"}, {"--nothing"}, {"certs", "list", "--status", "odd"}, {"inspect"}, {"cert"}} {
		s.run(args...).check(t, 2, "mayfly: error: ")
	}
	s.run("certs", "list", "--status", "odd").check(t, 2, `--status must be one of "valid","expired","revoked" but got "odd"`)
}

// mayfly's stderr is a log with a format and a level.
func TestLogFlags(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	var record struct {
		Level, Msg string
		Hints      []string
		ExitCode   int `json:"exit_code"`
	}
	o := s.run("--log-format", "json", "inspect", "no\u202esuch")
	if err := json.Unmarshal([]byte(o.stderr), &record); err != nil || o.code != 1 || record.ExitCode != 1 || record.Level != "ERROR" || len(record.Hints) == 0 || !strings.Contains(record.Msg, "no\u202esuch") {
		t.Errorf("%v %+v", err, o)
	}
	command := []string{"exec", "--", "dialer", "echo"}
	if o := s.run(command...); o.code != 0 || !strings.Contains(o.stderr, "mayfly: certificate ") || strings.Contains(o.stderr, "level=") {
		t.Errorf("info: %+v", o)
	}
	if o := s.run(append([]string{"--log-level", "warn"}, command...)...); o.code != 0 || strings.Contains(o.stderr, "mayfly: ") {
		t.Errorf("warn: %+v", o)
	}
	if o := s.run(append([]string{"--log-level", "debug"}, command...)...); o.code != 0 || !strings.Contains(o.stderr, "level=DEBUG msg=\"engine reached\"") {
		t.Errorf("debug: %+v", o)
	}
}

// TestSizeAndStart checks that the stripped program has at most 12 MB. A start within
// 20 ms can only be measured on a quiet machine, so here only a far slower start is an
// error.
func TestSizeAndStart(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "mayfly")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "../../cmd/mayfly")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	best := time.Hour
	for range 20 {
		start := time.Now()
		if err := exec.Command(path, "version").Run(); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(start))
	}
	t.Logf("%d bytes, starts in %v", fi.Size(), best)
	if fi.Size() > 12_000_000 {
		t.Errorf("%d bytes, at most 12 MB", fi.Size())
	}
	if best > 2*time.Second {
		t.Errorf("starts in %v", best)
	}
}
