package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// runner is the folder of files that GitHub's runner gives a step.
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

// node runs a script of the action with inputs, and with the state that an
// earlier one saved.
func (r *runner) node(t *testing.T, script string, inputs map[string]string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "node", filepath.Join(r.action, script))
	cmd.Env = r.env
	for name, value := range inputs {
		cmd.Env = append(cmd.Env, "INPUT_"+strings.ToUpper(name)+"="+value)
	}
	for name, value := range r.file(t, "GITHUB_STATE") {
		cmd.Env = append(cmd.Env, "STATE_"+name+"="+value)
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// file reads a file of NAME<<DELIMITER entries, as the runner does.
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

// The action's modes beside the proxy, and what a person reads of wrong inputs.
func TestActionModes(t *testing.T) {
	needRoot(t)
	_, err := exec.LookPath("node")
	need(t, err == nil, "the action is JavaScript: apt-get install nodejs")
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
		return m
	}

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
		out, err := r.node(t, "main.js", inputs("mode", "none"))
		path, _ := os.ReadFile(filepath.Join(r.dir, "GITHUB_PATH"))
		if err != nil || strings.TrimSpace(string(path)) != s.env["MAYFLY_BIN"] || len(r.file(t, "GITHUB_ENV")) != 0 {
			t.Errorf("main.js: %v, PATH gets %q\n%s", err, path, out)
		}
		if out, err := r.node(t, "post.js", nil); err != nil || strings.Contains(out, "::") {
			t.Errorf("post.js: %v\n%s", err, out)
		}
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
