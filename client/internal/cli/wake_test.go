package cli_test

import (
	"crypto/x509"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/wire"
)

func TestWake(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	o := s.run("wake")
	o.check(t, 0, "waking engine default at tcp://127.0.0.1:", "engine default is awake after ")
	if o.stdout != "" {
		t.Errorf("stdout: %s", o.stdout)
	}
	o = s.run("--json", "wake")
	var line map[string]any
	if err := json.Unmarshal([]byte(o.stdout), &line); err != nil || o.code != 0 {
		t.Fatalf("%v: %+v", err, o)
	}
	if ms, ok := line["wake_ms"].(float64); !ok || ms < 0 || line["engine"] != "default" || line["serial"] == "" || !strings.HasPrefix(line["endpoint"].(string), "tcp://") {
		t.Errorf("%v", line)
	}
	s.set(func() { s.verdict = wire.ReasonRevoked })
	s.run("wake").check(t, 5, "certificate revoked, serial ")
}

// exec waits for a sleeping engine before it runs the command, which may give up
// earlier than the machine needs. --no-wait runs the command at once.
func TestExecWakes(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	ran := filepath.Join(shortDir(t), "ran")
	touch := []string{"--", "touch", ran}
	command := func(flags ...string) outcome {
		return s.run(append(append([]string{"exec", "--wake-timeout", "1s"}, flags...), touch...)...)
	}
	address := s.engine.Addr().String()
	s.engine.Close()
	command().check(t, 5, "waking engine default", "did not answer within")
	if _, err := os.Stat(ran); err == nil {
		t.Error("the command was run without an engine")
	}
	command("--no-wait").check(t, 0)
	if _, err := os.Stat(ran); err != nil {
		t.Errorf("--no-wait: %v", err)
	}
	if left := s.folders(); len(left) > 0 {
		t.Errorf("folders were left: %v", left)
	}

	// A signal ends the wait, and no folder is left.
	waiting, said := s.start("waking engine default", "exec", "--", "true")
	waiting.Process.Signal(syscall.SIGINT)
	waiting.Wait()
	if code := waiting.ProcessState.ExitCode(); code != 1 || len(s.folders()) > 0 {
		t.Errorf("interrupted: code %d, folders %v\n%s", code, s.folders(), said)
	}

	// The engine wakes during the wait.
	s.set(func() { s.endpoint = "tcp://" + address })
	cmd, out := s.start("waking engine default", "exec", "--", "dialer", "echo")
	s.set(func() { s.startEngineAt(address) })
	if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), "engine default is awake after ") || !strings.Contains(out.String(), "through the tunnel") {
		t.Errorf("%v\n%s", err, out)
	}
}

// startEngineAt starts the engine at its former address.
func (s *stand) startEngineAt(address string) {
	s.tb.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		s.tb.Fatal(err)
	}
	s.serveOn(ln, clienttest.Leaf{ID: "/engine/default/fly/1/m", DNS: []string{standServer}, Usage: x509.ExtKeyUsageServerAuth}, s.ca.Roots())
}

// With --wake, proxy and cert print nothing about a tunnel or files before the engine
// is awake.
func TestProxyAndCertWake(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	dir := filepath.Join(shortDir(t), "certificate")
	s.run("cert", "--wake", "--out", dir).check(t, 0, "engine default is awake after ")
	cmd, out := s.start("export BUILDKIT_HOST=", "proxy", "--wake")
	if text := out.String(); !strings.Contains(text, "engine default is awake after ") || strings.Index(text, "is awake") > strings.Index(text, "export") {
		t.Errorf("order:\n%s", text)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Wait()

	s.engine.Close()
	other := filepath.Join(shortDir(t), "certificate")
	begun := time.Now()
	for _, args := range [][]string{{"proxy", "--wake", "--wake-timeout", "1s"}, {"cert", "--wake", "--wake-timeout", "1s", "--out", other}} {
		o := s.run(args...)
		o.check(t, 5, "waking engine default", "did not answer within")
		if o.stdout != "" {
			t.Errorf("%s prints\n%s", args[0], o.stdout)
		}
	}
	if _, err := os.Stat(filepath.Join(other, "key.pem")); err == nil {
		t.Error("cert wrote a key and then failed")
	}
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}
