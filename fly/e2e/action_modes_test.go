package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// runner holds the files that GitHub's runner gives a step.
type runner struct {
	dir    string
	env    []string
	action string // folder of the action
}

func newRunner(t *testing.T, env ...string) *runner {
	t.Helper()
	r := &runner{dir: t.TempDir(), action: filepath.Join("..", "..", "client", "action")}
	r.env = append(os.Environ(), env...)
	for _, name := range []string{"GITHUB_OUTPUT", "GITHUB_ENV", "GITHUB_STATE", "GITHUB_PATH", "GITHUB_STEP_SUMMARY"} {
		path := filepath.Join(r.dir, name)
		writeFile(t, path, "")
		r.env = append(r.env, name+"="+path)
	}
	r.env = append(r.env, "RUNNER_TEMP="+r.dir)
	return r
}

// node runs a script of the action with inputs, and with the state that an earlier
// script saved.
func (r *runner) node(t *testing.T, script string, inputs map[string]string) (string, error) {
	t.Helper()
	out, err := r.command(t, t.Context(), script, inputs).CombinedOutput()
	return string(out), err
}

func (r *runner) command(t *testing.T, ctx context.Context, script string, inputs map[string]string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(ctx, "node", filepath.Join(r.action, script))
	cmd.Env = append([]string(nil), r.env...)
	for name, value := range inputs {
		cmd.Env = append(cmd.Env, "INPUT_"+strings.ToUpper(name)+"="+value)
	}
	for name, value := range r.file(t, "GITHUB_STATE") {
		cmd.Env = append(cmd.Env, "STATE_"+name+"="+value)
	}
	return cmd
}

// pid returns the process id of the program that main.js starts, after main.js has
// recorded it.
func (r *runner) pid(t *testing.T) int {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if text := r.file(t, "GITHUB_STATE")["pid"]; text != "" {
			pid, err := strconv.Atoi(text)
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatal("main.js notes no pid")
	return 0
}

// waitGone waits until a process that is not a child of this one has ended. The
// process may still be a zombie.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
	}
	t.Fatalf("process %d is still there", pid)
}

// The program prints text from the issuer. The text reaches the runner's files
// unchanged; in the log and the summary it has no effect.
func TestActionHostileValues(t *testing.T) {
	t.Parallel()
	needNode(t)
	const rule = "evil\n::set-env name=PATH::/tmp\na ##[group]\nEOF\nx<<y | <img src=x> `code` [a](b)\x1b[2J"
	line, err := json.Marshal(map[string]string{
		"runner_host": "unix:///x\nINJECTED=1\n", "buildkit_host": "unix:///x", "engine": rule, "serial": rule, "identity": rule, "rule": rule, "expires_at": "2026-01-01T00:00:00Z",
	})
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	writeFile(t, filepath.Join(bin, "line"), string(line)+"\n")
	writeFile(t, filepath.Join(bin, "mayfly"), "#!/bin/sh\nprintf '::add-path::/tmp\\nx ##[add-path]/tmp\\n' >&2\ncat "+filepath.Join(bin, "line")+"\nwhile :; do sleep 0.1; done\n")
	if err := os.Chmod(filepath.Join(bin, "mayfly"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := newRunner(t, "PATH="+bin+string(filepath.ListSeparator)+os.Getenv("PATH"), "ACTIONS_ID_TOKEN_REQUEST_URL=https://example.com", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=job-secret")
	out, err := r.node(t, "main.js", map[string]string{"issuer": "https://issuer.example.com", "version": "path"})
	if err != nil {
		t.Fatalf("main.js: %v\n%s", err, out)
	}
	post, err := r.node(t, "post.js", nil)
	if err != nil {
		t.Fatalf("post.js: %v\n%s", err, post)
	}
	// The same if mayfly fails, or ends before the job does.
	for _, script := range []string{"exit 3", "cat " + filepath.Join(bin, "line")} {
		program(t, filepath.Join(bin, "mayfly"), "#!/bin/sh\nprintf '::add-path::/tmp\\nx ##[add-path]/tmp\\n' >&2\n"+script+"\n")
		r := newRunner(t, "PATH="+bin+string(filepath.ListSeparator)+os.Getenv("PATH"), "ACTIONS_ID_TOKEN_REQUEST_URL=https://example.com", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=job-secret")
		said, _ := r.node(t, "main.js", map[string]string{"issuer": "https://issuer.example.com", "version": "path"})
		ended, err := r.node(t, "post.js", nil)
		if err != nil || !strings.Contains(said+ended, "x # #[add-path]/tmp") {
			t.Errorf("%s: %v\n%s%s", script, err, said, ended)
		}
		post += said + ended
	}
	for l := range strings.Lines(out + post) {
		if l = strings.TrimSpace(l); strings.HasPrefix(l, "::") && l != "::add-mask::job-secret" && !strings.HasPrefix(l, "::error title=mayfly::") && !strings.HasPrefix(l, "::warning title=mayfly::") || strings.Contains(l, "##[") {
			t.Errorf("the runner obeys %q", l)
		}
	}
	outputs, env := r.file(t, "GITHUB_OUTPUT"), r.file(t, "GITHUB_ENV")
	if outputs["serial"] != rule || env["_EXPERIMENTAL_DAGGER_RUNNER_HOST"] != "unix:///x\nINJECTED=1\n" || len(env) != 3 || len(outputs) != 5 {
		t.Errorf("outputs %q, environment %q", outputs, env)
	}
	summary, err := os.ReadFile(filepath.Join(r.dir, "GITHUB_STEP_SUMMARY"))
	if err != nil {
		t.Fatal(err)
	}
	if s := string(summary); strings.Contains(s, "<img") || strings.Contains(s, "[a](b)") || strings.Contains(s, "\x1b") || strings.Count(s, "\n") != 9 {
		t.Errorf("the summary acts:\n%s", s)
	}
}

// file parses a file of NAME<<DELIMITER entries, as the runner does.
func (r *runner) file(t *testing.T, name string) map[string]string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(r.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	entries := map[string]string{}
	lines := strings.Split(string(data), "\n")
	for i := 0; i < len(lines); i++ {
		key, delimiter, ok := strings.Cut(lines[i], "<<")
		if !ok {
			continue
		}
		var value []string
		for i++; i < len(lines) && lines[i] != delimiter; i++ {
			value = append(value, lines[i])
		}
		entries[key] = strings.Join(value, "\n")
	}
	return entries
}

// The action's modes other than the proxy, and the messages for wrong inputs.
func TestActionModes(t *testing.T) {
	t.Parallel()
	needRoot(t)
	needNode(t)
	s := startStack(t, "--engine-cmd", "/bin/false", "--engine-socket", "/nowhere.sock")
	job := []string{
		"PATH=" + s.env["MAYFLY_BIN"] + string(filepath.ListSeparator) + os.Getenv("PATH"),
		"ACTIONS_ID_TOKEN_REQUEST_URL=" + s.env["ACTIONS_ID_TOKEN_REQUEST_URL"],
		"ACTIONS_ID_TOKEN_REQUEST_TOKEN=" + s.env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"],
	}
	inputs := func(more ...string) map[string]string {
		m := map[string]string{"issuer": s.env["MAYFLY_ISSUER"], "ca-file": s.env["MAYFLY_CA_FILE"], "version": "path"}
		for i := 0; i < len(more); i += 2 {
			m[more[i]] = more[i+1]
		}
		m["wake"] = "false" // this test has no engine
		return m
	}

	anchor := "sha256:" + strings.Repeat("ab", 32)

	t.Run("files", func(t *testing.T) {
		r := newRunner(t, job...)
		if out, err := r.node(t, "main.js", inputs("mode", "files")); err != nil {
			t.Fatalf("main.js: %v\n%s", err, out)
		}
		got := r.file(t, "GITHUB_OUTPUT")
		for _, name := range []string{"key.pem", "cert.pem", "ca.pem"} {
			info, err := os.Stat(filepath.Join(got["certificate"], name))
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", name, info, err)
			}
		}
		if len(got["serial"]) != 32 || !strings.HasPrefix(got["runner-host"], "tls://") || r.file(t, "GITHUB_ENV")["BUILDKIT_HOST"] != got["buildkit-host"] {
			t.Errorf("outputs = %v", got)
		}
		if out, err := r.node(t, "post.js", nil); err != nil || strings.Contains(out, "::warning") {
			t.Errorf("post.js: %v\n%s", err, out)
		}
		if _, err := os.Stat(got["certificate"]); !os.IsNotExist(err) {
			t.Errorf("the key is still there after the job: %v", err)
		}
	})
	t.Run("none", func(t *testing.T) {
		r := newRunner(t, job...)
		out, err := r.node(t, "main.js", inputs("mode", "none", "trust-anchor", anchor))
		path, _ := os.ReadFile(filepath.Join(r.dir, "GITHUB_PATH"))
		want := map[string]string{"MAYFLY_ISSUER": s.env["MAYFLY_ISSUER"], "MAYFLY_CA_FILE": s.env["MAYFLY_CA_FILE"], "MAYFLY_TRUST_ANCHOR": anchor}
		if d := cmp.Diff(want, r.file(t, "GITHUB_ENV")); err != nil || string(path) != "" || d != "" {
			t.Errorf("main.js: %v, PATH, which has it, gets %q, the environment %s\n%s", err, path, d, out)
		}
		if out, err := r.node(t, "post.js", nil); err != nil || strings.Contains(out, "::") {
			t.Errorf("post.js: %v\n%s", err, out)
		}
	})
	t.Run("killed", func(t *testing.T) {
		r := newRunner(t, job...)
		if out, err := r.node(t, "main.js", inputs()); err != nil {
			t.Fatalf("main.js: %v\n%s", err, out)
		}
		pid := r.pid(t)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		waitGone(t, pid)
		out, err := r.node(t, "post.js", nil)
		if err != nil || !strings.Contains(out, "::warning title=mayfly::the tunnel had ended before the job did") || !strings.Contains(out, "rule: app-main") {
			t.Errorf("post.js: %v\n%s", err, out)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		// The issuer accepts the call and does not answer; the runner kills the
		// step.
		silent, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		r := newRunner(t, job...)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		cmd := r.command(t, ctx, "main.js", inputs("issuer", "http://"+silent.Addr().String()))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if c, err := silent.Accept(); err != nil {
			t.Fatal(err)
		} else {
			defer c.Close()
		}
		pid := r.pid(t)
		cancel()
		cmd.Wait()
		if err := syscall.Kill(pid, 0); err != nil {
			t.Fatalf("mayfly has ended by itself: %v", err)
		}
		out, err := r.node(t, "post.js", nil)
		if err != nil || strings.Contains(out, "::warning") {
			t.Errorf("post.js: %v\n%s", err, out)
		}
		waitGone(t, pid)
	})
	for name, tc := range map[string]struct {
		env    []string
		inputs map[string]string
		want   string
	}{
		"no permission":   {env: []string{"ACTIONS_ID_TOKEN_REQUEST_URL="}, inputs: inputs(), want: "id-token: write"},
		"no issuer":       {inputs: inputs("issuer", ""), want: "input issuer is empty"},
		"unknown mode":    {inputs: inputs("mode", "socket"), want: "none of proxy, files, none"},
		"unknown version": {inputs: inputs("version", "latest"), want: "no release such as v1.2.3"},
		"unpinned":        {inputs: inputs("version", "v9.9.9"), want: "pins no checksum"},
		"nothing is left": {inputs: inputs("mode", "none", "export-env", "false"), want: "leave one of the two out"},
		"no boolean":      {inputs: inputs("export-env", "yes"), want: "neither true nor false"},
		"another engine":  {inputs: inputs("engine", "other"), want: "engine"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRunner(t, append(append([]string(nil), job...), tc.env...)...)
			out, err := r.node(t, "main.js", tc.inputs)
			if err == nil || !strings.Contains(out, "::error") || !strings.Contains(out, tc.want) {
				t.Errorf("main.js: %v, want %q\n%s", err, tc.want, out)
			}
			if strings.Contains(strings.ReplaceAll(out, "::add-mask::"+s.env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"], ""), s.env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"]) {
				t.Error("the request token is in the log")
			}
			if out, err := r.node(t, "post.js", nil); err != nil {
				t.Errorf("post.js: %v\n%s", err, out)
			}
		})
	}
}
