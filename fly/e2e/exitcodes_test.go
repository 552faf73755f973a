package e2e

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// Every end of the three programs, with a real issuer and a real sidecar, has its
// exit code of `help exit-codes`. Every code of that page is tested.
func TestExitCodes(t *testing.T) {
	t.Parallel()
	w := newEnds(t)
	job := w.job(nil)
	evil := w.job(map[string]any{"ref": "refs/heads/evil"})
	seen := map[int]bool{}
	check := func(t *testing.T, want int, env []string, program string, args ...string) {
		t.Helper()
		code, said := w.run(env, program, args...)
		if code != want {
			t.Errorf("%s %s: exit code %d, want %d\n%s", program, strings.Join(args, " "), code, want, said)
		}
		if want <= 5 {
			seen[want] = true
		}
		if want != 0 && want <= 5 && program != "mayfly-sidecar" && !strings.Contains(said, program+": error: ") && !strings.Contains(said, "denied:") {
			t.Errorf("%s %s ended with %d and said nothing of it:\n%s", program, strings.Join(args, " "), code, said)
		}
	}
	with := func(env []string, more ...string) []string { return append(slices.Clone(env), more...) }

	check(t, 0, job, "mayfly", "version")
	check(t, 0, job, "mayfly", "exec", "--", "true")
	check(t, 7, job, "mayfly", "exec", "--", "sh", "-c", "exit 7")
	check(t, 128+9, job, "mayfly", "exec", "--", "sh", "-c", "kill -9 $$")
	check(t, 0, job, "mayfly", "doctor")
	check(t, 1, with(job, "ACTIONS_ID_TOKEN_REQUEST_URL="), "mayfly", "exec", "--", "true")
	check(t, 1, job, "mayfly", "exec", "--", "no-such-program")
	check(t, 2, job, "mayfly", "exec")
	check(t, 2, job, "mayfly", "no-such-command")
	check(t, 2, with(job, "MAYFLY_ISSUER="), "mayfly", "doctor")
	check(t, 3, evil, "mayfly", "exec", "--", "true")
	check(t, 3, evil, "mayfly", "proxy")
	check(t, 3, job, "mayfly", "wake", "--engine", "nope")
	check(t, 4, with(job, "MAYFLY_ISSUER=https://issuer.invalid"), "mayfly", "exec", "--", "true")
	check(t, 4, with(job, "MAYFLY_ISSUER=http://"+w.closed), "mayfly", "doctor")
	check(t, 4, with(job, "MAYFLY_ISSUER=http://"+w.closed, "MAYFLY_ADMIN_TOKEN=x"), "mayfly", "certs", "list")

	check(t, 0, nil, "mayfly-issuer", "version")
	check(t, 1, nil, "mayfly-issuer", "serve", "--config", "no-such-file.yaml")
	check(t, 2, nil, "mayfly-issuer", "serve")
	check(t, 0, nil, "mayfly-issuer", "policy", "explain", w.issuer.PolicyFile, "--claims", w.file(t, "main.json", w.claims("refs/heads/main")))
	check(t, 3, nil, "mayfly-issuer", "policy", "explain", w.issuer.PolicyFile, "--claims", w.file(t, "evil.json", w.claims("refs/heads/evil")))

	sidecar := func(lines string) string { return w.file(t, "sidecar-test.yaml", w.config+lines) }
	check(t, 0, nil, "mayfly-sidecar", "check", "--config", sidecar(""))
	check(t, 1, nil, "mayfly-sidecar", "check", "--config", sidecar("engin: default\n"))
	check(t, 2, nil, "mayfly-sidecar", "run", "--no-such-flag")
	own := "unsafe_no_isolation: true\nlisten: 127.0.0.1:0\n"
	check(t, 1, nil, "mayfly-sidecar", "run", "--config", sidecar(own), "--", "no-such-program")
	check(t, 7, nil, "mayfly-sidecar", "run", "--config", sidecar(own), "--", "sh", "-c", "exit 7")
	check(t, 128+9, nil, "mayfly-sidecar", "run", "--config", sidecar(own), "--", "sh", "-c", "kill -9 $$")
	check(t, 1, nil, "mayfly-sidecar", "run", "--config", sidecar("boot_timeout: 1s\nengine_socket: /no/such.sock\nlisten: 127.0.0.1:0\n"))

	if code := w.stop(); code != 0 {
		t.Errorf("mayfly-sidecar run ended with %d after a stop", code)
	}
	check(t, 5, job, "mayfly", "exec", "--wake-timeout", "1s", "--", "true")
	check(t, 5, job, "mayfly", "wake", "--wake-timeout", "1s")

	var table string
	for _, program := range []string{"mayfly", "mayfly-issuer", "mayfly-sidecar"} {
		code, text := w.run(nil, program, "help", "exit-codes")
		if table == "" {
			table = text
		}
		if code != 0 || text != table {
			t.Errorf("%s help exit-codes: %d\n%s", program, code, text)
		}
	}
	listed := map[int]bool{}
	for _, m := range regexp.MustCompile(`(?m)^  (\d+)  `).FindAllStringSubmatch(table, -1) {
		n, _ := strconv.Atoi(m[1]) // digits
		listed[n] = true
	}
	if !maps.Equal(seen, listed) {
		t.Errorf("seen %v, and the table has %v:\n%s", seen, listed, table)
	}
}

// programEnds is an issuer, and a sidecar in front of a socket that accepts and
// closes connections.
type programEnds struct {
	t              *testing.T
	issuer         *issuertest.Issuer
	config, closed string
	stop           func() int
}

func newEnds(t *testing.T) *programEnds {
	t.Helper()
	free := func() string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		return ln.Addr().String()
	}
	listen := free()
	w := &programEnds{t: t, closed: free(), issuer: issuertest.Start(t, issuertest.Options{Endpoint: "tcp://" + listen})}
	dir, err := os.MkdirTemp("/tmp", "mfe") // a short path for the socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "engine.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(io.Discard, c)
			}()
		}
	}()
	w.config = fmt.Sprintf("issuer: %s\nca_file: %s\nengine: default\nengine_probe: connect\ntoken_source: file:%s\n",
		w.issuer.URL, w.issuer.CAFile, w.file(t, "token", w.issuer.FlyToken(nil)))
	w.stop = w.startSidecar(w.file(t, "sidecar.yaml", w.config+"listen: "+listen+"\nengine_socket: "+socket+"\n"))
	return w
}

// startSidecar starts the sidecar. The returned function stops it and returns its
// exit code. The test's end also stops it.
func (w *programEnds) startSidecar(config string) func() int {
	w.t.Helper()
	cmd := exec.Command(filepath.Join(programs(w.t), "mayfly-sidecar"), "run", "--config", config)
	var log buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var exit *exec.ExitError
		if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
			w.t.Error(err)
		}
	}()
	stop := func() int {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
		<-ended
		return cmd.ProcessState.ExitCode()
	}
	w.t.Cleanup(func() { stop() })
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(log.String(), `"msg":"listening"`); <-tick.C {
		select {
		case <-ended:
			w.t.Fatalf("the sidecar ended:\n%s", log.String())
		default:
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("the sidecar does not listen:\n%s", log.String())
		}
	}
	return stop
}

// file writes a file for this test.
func (w *programEnds) file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// claims returns the claims of a push to ref.
func (w *programEnds) claims(ref string) string {
	return fmt.Sprintf(`{"iss":%q,"sub":"repo:acme/app","repository":"acme/app","repository_owner":"acme","repository_owner_id":%q,"repository_id":%q,"ref":%q,"event_name":"push","run_id":"1","run_attempt":"1"}`,
		w.issuer.GitHub.URL(), issuertest.OwnerID, issuertest.RepositoryID, ref)
}

// job returns the environment of a job whose token has these claims.
func (w *programEnds) job(claims map[string]any) []string {
	j := w.issuer.GitHub.NewJob(claims)
	return []string{
		"MAYFLY_ISSUER=" + w.issuer.URL, "MAYFLY_CA_FILE=" + w.issuer.CAFile, "MAYFLY_TRUST_ANCHOR=" + w.issuer.TrustAnchor,
		"ACTIONS_ID_TOKEN_REQUEST_URL=" + j.RequestURL, "ACTIONS_ID_TOKEN_REQUEST_TOKEN=" + j.RequestToken,
	}
}

// run runs a program in this environment, and returns its exit code and its whole
// output.
func (w *programEnds) run(env []string, program string, args ...string) (int, string) {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), filepath.Join(programs(w.t), program), args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + w.t.TempDir(), "TMPDIR=/tmp"}, env...)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		w.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}
