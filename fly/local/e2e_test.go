package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// The test binary is also two other programs, as local itself is: the OCI runtime
// shim for a runc without seccomp, and a program that go run has started.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case runcShimName:
		fmt.Fprintln(os.Stderr, runcShim(os.Args))
		os.Exit(1)
	case watchedName:
		ctx, end := context.WithTimeout(context.Background(), time.Minute)
		parent := startedByGoRun()
		fmt.Println("up")
		parent.watch(ctx, end)
		fmt.Println(ctx.Err())
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// wantRoot skips the test where no engine can run, and says what to do.
func wantRoot(t *testing.T) {
	t.Helper()
	if runtime.GOOS == "linux" && os.Geteuid() == 0 {
		return
	}
	if os.Getenv("MAYFLY_TEST_REQUIRE") == "all" {
		t.Fatal("a real engine wants root on Linux: run the tests with sudo")
	}
	t.Skip("a real engine wants root on Linux: run the tests with sudo")
}

// The README's first command: a real build through a tunnel, and a second build
// that ends when its certificate is revoked.
func TestDemonstration(t *testing.T) {
	wantRoot(t)
	before := leftovers(t)
	var stdout bytes.Buffer
	progress := &tee{t: t}
	if code := run(t.Context(), []string{"--json"}, &stdout, progress); code != 0 {
		t.Fatalf("exit code %d\n%s", code, progress.String())
	}
	var got report
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatalf("%v: %s", err, stdout.String())
	}
	var names []string
	for _, s := range got.Steps {
		names = append(names, s.Name)
		if !s.OK {
			t.Errorf("step %s: %s", s.Name, s.Error)
		}
	}
	if want := "tools oidc issuer machine token build list revoke"; strings.Join(names, " ") != want {
		t.Errorf("steps %q, want %q", names, want)
	}
	if !got.OK || len(got.Serial) != 32 || got.Rule != "app-main" || got.RevokeCutMS < 1 {
		t.Errorf("report = %+v", got)
	}
	for _, want := range []string{"no /.fly/api in reach", "certificate revoked"} {
		if !strings.Contains(progress.String(), want) {
			t.Errorf("the output lacks %q", want)
		}
	}
	for _, left := range leftovers(t) {
		if !slices.Contains(before, left) {
			t.Errorf("left behind: %s", left)
		}
	}
}

// leftovers returns this process's folders, mounts and control groups.
func leftovers(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, folder := range []string{os.TempDir(), "/sys/fs/cgroup", "/sys/fs/cgroup/*", "/sys/fs/cgroup/*/*"} {
		match, err := filepath.Glob(filepath.Join(folder, ownName+"*"))
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, match...)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, ownName) {
			found = append(found, line)
		}
	}
	return found
}

// The user's own command runs after the engine is awake and gets the tunnel's
// variables. Its exit code is returned.
func TestCommandInTheTunnel(t *testing.T) {
	wantRoot(t)
	t.Parallel()
	out := filepath.Join(t.TempDir(), "env")
	code := run(t.Context(), []string{"--", "sh", "-c", `echo "$BUILDKIT_HOST" "$_EXPERIMENTAL_DAGGER_RUNNER_HOST" >"$0"; exit 7`, out}, io.Discard, &tee{t: t})
	if code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if fields := strings.Fields(string(data)); len(fields) != 2 || !strings.HasPrefix(fields[0], "unix:///") || fields[0] != fields[1] {
		t.Errorf("the command's environment has %q", data)
	}
}

// --keep writes to DIR/env how to reach each part, restarts a killed issuer, and
// leaves an empty folder.
func TestKeep(t *testing.T) {
	wantRoot(t)
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "keep")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"--keep", "--dir", dir, "--engine-cmd", "/bin/false", "--engine-socket", "/nowhere.sock"}, io.Discard, &tee{t: t})
	}()
	env := waitEnv(t, dir, "", ended)
	info, err := os.Stat(filepath.Join(dir, "env"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("env: %v, %v", info, err)
	}
	asks(t, env)
	first := env["ISSUER_PID"]
	if err := exec.Command("kill", "-KILL", first).Run(); err != nil {
		t.Fatal(err)
	}
	asks(t, waitEnv(t, dir, first, ended))
	stop()
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d", code)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left in --dir: %v, %v", left, err)
	}
}

// waitEnv waits for the DIR/env of an issuer other than pid, and reads it as a
// shell does.
func waitEnv(t *testing.T, dir, pid string, ended <-chan int) map[string]string {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); {
		out, err := exec.Command("sh", "-c", `. "$0/env" 2>/dev/null && env -0`, dir).Output()
		if err == nil {
			env := map[string]string{}
			for kv := range strings.SplitSeq(string(out), "\x00") {
				name, value, _ := strings.Cut(kv, "=")
				env[name] = value
			}
			if env["ISSUER_PID"] != pid {
				return env
			}
		}
		select {
		case code := <-ended:
			t.Fatalf("ended with %d before DIR/env was written", code)
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Fatal("no DIR/env")
	return nil
}

// asks checks the servers in DIR/env: the stand-ins mint for this issuer, and the
// admin's token can list certificates.
func asks(t *testing.T, env map[string]string) {
	t.Helper()
	for _, base := range []string{env["GITHUB_OIDC"], env["FLY_OIDC"]} {
		mint, err := http.Post(base+"/mint", "application/json", strings.NewReader(`{}`))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(mint.Body)
		if err := errors.Join(err, mint.Body.Close()); err != nil || mint.StatusCode != http.StatusOK {
			t.Fatalf("mint: %s, %v", mint.Status, err)
		}
		_, payload, _ := strings.Cut(string(raw), ".")
		payload, _, _ = strings.Cut(payload, ".")
		claims, err := base64.RawURLEncoding.DecodeString(payload)
		if err != nil || !strings.Contains(string(claims), `"`+env["MAYFLY_AUDIENCE"]+`"`) {
			t.Errorf("%s mints %s, %v", base, claims, err)
		}
	}
	cmd := exec.Command(filepath.Join(env["MAYFLY_BIN"], "mayfly"), "certs", "list", "--json")
	cmd.Env = append(os.Environ(), "MAYFLY_ISSUER="+env["MAYFLY_ISSUER"], "MAYFLY_CA_FILE="+env["MAYFLY_CA_FILE"], "MAYFLY_ADMIN_TOKEN="+env["MAYFLY_ADMIN_TOKEN"])
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), `"items"`) {
		t.Errorf("mayfly certs list: %v: %s", err, out)
	}
}

// tee keeps output for assertions and also writes it to the test's log.
type tee struct {
	t    *testing.T
	kept bytes.Buffer
}

func (w *tee) Write(p []byte) (int, error) {
	w.kept.Write(p)
	w.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

func (w *tee) String() string { return w.kept.String() }
