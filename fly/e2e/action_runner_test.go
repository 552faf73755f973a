package e2e

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// standIn is a false mayfly. It prints its arguments, waits for a file "awake" next
// to it, opens no tunnel, and reports one connection at its end.
const standIn = `#!/bin/sh
echo "mayfly: called with $*" >&2
while [ $# -gt 0 ]; do [ "$1" = --report ] && report=$2; shift; done
trap 'echo "{\"connections\":1,\"bytes_out\":12,\"bytes_in\":34,\"wake_ms\":5600,\"reason\":\"stopped\"}" >"$report"; exit 0' TERM
until [ -e "${0%/*}/awake" ]; do sleep 0.02; done
echo '{"runner_host":"unix:///x","buildkit_host":"unix:///x","engine":"default","serial":"5f","identity":"spiffe://td/github/1/2","rule":"app-main","expires_at":"2026-01-01T00:00:00Z"}'
while :; do sleep 0.02; done
`

// newStandIn makes a runner with the stand-in in PATH, after the folders of extra,
// and returns the path of the file that the stand-in waits for.
func newStandIn(t *testing.T, extra ...string) (r *runner, awake string) {
	t.Helper()
	needNode(t)
	bin := t.TempDir()
	program(t, filepath.Join(bin, "mayfly"), standIn)
	path := strings.Join(append(append(extra, bin), os.Getenv("PATH")), string(filepath.ListSeparator))
	return newRunner(t, "PATH="+path, "ACTIONS_ID_TOKEN_REQUEST_URL=https://example.com", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=job-secret"), filepath.Join(bin, "awake")
}

func program(t *testing.T, path, text string) {
	t.Helper()
	writeFile(t, path, text)
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
}

var standInInputs = map[string]string{"issuer": "https://issuer.example.com", "version": "path"}

// main runs the main step with the stand-in's inputs and more.
func (r *runner) main(t *testing.T, more ...string) string {
	t.Helper()
	inputs := map[string]string{}
	for name, value := range standInInputs {
		inputs[name] = value
	}
	for i := 0; i < len(more); i += 2 {
		inputs[more[i]] = more[i+1]
	}
	out, err := r.node(t, "main.js", inputs)
	if err != nil {
		t.Fatalf("main.js: %v\n%s", err, out)
	}
	return out
}

// post runs the post step and checks that the stand-in has ended.
func (r *runner) post(t *testing.T) string {
	t.Helper()
	pid := r.pid(t)
	out, err := r.node(t, "post.js", nil)
	if err != nil {
		t.Fatalf("post.js: %v\n%s", err, out)
	}
	waitGone(t, pid)
	return out
}

// The post step stops the tunnel and reports its bytes wherever a job runs: in an
// Alpine container, whose ps has none of the flags, and on a system without /proc.
func TestActionPostFindsTheTunnel(t *testing.T) {
	t.Parallel()
	busybox, err := exec.LookPath("busybox")
	need(t, err == nil, "it asks as an Alpine container does: apt-get install busybox")
	alpine := t.TempDir()
	program(t, filepath.Join(alpine, "ps"), "#!/bin/sh\nexec "+busybox+" ps \"$@\"\n")
	noProc := filepath.Join(t.TempDir(), "noproc.js")
	writeFile(t, noProc, `const fs = require('node:fs');
const { existsSync, readFileSync } = fs;
fs.existsSync = (file) => !String(file).startsWith('/proc/') && existsSync(file);
fs.readFileSync = (file, ...more) => {
  if (String(file).startsWith('/proc/')) throw new Error('there is no /proc');
  return readFileSync(file, ...more);
};
`)
	for _, tt := range []struct {
		name, path, env string
	}{
		{"Alpine", alpine, ""},
		{"without ps", t.TempDir(), ""},
		{"without /proc", t.TempDir(), "NODE_OPTIONS=--require=" + noProc},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, awake := newStandIn(t, tt.path)
			writeFile(t, awake, "")
			r.env = append(r.env, tt.env)
			if tt.name == "without ps" {
				program(t, filepath.Join(tt.path, "ps"), "#!/bin/sh\nexit 127\n")
			}
			r.main(t)
			out := r.post(t)
			for _, want := range []string{"connections: 1", "bytes sent: 12 B", "bytes received: 34 B", "time to wake: 5.6 s", "ended by: the end of the job"} {
				if !strings.Contains(out, want) {
					t.Errorf("the post step does not say %q:\n%s", want, out)
				}
			}
			if strings.Contains(out, "::warning") {
				t.Errorf("the post step warns:\n%s", out)
			}
		})
	}
}

// The post step does not end another process that now has the tunnel's process id.
func TestActionPostSparesOthers(t *testing.T) {
	t.Parallel()
	r, awake := newStandIn(t)
	writeFile(t, awake, "")
	r.main(t)
	r.post(t)
	other := exec.CommandContext(t.Context(), "sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	cmd := r.command(t, t.Context(), "post.js", nil)
	cmd.Env = append(cmd.Env, "STATE_pid="+strconv.Itoa(other.Process.Pid))
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "had ended before the job did") {
		t.Errorf("post.js: %v\n%s", err, out)
	}
	if err := other.Process.Kill(); err != nil { // an error if it has ended already
		t.Error(err)
	}
	other.Wait()
}

// If RUNNER_TEMP cannot hold a socket, the action uses another folder.
func TestActionFolder(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	folder := func(name string, mode os.FileMode) string {
		dir := filepath.Join(parent, name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	foreign := folder("foreign", 0o777|os.ModeSticky)
	if os.Getuid() == 0 {
		if err := os.Chown(foreign, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	} else if err := os.Chmod(foreign, 0o555); err != nil {
		t.Fatal(err)
	}
	good := folder("good", 0o700)
	for _, tt := range []struct{ name, temp, tmp, want string }{
		{"good", good, "/nowhere", good},
		{"long", folder(strings.Repeat("l", 60), 0o700), good, good},
		{"a space", folder("a b", 0o700), good, good},
		{"not ASCII", folder("größe", 0o700), good, good},
		{"another user's", foreign, good, good},
		{"open to others", folder("open", 0o777), good, good},
		{"neither", folder("a#b", 0o700), folder("a,b", 0o700), "/tmp"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, awake := newStandIn(t)
			writeFile(t, awake, "")
			r.env = append(r.env, "RUNNER_TEMP="+tt.temp, "TMPDIR="+tt.tmp)
			out := r.main(t)
			made := r.file(t, "GITHUB_STATE")["folder"]
			if filepath.Dir(made) != tt.want || !strings.Contains(out, "--listen unix:"+made+"/engine.sock") {
				t.Errorf("the folder is %s, want one in %s\n%s", made, tt.want, out)
			}
			if fi, err := os.Stat(made); err != nil || fi.Mode().Perm() != 0o700 {
				t.Errorf("%v, %v", fi, err)
			}
			if moved := strings.Contains(out, "cannot hold the tunnel's socket"); moved != (tt.want != tt.temp) {
				t.Errorf("says that it moved: %v\n%s", moved, out)
			}
			r.post(t)
			if _, err := os.Stat(made); err == nil {
				t.Errorf("%s was left", made)
			}
		})
	}
}

// The step waits for the engine, and meanwhile shows why it waits.
func TestActionWakes(t *testing.T) {
	t.Parallel()
	r, awake := newStandIn(t)
	cmd := r.command(t, t.Context(), "main.js", standInInputs)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "mayfly: called with") {
	}
	if said := lines.Text(); !strings.Contains(said, " --wake") {
		t.Errorf("it says before the engine is awake: %q", said)
	}
	if env := r.file(t, "GITHUB_ENV"); env["MAYFLY_ISSUER"] != "https://issuer.example.com" || env["BUILDKIT_HOST"] != "" {
		t.Errorf("before the engine is awake later steps have %v", env)
	}
	writeFile(t, awake, "")
	rest, _ := io.ReadAll(out)
	if err := cmd.Wait(); err != nil || strings.Contains(string(rest), "called with") {
		t.Errorf("%v; said twice or failed:\n%s", err, rest)
	}
	r.post(t)

	r, awake = newStandIn(t)
	writeFile(t, awake, "")
	if out := r.main(t, "wake", "false"); strings.Contains(out, "--wake") {
		t.Errorf("wake: false\n%s", out)
	}
	r.post(t)
}

// With export-env: false, later steps get only the outputs.
func TestActionExports(t *testing.T) {
	t.Parallel()
	anchor := "sha256:" + strings.Repeat("ab", 32)
	for _, tt := range []struct {
		export string
		want   map[string]string
	}{
		{"true", map[string]string{
			"MAYFLY_ISSUER": "https://issuer.example.com", "MAYFLY_TRUST_ANCHOR": anchor, "MAYFLY_AUDIENCE": "mayfly:ci.example.com",
			"BUILDKIT_HOST": "unix:///x", "_EXPERIMENTAL_DAGGER_RUNNER_HOST": "unix:///x",
		}},
		{"false", map[string]string{}},
	} {
		r, awake := newStandIn(t)
		writeFile(t, awake, "")
		r.main(t, "trust-anchor", anchor, "audience", "mayfly:ci.example.com", "export-env", tt.export)
		if d := cmp.Diff(tt.want, r.file(t, "GITHUB_ENV")); d != "" {
			t.Errorf("export-env: %s: %s", tt.export, d)
		}
		if got := r.file(t, "GITHUB_OUTPUT")["buildkit-host"]; got != "unix:///x" {
			t.Errorf("export-env: %s: output buildkit-host is %q", tt.export, got)
		}
		r.post(t)
	}
}
