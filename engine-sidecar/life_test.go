package sidecar_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
	sidecar "github.com/mayfly-ca/mayfly/engine-sidecar"
	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/supervise"
)

// TestMain lets the test binary run as the sidecar's hidden subcommand and as
// the tests' engine.
func TestMain(m *testing.M) {
	if supervise.IsChild(os.Args[1:]) {
		os.Exit(supervise.Child(os.Args[1:]))
	}
	if len(os.Args) == 4 && os.Args[1] == "__engine_of_test" {
		os.Exit(testEngine(os.Args[2], os.Args[3]))
	}
	if len(os.Args) == 4 && os.Args[1] == "__sidecar_of_test" {
		os.Exit(sidecarOfTest(os.Args[2], os.Args[3]))
	}
	if len(os.Args) == 4 && os.Args[1] == "__without_sys_admin" {
		os.Exit(withoutSysAdmin(os.Args[2], os.Args[3]))
	}
	os.Exit(m.Run())
}

// testEngine echoes on a socket. It exits with 0 on SIGTERM once it has no
// connection, as Dagger does. It exits with 7 when a client sends "crash", and
// is killed when one sends "die".
func testEngine(socket, _ string) int {
	ln, err := net.Listen("unix", socket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	conns := make(chan int)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns <- 1
			go func() {
				defer func() { c.Close(); conns <- -1 }()
				buf := make([]byte, 4096)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					switch string(buf[:n]) {
					case "crash":
						os.Exit(7)
					case "die":
						_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
					}
					if _, err := c.Write(buf[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	open, ending := 0, false
	for !ending || open > 0 {
		select {
		case n := <-conns:
			open += n
		case <-term:
			ending = true
		}
	}
	return 0
}

// supervised makes w run the test engine as its child.
func (w *world) supervised() *world {
	w.engine.Close()
	w.cfg.UnsafeNoIsolation = true
	w.cfg.Program.Command = []string{os.Args[0], "__engine_of_test", w.cfg.EngineSocket, "x"}
	w.cfg.Program.EngineErr = w.log
	return w
}

func (w *world) wantEnd(exit int, errPart string) {
	w.tb.Helper()
	select {
	case out := <-w.done:
		if out.exit != exit || errPart == "" && out.err != nil || errPart != "" && (out.err == nil || !strings.Contains(out.err.Error(), errPart)) {
			w.tb.Fatalf("ended with %d, %v; want %d, %q\n%s", out.exit, out.err, exit, errPart, w.log)
		}
	case <-time.After(20 * time.Second):
		w.tb.Fatalf("does not end\n%s", w.log)
	}
}

func TestDrainWaitsForRelays(t *testing.T) {
	t.Parallel()
	w := setUp(t).supervised()
	w.cfg.DrainTimeout = 20 * time.Second
	w.run()
	cert := w.clientCert(nil)
	conn, control := w.admitted(cert), w.control(cert)
	w.stop()
	eventually(t, "not accepting", func() bool {
		c, err := net.Dial("tcp", w.addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	w.echoes(conn) // live relays may continue
	control.send(wire.Control{Ping: 1})
	if got := control.next(); got.Pong != 1 {
		t.Fatalf("control connection: %+v", got)
	}
	conn.Close()
	w.wantEnd(0, "")
	if w.log.has("relays are left") {
		t.Fatalf("log:\n%s", w.log)
	}
}

// TestDrainCutsWhatIsLeft: the engine and its clients wait for each other, as
// with Dagger, until the sidecar cuts.
func TestDrainCutsWhatIsLeft(t *testing.T) {
	t.Parallel()
	w := setUp(t).supervised()
	w.cfg.DrainTimeout = 0 // without a cut the engine would not end
	w.run()
	cert := w.clientCert(nil)
	conn, control := w.admitted(cert), w.control(cert)
	if held := control.hold(conn); len(held) != 1 {
		t.Fatalf("held %v", held)
	}
	began := time.Now()
	w.stop()
	if got := control.next(); got.Reason != wire.ReasonDraining {
		t.Fatalf("notice: %+v", got)
	}
	w.cutOff(conn)
	w.wantEnd(0, "")
	if took := time.Since(began); took < supervise.DefaultCutAfter || took > 10*time.Second {
		t.Fatalf("stop took %v", took)
	}
}

// TestEngineCrash: the client reads on its control connection that the engine
// ended, and how. The session and the log have the same. It tests a crash and
// kill -9.
func TestEngineCrash(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		say     string
		code    int
		detail  string
		isolate bool
	}{{"crash", 7, "exit code 7", false}, {"die", 137, "signal 9, killed", false}, {"die", 137, "signal 9, killed", true}} {
		t.Run(fmt.Sprintf("%s, isolated %v", c.say, c.isolate), func(t *testing.T) {
			t.Parallel()
			w := setUp(t).supervised()
			if c.isolate {
				w.isolated()
			}
			w.run()
			cert := w.clientCert(nil)
			conn, idle, control := w.admitted(cert), w.admitted(cert), w.control(cert)
			if held := control.hold(conn, idle); len(held) != 2 {
				t.Fatalf("held %v", held)
			}
			if _, err := io.WriteString(conn, c.say); err != nil {
				t.Fatal(err)
			}
			told := map[string]bool{}
			for range 2 {
				got := control.next()
				if got.Reason != wire.ReasonEngineExited || got.Detail != c.detail {
					t.Errorf("notice: %+v", got)
				}
				told[got.Cut] = true
			}
			if !told[nameOf(t, conn)] || !told[nameOf(t, idle)] {
				t.Errorf("notices of %v", told)
			}
			for _, conn := range []net.Conn{conn, idle} {
				if _, err := conn.Read(make([]byte, 1)); err == nil || err == io.EOF {
					t.Errorf("the engine's end passes for a whole answer: %v", err)
				}
			}
			w.wantEnd(c.code, "engine ended by itself")
			if !w.log.has("relay ended", "reason=engine_exited", c.detail) {
				t.Errorf("log:\n%s", w.log)
			}
			if got := w.issuer.told(mtls.Serial(cert.Leaf.SerialNumber))[wire.SessionClose].Reason; got != "engine_exited: "+c.detail {
				t.Errorf("the session ended with %q", got)
			}
		})
	}
}

// TestEngineUnavailable: a client gets the reason when the engine's socket
// refuses, and is admitted when it accepts again. The connection of a client
// without a mayfly protocol is closed.
func TestEngineUnavailable(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.engine.Close()
	cert := w.clientCert(nil)
	w.refusedWith(cert, wire.ReasonEngineUnavailable)
	if conn, err := w.dial(cert, "h2"); err == nil {
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("bytes without an engine")
		}
	}
	if !w.log.has("engine does not accept a connection", "reason=engine_unavailable") {
		t.Errorf("log:\n%s", w.log)
	}
	again, err := net.Listen("unix", w.cfg.EngineSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	w.engine = again
	w.echo()
	w.admitted(cert)
}

func TestEngineThatNeverStarts(t *testing.T) {
	t.Parallel()
	w := setUp(t).supervised()
	w.cfg.Program.Command = []string{"/bin/sh", "-c", "exit 9"}
	w.launch(nil)
	w.wantEnd(9, "while starting")
}

// isolated makes the supervised w isolate its engine.
func (w *world) isolated() {
	w.tb.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("MAYFLY_TEST_REQUIRE") == "all" {
			w.tb.Fatal("isolation needs root")
		}
		w.tb.Skip("isolation needs root: run the test as root")
	}
	w.cfg.UnsafeNoIsolation = false
	// The token's folder is hidden from the engine, but the socket must not
	// be.
	dir, err := os.MkdirTemp("", "engine") // a short path, as a socket needs
	if err != nil {
		w.tb.Fatal(err)
	}
	w.tb.Cleanup(func() { os.RemoveAll(dir) })
	w.cfg.EngineSocket = dir + "/engine.sock"
	w.cfg.Program.Command[2] = w.cfg.EngineSocket
}

func TestIsolatedEngine(t *testing.T) {
	t.Parallel()
	w := setUp(t).supervised()
	w.isolated()
	w.run()
	w.admitted(w.clientCert(nil))
	w.stop()
	w.wantEnd(0, "")
}

func TestIdleExit(t *testing.T) {
	t.Parallel()
	w := setUp(t)
	w.echo()
	w.cfg.IdleExit, w.cfg.BootGrace = 2*time.Second, time.Minute
	w.run()
	conn := w.admitted(w.clientCert(nil))
	// Port scans do not delay the idle exit, and a live relay prevents it.
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			if c, err := net.Dial("tcp", w.addr); err == nil {
				defer c.Close()
			}
			select {
			case <-ended:
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	time.Sleep(3 * time.Second) // must be longer than idle_exit
	w.echoes(conn)
	conn.Close()
	w.wantEnd(0, "")
	if !w.log.has("idle: ending", "idle_exit") {
		t.Fatalf("log:\n%s", w.log)
	}
}

func TestBootGrace(t *testing.T) {
	t.Parallel()
	w := setUp(t)
	w.echo()
	w.cfg.IdleExit, w.cfg.BootGrace = time.Minute, time.Second
	w.run()
	w.wantEnd(0, "")
	if !w.log.has("idle: ending", "boot_grace") {
		t.Fatalf("log:\n%s", w.log)
	}
}

func TestBootTimeout(t *testing.T) {
	t.Parallel()
	t.Run("denied", func(t *testing.T) {
		t.Parallel()
		w := setUp(t)
		w.echo()
		w.cfg.BootTimeout = 2 * time.Second
		w.issuer.set(func() { w.issuer.denied = true })
		w.launch(nil)
		w.wantEnd(1, "no rule admits app_id 3")
	})
	t.Run("engine silent", func(t *testing.T) {
		t.Parallel()
		w := setUp(t)
		w.engine.Close() // no engine listens on the socket
		w.cfg.BootTimeout = 2 * time.Second
		w.launch(nil)
		w.wantEnd(1, "boot_timeout")
	})
	t.Run("stopped meanwhile", func(t *testing.T) {
		t.Parallel()
		w := setUp(t)
		w.issuer.set(func() { w.issuer.down = true })
		w.launch(nil)
		eventually(t, "a try", func() bool { return w.log.has("no certificate") })
		w.stop()
		w.wantEnd(0, "")
	})
}

// TestIssuerAwayAtBoot: the sidecar recovers without a restart.
func TestIssuerAwayAtBoot(t *testing.T) {
	t.Parallel()
	w := setUp(t)
	w.echo()
	w.issuer.set(func() { w.issuer.down = true })
	listening := make(chan string, 1)
	w.launch(func(addr, _ net.Addr) { listening <- addr.String() })
	eventually(t, "a failed try", func() bool { return w.log.has("no certificate") })
	select {
	case <-listening:
		t.Fatal("listens without a certificate")
	default:
	}
	w.issuer.set(func() { w.issuer.down = false })
	select {
	case w.addr = <-listening:
	case <-time.After(20 * time.Second):
		t.Fatalf("does not heal\n%s", w.log)
	}
	w.admitted(w.clientCert(nil))
}

// TestRotation: new handshakes see a new certificate with a new key. Relays
// are not affected.
func TestRotation(t *testing.T) {
	t.Parallel()
	w := setUp(t)
	w.echo()
	w.issuer.ttl = 4 * time.Second
	w.run()
	cert := w.clientCert(nil)
	conn := w.admitted(cert)
	first := conn.ConnectionState().PeerCertificates[0]
	eventually(t, "another certificate", func() bool {
		c, err := w.dial(cert, "h2")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		now := c.ConnectionState().PeerCertificates[0]
		if now.Equal(first) {
			return false
		}
		if string(now.RawSubjectPublicKeyInfo) == string(first.RawSubjectPublicKeyInfo) {
			t.Fatal("the same key again")
		}
		return true
	})
	w.echoes(conn)
}

// TestIssuerAwayAtRotation: the sidecar keeps its old certificate until that
// expires, logs the failures and then renews.
func TestIssuerAwayAtRotation(t *testing.T) {
	t.Parallel()
	w := setUp(t)
	w.echo()
	w.issuer.ttl = 6 * time.Second
	w.run()
	conn := w.admitted(w.clientCert(nil))
	w.issuer.set(func() { w.issuer.down = true })
	eventually(t, "failures counted", func() bool {
		_, b := w.get("/metrics")
		return contains(b, `certificate_requests_total{result="failed"}`)
	})
	w.admitted(w.clientCert(nil))
	w.issuer.set(func() { w.issuer.down = false })
	eventually(t, "caught up", func() bool {
		w.issuer.mu.Lock()
		defer w.issuer.mu.Unlock()
		return len(w.issuer.issued) >= 2
	})
	w.echoes(conn)
}

func TestBadConfig(t *testing.T) {
	t.Parallel()
	exit, err := sidecar.Run(t.Context(), sidecar.Config{})
	if exit != 1 || err == nil {
		t.Fatalf("empty configuration: %d, %v", exit, err)
	}
	w := setUp(t)
	w.cfg.Issuer = "http://issuer.example.com" // http off loopback (ATTACKS 70)
	exit, err = sidecar.Run(t.Context(), w.cfg)
	if exit != 1 || err == nil || errors.Is(err, net.ErrClosed) {
		t.Fatalf("http off loopback: %d, %v", exit, err)
	}
}
