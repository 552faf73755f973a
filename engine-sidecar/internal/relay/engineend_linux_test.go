package relay

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestAwaitCut: a relay waits for an expected Cut only after the end of the
// engine's process, and not for long.
func TestAwaitCut(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "relay") // a short path, as a socket needs
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	engine := exec.Command(os.Args[0], "__listener_of_test", socket)
	if err := engine.Start(); err != nil {
		t.Fatal(err)
	}
	defer engine.Wait()
	defer engine.Process.Kill()
	var conn net.Conn
	for deadline := time.Now().Add(20 * time.Second); conn == nil; time.Sleep(5 * time.Millisecond) {
		if conn, err = net.Dial("unix", socket); err != nil && time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	relay := func(expect bool) *Relay {
		return &Relay{engine: conn.(*net.UnixConn), ExpectCut: func() bool { return expect }}
	}
	const long = 20 * time.Second
	began := time.Now()
	if relay(true).awaitCut(long) || time.Since(began) > long/2 {
		t.Errorf("an engine that lives: waited %v", time.Since(began))
	}
	if err := engine.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("the engine's end: %v", err)
	}
	began = time.Now() // at once, before its parent has waited for it
	if (&Relay{engine: conn.(*net.UnixConn)}).awaitCut(long) || relay(false).awaitCut(long) || time.Since(began) > long/2 {
		t.Errorf("no cut to expect: waited %v", time.Since(began))
	}
	cut := relay(true)
	reason := "engine_exited"
	time.AfterFunc(50*time.Millisecond, func() { cut.reason.Store(&reason) })
	if !cut.awaitCut(long) {
		t.Error("did not wait for the cut")
	}
	_ = engine.Wait()
	began = time.Now()
	if relay(true).awaitCut(300*time.Millisecond) || time.Since(began) < 300*time.Millisecond || time.Since(began) > long {
		t.Errorf("a cut that does not come: waited %v", time.Since(began))
	}
}
