package cli_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// syncBuffer collects output and closes seen when the output contains want.
type syncBuffer struct {
	mu   sync.Mutex
	b    bytes.Buffer
	want []byte
	seen chan struct{}
	done bool
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.b.Write(p)
	if !s.done && bytes.Contains(s.b.Bytes(), s.want) {
		s.done = true
		close(s.seen)
	}
	return n, err
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// jsonLine parses the first line of out that is a JSON object.
func jsonLine(t *testing.T, out string, into any) {
	t.Helper()
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "{") {
			if err := json.Unmarshal([]byte(line), into); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("no JSON in:\n%s", out)
}

func runnerHost(t *testing.T, out *syncBuffer) string {
	t.Helper()
	var line struct {
		RunnerHost string `json:"runner_host"`
	}
	for range 200 {
		if strings.Contains(out.String(), "runner_host") {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	jsonLine(t, out.String(), &line)
	return line.RunnerHost
}

func TestProxyReports(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	dir := shortDir(t)
	socket, report, pid := filepath.Join(dir, "engine.sock"), filepath.Join(dir, "report.json"), filepath.Join(dir, "pid")
	cmd, out := s.start("runner_host", "--json", "proxy", "--listen", "unix:"+socket, "--report", report, "--pid-file", pid)
	var line map[string]any
	jsonLine(t, out.String(), &line)
	for _, k := range []string{"runner_host", "buildkit_host", "serial", "expires_at", "rule", "identity", "engine"} {
		if line[k] == nil || line[k] == "" {
			t.Errorf("the line lacks %s: %v", k, line)
		}
	}
	if line["runner_host"] != "unix://"+socket {
		t.Errorf("runner_host %v", line["runner_host"])
	}
	if b, err := os.ReadFile(pid); err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(cmd.Process.Pid) {
		t.Errorf("pid file: %q, %v", b, err)
	}
	if fi, err := os.Stat(socket); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", fi, err)
	}
	if err := echo(socket); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("code %d\n%s", code, out)
	}
	b, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	var r map[string]any
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]any{"connections": 1.0, "bytes_out": 1.0, "bytes_in": 1.0, "certificates": 1.0, "rule": "app-main", "serial": line["serial"], "reason": "stopped"} {
		if r[k] != want {
			t.Errorf("report: %s is %v, want %v", k, r[k], want)
		}
	}
	for _, gone := range []string{socket, pid} {
		if _, err := os.Stat(gone); !os.IsNotExist(err) {
			t.Errorf("%s is still there", gone)
		}
	}
}

func TestProxyEndsWhenRefused(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.set(func() { s.cut = wire.ReasonRevoked })
	dir := shortDir(t)
	socket, report := filepath.Join(dir, "engine.sock"), filepath.Join(dir, "report.json")
	cmd, out := s.start("export BUILDKIT_HOST=", "proxy", "--listen", "unix:"+socket, "--report", report)
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.Copy(io.Discard, c) // until the engine cuts it
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 5 || !strings.Contains(out.String(), "certificate revoked") {
		t.Errorf("code %d\n%s", code, out)
	}
	if b, err := os.ReadFile(report); err != nil || !bytes.Contains(b, []byte("certificate revoked")) {
		t.Errorf("report %s, %v", b, err)
	}
}

func TestProxyRefusesAddresses(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	taken := filepath.Join(shortDir(t), "file")
	if err := os.WriteFile(taken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"tcp:0.0.0.0:0", "tcp:192.0.2.1:80", "tcp::0", "tcp:localhost:0", "udp:127.0.0.1:0", "unix:", "unix:" + taken, "unix:/" + strings.Repeat("x", 120)} {
		s.run("proxy", "--listen", at).check(t, 2, "listen")
	}
	if n := s.count(wire.PathCertificates); n > 0 {
		t.Errorf("%d certificates were bought for it", n)
	}
	if _, err := os.Stat(taken); err != nil {
		t.Errorf("a file that was no socket is gone: %v", err)
	}
}

// TestProxyReplacesADeadSocket checks that a new proxy replaces the socket of a killed
// program, and keeps one that is in use.
func TestProxyReplacesADeadSocket(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	at := "unix:" + filepath.Join(shortDir(t), "engine.sock")
	first, _ := s.start("export BUILDKIT_HOST=", "proxy", "--listen", at)
	s.run("proxy", "--listen", at).check(t, 2, "another program listens")
	first.Process.Kill()
	first.Wait()
	s.start("export BUILDKIT_HOST=", "proxy", "--listen", at)
}

func TestCertFiles(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.set(func() {
		s.leaf = clienttest.Leaf{NotBefore: time.Now().Add(-time.Second), NotAfter: time.Now().Add(6 * time.Second)}
	})
	dir := filepath.Join(shortDir(t), "certificate")
	cmd, out := s.start("Envoy", "cert", "--out", dir, "--watch")
	text := out.String()
	for _, want := range []string{"export _EXPERIMENTAL_DAGGER_RUNNER_HOST='tls://127.0.0.1:", "cert_path=", "--driver remote", "servername=engine.example.com", "ghostunnel", "Envoy"} {
		if !strings.Contains(text, want) {
			t.Errorf("output lacks %q:\n%s", want, text)
		}
	}
	first := readSet(t, dir)
	for range 500 { // half of the lifetime is 2.5 s
		if string(readSet(t, dir)["cert.pem"]) != string(first["cert.pem"]) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	second := readSet(t, dir)
	if bytes.Equal(first["cert.pem"], second["cert.pem"]) || bytes.Equal(first["key.pem"], second["key.pem"]) {
		t.Errorf("nothing was renewed:\n%s", out)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("code %d\n%s", code, out)
	}
	sets, err := filepath.Glob(filepath.Join(dir, "..set-*"))
	if err != nil || len(sets) != 1 {
		t.Errorf("sets %v, %v", sets, err)
	}
}

// TestCertLinesArePasted checks that a shell splits the lines into the right words,
// whatever the name of the folder.
func TestCertLinesArePasted(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	dir := filepath.Join(shortDir(t), "it's a $HOME; folder")
	o := s.run("cert", "--out", dir)
	o.check(t, 0)
	key, crt, ca := filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "ca.pem")
	address := s.engine.Addr().String()
	lines := map[string]string{} // by first word
	for l := range strings.Lines(o.stdout) {
		word, _, _ := strings.Cut(l, " ")
		lines[word] = l
	}
	shell := func(line string) string {
		t.Helper()
		said, err := exec.Command("sh", "-c", "docker() { printf '%s\\n' \"$@\"; }; ghostunnel() { docker \"$@\"; }; buildctl() { docker \"$@\"; }\n"+line).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", line, err, said)
		}
		return strings.TrimSuffix(string(said), "\n")
	}
	for word, want := range map[string][]string{
		"docker": {"buildx", "create", "--name", "mayfly-default", "--driver", "remote", "--driver-opt",
			"cacert=" + ca + ",cert=" + crt + ",key=" + key + ",servername=" + standServer, "tcp://" + address},
		"buildctl":   {"--addr", "tcp://" + address, "--tlsservername", standServer, "--tlscacert", ca, "--tlscert", crt, "--tlskey", key},
		"ghostunnel": {"client", "--listen", "unix:engine.sock", "--target", address, "--override-server-name", standServer, "--cert", crt, "--key", key, "--cacert", ca, "--timed-reload", "5m"},
	} {
		if got := shell(lines[word]); got != strings.Join(want, "\n") {
			t.Errorf("%s gets\n%s\nwant\n%s", word, got, strings.Join(want, "\n"))
		}
	}
	u, err := url.Parse(shell(lines["export"] + "printf %s \"$_EXPERIMENTAL_DAGGER_RUNNER_HOST\""))
	if err != nil || u.Scheme != "tls" || u.Host != address || u.Query().Get("cert_path") != crt || u.Query().Get("key_path") != key || u.Query().Get("ca_path") != ca {
		t.Errorf("Dagger gets %s, %v", u, err)
	}
	shell(lines["printf"])
	var secrets struct {
		Resources []struct {
			TLS struct {
				Chain   struct{ Filename string } `json:"certificate_chain"`
				Key     struct{ Filename string } `json:"private_key"`
				Watched struct{ Path string }     `json:"watched_directory"`
			} `json:"tls_certificate"`
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "envoy-sds.json"))
	if err != nil || json.Unmarshal(b, &secrets) != nil || len(secrets.Resources) != 1 {
		t.Fatalf("Envoy's file: %s, %v", b, err)
	}
	if got := secrets.Resources[0].TLS; got.Chain.Filename != crt || got.Key.Filename != key || got.Watched.Path != dir {
		t.Errorf("Envoy gets %+v", got)
	}
	if _, socket, _ := strings.Cut(lines["transport_socket:"], " "); !json.Valid([]byte(socket)) || !strings.Contains(socket, filepath.Join(dir, "envoy-sds.json")) {
		t.Errorf("Envoy's transport socket is %s", socket)
	}
}

// readSet reads the three files and checks that others cannot read them.
func readSet(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	fi, err := os.Stat(dir)
	if err != nil || fi.Mode().Perm() != 0o700 {
		t.Fatalf("%v, %v", fi, err)
	}
	for range 50 { // a set may be replaced between two reads
		set, err := filepath.EvalSymlinks(filepath.Join(dir, "..data"))
		if err != nil {
			continue
		}
		got := map[string][]byte{}
		for _, name := range []string{"key.pem", "cert.pem", "ca.pem"} {
			b, err := os.ReadFile(filepath.Join(set, name))
			fi, serr := os.Stat(filepath.Join(set, name))
			if err == nil && serr == nil && fi.Mode().Perm() == 0o600 {
				got[name] = b
			}
		}
		if len(got) == 3 {
			return got
		}
	}
	t.Fatal("no whole set of files")
	return nil
}

func TestCertRefusesForeignFiles(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	dir := shortDir(t)
	key := filepath.Join(dir, "key.pem")
	if err := os.WriteFile(key, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.run("cert", "--out", dir).check(t, 1, "mayfly did not make it")
	if b, _ := os.ReadFile(key); string(b) != "precious" {
		t.Errorf("the file now holds %q", b)
	}
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	s.run("cert", "--out", open).check(t, 1, "written by others")
	s.run("cert", "--out", filepath.Join(dir, "new")).check(t, 0)
}
