package flytest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestMain makes the test binary the command of the machines: `test.binary __test
// NAME ARGS...`.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "__test" {
		os.Exit(commands[os.Args[2]](os.Args[3:]))
	}
	os.Exit(m.Run())
}

var commands = map[string]func(args []string) int{
	"exit":  func(args []string) int { var code int; fmt.Sscan(args[0], &code); return code },
	"serve": serveCommand,
	// deaf ADDR ignores SIGTERM once it listens.
	"deaf": func(args []string) int {
		signal.Ignore(syscall.SIGTERM)
		if _, err := net.Listen("tcp", args[0]); err != nil {
			return 1
		}
		select {}
	},
}

func run(name string, args ...string) []string {
	return append([]string{os.Args[0], "__test", name}, args...)
}

// serveCommand listens on its first argument and answers each connection with the
// bytes received, after the last of them. For a first line of "env", "token" or
// "root" it answers with that value from the machine. It ends with 0 on SIGTERM.
func serveCommand(args []string) int {
	ln, err := net.Listen("tcp", args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				all, _ := io.ReadAll(conn)
				_, last, _ := strings.Cut("\n"+strings.TrimSuffix(string(all), "\n"), "\nask ")
				switch last {
				case "env":
					fmt.Fprintln(conn, strings.Join(os.Environ(), "\n"))
				case "token":
					fmt.Fprintln(conn, flyAPI("/v1/tokens/oidc", `{"aud":"mayfly:test"}`))
				case "stop":
					fmt.Fprintln(conn, flyAPI("/v1/apps/"+os.Getenv("FLY_APP_NAME")+"/machines/"+os.Getenv("FLY_MACHINE_ID")+"/stop", ""))
				default:
					_, _ = conn.Write(all)
				}
			}()
		}
	}()
	<-stop
	return 0
}

func flyAPI(path, body string) string {
	socket := os.Getenv("TEST_API_SOCKET")
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	resp, err := client.Post("http://localhost"+path, "application/json", strings.NewReader(body))
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	data, _ := io.ReadAll(resp.Body)
	return string(data)
}

// mint returns the claims themselves as the token.
type mint struct{}

func (mint) Mint(overrides map[string]any) (string, error) {
	data, err := json.Marshal(overrides)
	return string(data), err
}

const rawApp = `
app = "example-engine"
primary_region = "ams"
kill_signal = "SIGTERM"
kill_timeout = 300
[env]
COLOUR = "blue"
[[services]]
protocol = "tcp"
internal_port = 8080
auto_stop_machines = "stop"
auto_start_machines = true
[[services.ports]]
port = 8080
[[restart]]
policy = "on-failure"
retries = 2
`

func parse(t *testing.T, text string) *App {
	t.Helper()
	app, err := ParseApp([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return app
}

var given sync.Map // ports of freeAddr

// freeAddr returns a free loopback address. Its port is below ip_local_port_range,
// so the system does not give it to a connection.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 1000 {
		port := 20000 + rand.IntN(12000)
		if _, taken := given.LoadOrStore(port, true); taken {
			continue
		}
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			ln.Close()
			return ln.Addr().String()
		}
	}
	t.Fatal("no free port")
	return ""
}

func newMachine(t *testing.T, cfg MachineConfig) *Machine {
	t.Helper()
	if cfg.Stderr == nil {
		cfg.Stderr = testWriter{t}
	}
	cfg.Env = append(cfg.Env, "TEST_API_SOCKET=/.fly/api")
	m, err := NewMachine(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// server makes a machine that serves on port 8080, with a proxy in front of it.
func server(t *testing.T, app *App, change func(*MachineConfig, *ProxyConfig)) (*Machine, *Proxy) {
	t.Helper()
	addr := freeAddr(t)
	mc := MachineConfig{App: app, Command: run("serve", addr), OIDC: mint{}, Addresses: map[int]string{8080: addr}}
	var pc ProxyConfig
	if change != nil {
		change(&mc, &pc)
	}
	m := newMachine(t, mc)
	pc.Machine = m
	p, err := NewProxy(pc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return m, p
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("command: %s", bytes.TrimSpace(p))
	return len(p), nil
}

func patience(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// exchange sends, half-closes and reads to the end.
func exchange(t *testing.T, conn duplex, message string) string {
	t.Helper()
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, message); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

func TestWakeOnConnectAndStopWhenIdle(t *testing.T) {
	t.Parallel()
	m, p := server(t, parse(t, rawApp), func(_ *MachineConfig, c *ProxyConfig) { c.IdleStop = 100 * time.Millisecond })
	if m.State() != StateCreated || m.Starts() != 0 {
		t.Fatalf("machine runs before anybody came: %s", m.State())
	}
	for wake := 1; wake <= 2; wake++ {
		open := dial(t, p.Addr())
		if got := exchange(t, dial(t, p.Addr()), "hello"); got != "hello" {
			t.Errorf("answer %q", got)
		}
		if m.State() != StateStarted || m.Starts() != wake {
			t.Errorf("machine is %s, started %d times, want %d", m.State(), m.Starts(), wake)
		}
		await(t, "the end of the exchange", func() bool { return p.Load() == 1 })
		open.Close()
		if _, err := m.Wait(patience(t)); err != nil {
			t.Fatal(err)
		}
		if m.ExitCode() != 0 {
			t.Errorf("stopped with %d", m.ExitCode())
		}
	}
}

func TestEdge(t *testing.T) {
	t.Parallel()
	app := parse(t, strings.Replace(rawApp, "port = 8080\n[[restart", `port = 443
handlers = ["tls", "proxy_proto"]
proxy_proto_options = {version = "v2"}
[[restart`, 1))
	m, p := server(t, app, nil)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.EdgeRoots())
	for _, name := range []string{"", "other.fly.dev"} {
		conn, err := tls.Dial("tcp", p.Addr(), &tls.Config{ServerName: name, InsecureSkipVerify: true})
		if err == nil {
			conn.Close()
			t.Errorf("edge answered for %q", name)
		}
	}
	if m.Starts() != 0 {
		t.Error("a client that does not name the app woke the machine")
	}
	conn, err := tls.Dial("tcp", p.Addr(), &tls.Config{ServerName: "example-engine.fly.dev", RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	if alpn := conn.ConnectionState().NegotiatedProtocol; alpn != "" {
		t.Errorf("edge speaks ALPN %q", alpn)
	}
	got := exchange(t, conn, "hello")
	if !strings.HasPrefix(got, "\r\n\r\n\x00\r\nQUIT\n\x21\x11") || !strings.HasSuffix(got, "hello") {
		t.Errorf("behind the edge came %q", got)
	}
}

func TestMachineAPI(t *testing.T) {
	t.Parallel()
	m, p := server(t, parse(t, rawApp), func(c *MachineConfig, _ *ProxyConfig) {
		c.Claims = map[string]any{"org_id": "11"}
		if c.HostRoot = os.Geteuid() != 0; c.HostRoot {
			t.Log("not root: the command sees the host's /.fly")
		}
	})
	env := exchange(t, dial(t, p.Addr()), "ask env")
	for _, want := range []string{"FLY_APP_NAME=example-engine", "FLY_MACHINE_ID=" + m.ID(), "FLY_REGION=ams", "COLOUR=blue", "FLY_PRIVATE_IP="} {
		if !strings.Contains(env, want) {
			t.Errorf("environment lacks %s:\n%s", want, env)
		}
	}
	if os.Geteuid() != 0 {
		return
	}
	var claims map[string]string
	answer := exchange(t, dial(t, p.Addr()), "ask token")
	if err := json.Unmarshal([]byte(answer), &claims); err != nil || claims["aud"] != "mayfly:test" || claims["machine_id"] != m.ID() || claims["org_id"] != "11" {
		t.Errorf("token %q", answer)
	}
	exchange(t, dial(t, p.Addr()), "ask stop") // the answer may arrive too late: the machine stops
	if _, err := m.Wait(patience(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/.fly/api"); err == nil {
		t.Log("this host has a /.fly/api of its own")
	}
}

func TestRestartPolicy(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, policy string
		exit         string
		runs         int
	}{
		{"failure is retried", `policy = "on-failure"`, "3", 3},
		{"success is not", `policy = "on-failure"`, "0", 1},
		{"never", `policy = "never"`, "3", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			app := parse(t, strings.Replace(rawApp, `policy = "on-failure"`, c.policy, 1))
			m := newMachine(t, MachineConfig{App: app, Command: run("exit", c.exit), RestartDelay: time.Millisecond})
			if err := m.Start(patience(t)); err != nil {
				t.Fatal(err)
			}
			if _, err := m.Wait(patience(t)); err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(m.ExitCode()) != c.exit {
				t.Errorf("exit code %d", m.ExitCode())
			}
			if got := m.Runs(); got != c.runs {
				t.Errorf("ran %d times, want %d", got, c.runs)
			}
		})
	}
}

func init() {
	// signal ADDR listens, and ends with the number of the first signal.
	commands["signal"] = func(args []string) int {
		got := make(chan os.Signal, 1)
		signal.Notify(got, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
		if _, err := net.Listen("tcp", args[0]); err != nil {
			return 1
		}
		return int((<-got).(syscall.Signal))
	}
	// parent ADDR starts a deaf child in its own session and waits.
	commands["parent"] = func(args []string) int {
		argv := run("deaf", args[0])
		child, err := os.StartProcess(argv[0], argv, &os.ProcAttr{Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}})
		if err != nil {
			return 1
		}
		_, _ = child.Wait()
		return 0
	}
}

func listens(addr string) func() bool {
	return func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
}

// TestKillSignal: the file's signal, or SIGINT by default.
func TestKillSignal(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]syscall.Signal{
		`kill_signal = "SIGTERM"`: syscall.SIGTERM, `kill_signal = "SIGQUIT"`: syscall.SIGQUIT,
		`kill_signal = "SIGUSR1"`: syscall.SIGUSR1, ``: syscall.SIGINT,
	} {
		t.Run(want.String(), func(t *testing.T) {
			t.Parallel()
			addr := freeAddr(t)
			app := parse(t, strings.Replace(rawApp, `kill_signal = "SIGTERM"`, line, 1))
			m := newMachine(t, MachineConfig{App: app, Command: run("signal", addr)})
			if err := m.Start(patience(t)); err != nil {
				t.Fatal(err)
			}
			await(t, "the command", listens(addr))
			if err := m.Stop(patience(t)); err != nil {
				t.Fatal(err)
			}
			if got := m.ExitCode(); got != int(want) || m.Runs() != 1 {
				t.Errorf("the command got signal %d, want %d; it ran %d times", got, want, m.Runs())
			}
		})
	}
}

// TestRestartAlways: a command that ends with 0 starts again, until the machine is
// stopped.
func TestRestartAlways(t *testing.T) {
	t.Parallel()
	app := parse(t, strings.Replace(rawApp, `policy = "on-failure"`, `policy = "always"`, 1))
	m := newMachine(t, MachineConfig{App: app, Command: run("exit", "0"), RestartDelay: time.Millisecond})
	if err := m.Start(patience(t)); err != nil {
		t.Fatal(err)
	}
	await(t, "five runs", func() bool { return m.Runs() >= 5 })
	if err := m.Stop(patience(t)); err != nil {
		t.Fatal(err)
	}
	if m.State() != StateStopped || m.Starts() != 1 {
		t.Errorf("machine is %s after %d starts", m.State(), m.Starts())
	}
}

// TestKilledMachineLeavesNothing: when a killed machine is stopped, all its
// processes are gone.
func TestKilledMachineLeavesNothing(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	m := newMachine(t, MachineConfig{App: parse(t, rawApp), Command: run("parent", addr)})
	if err := m.Start(patience(t)); err != nil {
		t.Fatal(err)
	}
	await(t, "the child", listens(addr))
	if len(descendants(m.PID())) == 0 {
		t.Fatal("the command has no child: that shows nothing")
	}
	m.Kill()
	if listens(addr)() {
		t.Error("the child of a killed machine listens")
	}
}

// TestEnvironment: all variables that Fly promises a machine, and the file's [env].
func TestEnvironment(t *testing.T) {
	t.Parallel()
	app := parse(t, rawApp+"\n[[vm]]\nsize = \"performance-2x\"\n")
	m := newMachine(t, MachineConfig{App: app, Command: run("exit", "0"), Env: []string{"COLOUR=red", "FLY_REGION=mars"}})
	env := map[string]string{}
	for _, entry := range m.env {
		name, value, _ := strings.Cut(entry, "=")
		env[name] = value
	}
	for name, want := range map[string]string{
		"FLY_APP_NAME": "example-engine", "FLY_MACHINE_ID": m.ID(), "FLY_ALLOC_ID": m.ID(), "FLY_REGION": "ams",
		"PRIMARY_REGION": "ams", "FLY_PROCESS_GROUP": "app", "FLY_VM_MEMORY_MB": "4096", "COLOUR": "red",
		"FLY_IMAGE_REF": "registry.fly.io/example-engine:flytest", "FLY_MACHINE_VERSION": machineVersion,
	} {
		if env[name] != want {
			t.Errorf("%s=%q, want %q", name, env[name], want)
		}
	}
	for _, name := range []string{"FLY_PUBLIC_IP", "FLY_PRIVATE_IP", "PATH", "HOME"} {
		if env[name] == "" {
			t.Errorf("%s is missing", name)
		}
	}
	for vm, want := range map[string]string{
		"": "256", "[[vm]]\nsize = \"shared-cpu-4x\"": "1024", "[[vm]]\nsize = \"performance-1x\"\nmemory = \"4gb\"": "4096",
		"[[vm]]\ncpu_kind = \"shared\"\ncpus = 2\nmemory_mb = 1024": "1024", "[[vm]]\ncpu_kind = \"performance\"\ncpus = 2": "4096",
	} {
		if got := parse(t, rawApp+"\n"+vm).memoryMB(); got != want {
			t.Errorf("%q has %s MB, want %s", vm, got, want)
		}
	}
}

// TestTokenRequests: the answer is the bare token as text. An audience is one
// string; without one, the token is for the organisation's.
func TestTokenRequests(t *testing.T) {
	t.Parallel()
	m := newMachine(t, MachineConfig{App: parse(t, rawApp), Command: run("exit", "0"), OIDC: mint{}, Organization: "acme"})
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", m.APISocket())
		},
	}}
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"POST", "/v1/tokens/oidc", `{"aud":"mayfly:test"}`, 200, `"aud":"mayfly:test"`},
		{"POST", "/v1/tokens/oidc", ``, 200, `"aud":"https://fly.io/acme"`},
		{"POST", "/v1/tokens/oidc", `{"aud":["mayfly:test"]}`, 400, "error"},
		{"GET", "/v1/tokens/oidc", ``, 404, "error"},
		{"GET", "/v1/apps/example-engine/machines/" + m.ID(), ``, 200, `"state":"created"`},
		{"POST", "/v1/apps/other/machines/" + m.ID() + "/stop", ``, 404, "error"},
		{"POST", "/v1/apps/example-engine/machines/00000000000000/stop", ``, 404, "error"},
	} {
		req, err := http.NewRequest(c.method, "http://localhost"+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != c.status || !strings.Contains(string(body), c.want) {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, res.StatusCode, body)
		}
		if c.status == 200 && c.method == "POST" && !strings.HasPrefix(res.Header.Get("Content-Type"), "text/plain") {
			t.Errorf("the token is %s", res.Header.Get("Content-Type"))
		}
	}
	if _, err := NewMachine(MachineConfig{App: parse(t, goodApp), Command: run("exit", "0")}); err == nil {
		t.Error("a file that nobody writes was accepted")
	}
}
