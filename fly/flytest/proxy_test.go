package flytest

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func init() {
	// web ADDR answers with the client's address from the edge's header.
	commands["web"] = func(args []string) int {
		err := http.ListenAndServe(args[0], http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, r.Header.Get("Fly-Client-IP")+" "+r.Header.Get("X-Forwarded-Proto")+" "+r.Host)
		}))
		if err != nil {
			return 1
		}
		return 0
	}
}

func TestHalfCloseAndBytes(t *testing.T) {
	t.Parallel()
	_, p := server(t, parse(t, rawApp), nil)
	payload := make([]byte, 4<<20)
	rand.Read(payload)
	for range 5 {
		if got := exchange(t, dial(t, p.Addr()), string(payload)); !bytes.Equal([]byte(got), payload) {
			t.Fatalf("%d of %d bytes came back", len(got), len(payload))
		}
	}
}

func TestHardLimit(t *testing.T) {
	t.Parallel()
	app := parse(t, rawApp+"\n[[vm]]\nsize = \"shared-cpu-1x\"\n")
	app.Services[0].Concurrency = &Concurrency{Type: "connections", HardLimit: 1}
	_, p := server(t, app, func(_ *MachineConfig, c *ProxyConfig) { c.HoldTimeout = 10 * time.Second })
	first := dial(t, p.Addr())
	if _, err := io.WriteString(first, "x"); err != nil {
		t.Fatal(err)
	}
	await(t, "the first connection", func() bool { return p.Accepted() == 1 })
	second := dial(t, p.Addr())
	await(t, "the second connection", func() bool { return p.Load() == 2 })
	if p.Accepted() != 1 {
		t.Error("a second connection reached the machine over hard_limit 1")
	}
	first.Close()
	if got := exchange(t, second, "later"); got != "later" {
		t.Errorf("answer %q", got)
	}
}

// TestSoftLimit: at soft_limit the proxy prefers another machine. If there is none,
// no connection waits: only hard_limit makes one wait.
func TestSoftLimit(t *testing.T) {
	t.Parallel()
	app := parse(t, rawApp+"\n[[vm]]\nsize = \"shared-cpu-1x\"\n")
	app.Services[0].Concurrency = &Concurrency{Type: "connections", SoftLimit: 1, HardLimit: 2}
	_, p := server(t, app, func(_ *MachineConfig, c *ProxyConfig) { c.HoldTimeout = 10 * time.Second })
	for i := range 2 {
		if _, err := io.WriteString(dial(t, p.Addr()), "x"); err != nil {
			t.Fatal(err)
		}
		await(t, "a connection over soft_limit", func() bool { return p.Accepted() == int64(i+1) })
	}
	dial(t, p.Addr())
	await(t, "the third connection", func() bool { return p.Load() == 3 })
	if p.Accepted() != 2 {
		t.Error("a connection reached the machine over hard_limit 2")
	}
}

func TestDroppedWhenNoMachineComes(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*MachineConfig, *ProxyConfig){
		"command ends at once": func(m *MachineConfig, p *ProxyConfig) {
			m.Command, m.RestartDelay, p.HoldTimeout = run("exit", "1"), time.Millisecond, 300*time.Millisecond
		},
		"no such command": func(m *MachineConfig, p *ProxyConfig) { m.Command = []string{"/nonexistent"} },
		"autostart is off": func(m *MachineConfig, _ *ProxyConfig) {
			off := false
			m.App.Services[0].AutoStartMachines = &off
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, p := server(t, parse(t, rawApp), change)
			conn := dial(t, p.Addr())
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := io.ReadAll(conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection is still held")
			}
			await(t, "the drop", func() bool { return p.Dropped() == 1 && p.Load() == 0 })
		})
	}
}

func TestFreezeThawAndCut(t *testing.T) {
	t.Parallel()
	m, p := server(t, parse(t, rawApp), nil)
	conn := dial(t, p.Addr())
	if _, err := io.WriteString(conn, "one "); err != nil {
		t.Fatal(err)
	}
	await(t, "the connection", func() bool { return p.Accepted() == 1 })
	p.Freeze()
	if _, err := io.WriteString(conn, "two"); err != nil {
		t.Fatal(err)
	}
	_ = conn.CloseWrite()
	_ = conn.SetReadDeadline(time.Now().Add(150 * time.Millisecond))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a frozen path gave %v", err)
	}
	p.Thaw()
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if got, err := io.ReadAll(conn); err != nil || string(got) != "one two" {
		t.Errorf("after the thaw %q, %v", got, err)
	}
	second := dial(t, p.Addr())
	await(t, "the second connection", func() bool { return p.Accepted() == 2 })
	p.Cut()
	_ = second.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := second.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a cut connection gave %v", err)
	}
	third := dial(t, p.Addr())
	await(t, "the third connection", func() bool { return p.Accepted() == 3 })
	m.Kill()
	_ = third.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := third.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a killed machine's connection gave %v", err)
	}
	if m.State() != StateStopped || m.ExitCode() != 128+int(syscall.SIGKILL) {
		t.Errorf("a killed machine is %s with %d", m.State(), m.ExitCode())
	}
	if got := exchange(t, dial(t, p.Addr()), "again"); got != "again" || m.Starts() != 2 {
		t.Errorf("the killed machine does not wake: %q", got)
	}
}

func TestKillTimeout(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	m := newMachine(t, MachineConfig{App: parse(t, rawApp), Command: run("deaf", addr), KillTimeout: 100 * time.Millisecond})
	if err := m.Start(patience(t)); err != nil {
		t.Fatal(err)
	}
	await(t, "the command", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	if err := m.Stop(patience(t)); err != nil {
		t.Fatal(err)
	}
	if m.ExitCode() != 128+int(syscall.SIGKILL) || m.Runs() != 1 {
		t.Errorf("exit code %d after %d runs", m.ExitCode(), m.Runs())
	}
}

func TestHTTPService(t *testing.T) {
	t.Parallel()
	app := parse(t, "app = \"example-issuer\"\n[http_service]\ninternal_port = 8080\nforce_https = true\nauto_stop_machines = \"stop\"\nauto_start_machines = true")
	m, p := server(t, app, func(c *MachineConfig, _ *ProxyConfig) { c.Command = run("web", c.Addresses[8080]) })
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.EdgeRoots())
	client := http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: app.Hostname()}},
	}
	defer client.CloseIdleConnections()
	plain, err := client.Get("http://" + p.AddrOf(80) + "/path")
	if err != nil {
		t.Fatal(err)
	}
	plain.Body.Close()
	if plain.StatusCode != http.StatusMovedPermanently || !strings.HasPrefix(plain.Header.Get("Location"), "https://") || m.Starts() != 0 {
		t.Errorf("plain HTTP: %d, woke the machine %d times", plain.StatusCode, m.Starts())
	}
	request, err := http.NewRequest(http.MethodGet, "https://"+p.AddrOf(443)+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Fly-Client-IP", "192.0.2.1") // a forged header
	resp, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if want := "127.0.0.1 https " + p.AddrOf(443); string(body) != want {
		t.Errorf("behind the edge came %q, want %q", body, want)
	}
}

// TestTwoMachinesEachWithTheirOwnFly: each machine sees only its own /.fly.
func TestTwoMachinesEachWithTheirOwnFly(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		if os.Getenv("MAYFLY_TEST_REQUIRE") == "all" {
			t.Fatal("a root folder of its own needs root")
		}
		t.Skip("a root folder of its own needs root: run the test as root")
	}
	_, had := os.Stat("/.fly")
	var pair [2]*Machine
	for i := range pair {
		m, p := server(t, parse(t, rawApp), nil)
		pair[i] = m
		if got := exchange(t, dial(t, p.Addr()), "ask token"); !strings.Contains(got, m.ID()) {
			t.Errorf("token of machine %s: %s", m.ID(), got)
		}
	}
	if _, has := os.Stat("/.fly"); (had == nil) != (has == nil) {
		t.Error("the host's /.fly has changed")
	}
	inside := filepath.Join("/proc", strconv.Itoa(pair[0].PID()), "root")
	if _, err := os.Stat(filepath.Join(inside, ".fly", "api")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(inside, pair[0].APISocket())); err == nil {
		t.Error("the machine sees the host's way to its socket")
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(mounts, []byte("fly-root")) {
		t.Errorf("a machine's mounts are seen from outside: %v", err)
	}
}

func TestSocketIsTheMakersAlone(t *testing.T) {
	t.Parallel()
	m := newMachine(t, MachineConfig{App: parse(t, rawApp), Command: run("deaf", "127.0.0.1:0")})
	info, err := os.Stat(m.APISocket())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	m.Close()
	if conn, err := net.Dial("unix", m.APISocket()); err == nil {
		conn.Close()
		t.Error("a destroyed machine answers")
	}
	if err := m.Start(patience(t)); err == nil {
		t.Error("a destroyed machine starts")
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
