package cli_test

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// command is text that GitHub's runner obeys, both within a line and at its
// beginning.
const command = "::set-env name=PATH::/tmp\n##[add-path]/tmp ::stop-commands::x"

// TestNoWorkflowCommand runs every command of a job with an issuer, a token endpoint
// and folders whose texts contain workflow commands.
func TestNoWorkflowCommand(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	odd := filepath.Join(shortDir(t), "##[group]x")
	if err := os.Mkdir(odd, 0o700); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(odd, "s")
	s.set(func() {
		s.spoil = func(r *wire.IssueResponse) { r.Rule = command }
	})
	check := func(text string) {
		t.Helper()
		for line := range strings.Lines(text) {
			if strings.HasPrefix(strings.TrimSpace(line), "::") || strings.Contains(line, "##[") {
				t.Errorf("the runner obeys %q", line)
			}
		}
	}
	run := func(code int, want string, args ...string) outcome {
		t.Helper()
		o := s.run(args...)
		if check(o.stdout + o.stderr); o.code != code || !strings.Contains(o.stdout+o.stderr, want) {
			t.Errorf("%q: code %d, want %d and %q\n%s%s", args, o.code, code, want, o.stdout, o.stderr)
		}
		return o
	}
	run(0, `\x23#[add-path]`, "exec", "--", "true")
	run(0, `\x23#[add-path]`, "wake")
	run(0, "ok", "doctor")
	pasted := run(0, "--driver remote", "cert", "--out", filepath.Join(odd, "certificate"))
	said, err := exec.Command("sh", "-c", "buildctl() { printf '%s\\n' \"$@\"; }\n"+lineWith(pasted.stdout, "buildctl ")).Output()
	if err != nil || !strings.Contains(string(said), filepath.Join(odd, "certificate", "key.pem")) {
		t.Errorf("what is pasted is another folder: %v\n%s", err, said)
	}
	o := run(0, `\u0023#[add-path]`, "--json", "cert", "--out", filepath.Join(odd, "certificate"))
	var line struct{ Rule string }
	if err := json.Unmarshal([]byte(o.stdout), &line); err != nil || line.Rule != command {
		t.Errorf("the rule is %q, %v", line.Rule, err)
	}
	for until, args := range map[string][]string{"export BUILDKIT_HOST": {"proxy"}, "buildkit_host": {"--json", "proxy"}} {
		cmd, out := s.start(until, append(args, "--wake", "--listen", "unix:"+socket)...)
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if check(out.String()); cmd.ProcessState.ExitCode() != 0 {
			t.Errorf("%q: code %d\n%s", args, cmd.ProcessState.ExitCode(), out)
		}
	}

	// Refusals, by mayfly itself and by the issuer.
	run(1, "x23#[group]", "exec", "--", "##[group]x")
	run(2, "x23#[group]", "proxy", "--##[group]x")
	run(2, "x23#[group]", "proxy", "--listen", "##[group]x")
	run(1, "", "cert", "--out", filepath.Join(os.DevNull, "##[group]x"))
	for _, name := range []string{wire.ProblemDenied, wire.ProblemSeveralEngines, wire.ProblemBlocked} {
		s.set(func() { s.issue = problem(name, command, command, command) })
		for _, args := range [][]string{{"exec", "--", "true"}, {"proxy"}, {"cert", "--out", filepath.Join(odd, "denied")}, {"doctor"}} {
			check(s.run(args...).stderr)
		}
	}
	s.set(func() {
		s.issue = nil
		s.spoil = func(r *wire.IssueResponse) { r.Engines[0].Endpoint = "tcp://" + command + ":1" }
	})
	run(5, `\x23#[add-path]`, "exec", "--", "true")
	run(5, `\u0023#[add-path]`, "--log-format", "json", "exec", "--", "true")
	s.set(func() { s.token = answer(http.StatusForbidden, "text/plain", command) })
	run(1, "id token from", "exec", "--", "true")
}

// TestOneFilePrints checks that all output of mayfly goes through terminal.go, which
// escapes workflow commands. Only exec's command gets the streams themselves.
func TestOneFilePrints(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	prints := regexp.MustCompile(`fmt\.Print|Fprint\w*\((p|t|os)\.(out|err|Std)|\.(out|err|Stdout|Stderr)\.Write|WriteString\((p|t|os)\.(out|err|Std)`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if found := prints.Find(text); found != nil && file != "terminal.go" && !strings.HasSuffix(file, "_test.go") {
			t.Errorf("%s prints by itself: %s", file, found)
		}
		if file == "terminal.go" && !prints.Match(text) {
			t.Error("the pattern does not find what terminal.go does")
		}
	}
}
