package sidecar_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/clienttest"
	sidecar "github.com/mayfly-ca/mayfly/engine-sidecar"
)

// sidecarOfTest runs a sidecar in its own process, so that its memory is
// separate from its peers'. It prints its address, and, for each line that it
// reads, the memory in use.
func sidecarOfTest(config, engine string) int {
	data, err := os.ReadFile(config)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cfg, err := sidecar.ParseConfig(data, nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if engine != "" {
		cfg.Program.Command = []string{engine}
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		in := bufio.NewScanner(os.Stdin)
		for in.Scan() {
			for range 6 { // stacks shrink by half each time, pools empty after two
				runtime.GC()
			}
			debug.FreeOSMemory()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			fmt.Println(m.HeapInuse + m.StackInuse)
		}
	}()
	cfg.Program.Listening = func(addr, _ net.Addr) { fmt.Println(addr) }
	exit, err := sidecar.Run(ctx, cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return exit
}

// keptBuffers is well below the cost of a relay that keeps its buffers and
// certificates while idle (145 KB with plain Go). It is above our 20 KB plus
// the overhead of the heap and the race detector. The log has the figure.
const keptBuffers = 32_000

// TestIdleMemory measures all memory that the sidecar keeps for an idle relay
// that has carried 64 KiB each way.
func TestIdleMemory(t *testing.T) {
	w := setUp(t)
	w.echo()
	config := filepath.Join(t.TempDir(), "sidecar.yaml")
	doc := fmt.Sprintf("issuer: %s\nengine: default\nlisten: 127.0.0.1:0\nengine_socket: %s\ntoken_source: %q\nlimits: {handshake_rate: 100000}\n",
		w.cfg.Issuer, w.cfg.EngineSocket, w.cfg.TokenSource)
	if err := os.WriteFile(config, []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "__sidecar_of_test", config, "")
	cmd.Stderr = w.log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer stdin.Close()
	lines := bufio.NewScanner(stdout)
	next := func() string {
		t.Helper()
		if !lines.Scan() {
			t.Fatalf("sidecar ended\n%s", w.log)
		}
		return lines.Text()
	}
	inUse := func() (n int) {
		t.Helper()
		fmt.Fprintln(stdin)
		if err := json.Unmarshal([]byte(next()), &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	w.addr = next()
	const count = 300
	data := []byte(strings.Repeat("x", 64<<10))
	conns := make([]*tls.Conn, count)
	one := func(i int) {
		conn, reason := w.open(w.clientCert(func(l *clienttest.Leaf) { l.Run = fmt.Sprint(i) }))
		if reason != "" {
			t.Fatal(reason)
		}
		go conn.Write(data)
		if _, err := io.ReadFull(conn, make([]byte, len(data))); err != nil {
			t.Fatal(err)
		}
		conns[i] = conn
	}
	for i := range 50 { // pools, caches and tables have their first size
		one(i)
	}
	before := inUse()
	for i := 50; i < count; i++ {
		one(i)
	}
	per := 0
	for deadline := time.Now().Add(15 * time.Second); ; { // a relay frees its buffer when its client has been silent for a moment
		per = (inUse() - before) / (count - 50)
		if per <= keptBuffers || time.Now().After(deadline) {
			break
		}
	}
	t.Logf("%d bytes of the sidecar's memory per idle relay", per)
	if per > keptBuffers {
		t.Fatalf("%d bytes per idle relay: buffers are kept, want at most %d", per, keptBuffers)
	}
	w.echoes(conns[0])
}
