package relay

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"testing"
	"time"
)

// TestMain lets the test binary run as the clients and the engine of
// TestIdleMemory, so that their memory is not counted.
func TestMain(m *testing.M) {
	if len(os.Args) == 6 && os.Args[1] == "__peers_of_test" {
		os.Exit(peers(os.Args[2], os.Args[3], os.Args[4], os.Args[5]))
	}
	if len(os.Args) == 3 && os.Args[1] == "__listener_of_test" {
		os.Exit(listener(os.Args[2]))
	}
	os.Exit(m.Run())
}

// listener is a process that listens on a socket, accepts one connection,
// writes one byte and waits until it is killed.
func listener(socket string) int {
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return 1
	}
	conn, err := ln.Accept()
	if err != nil {
		return 1
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		return 1
	}
	select {}
}

// peers runs an echoing engine on a socket and n clients. Each client sends
// size bytes through the relay, waits for them, and stays connected.
func peers(addr, socket, n, size string) int {
	count, _ := strconv.Atoi(n)
	bytes, _ := strconv.Atoi(size)
	ln, err := net.Listen("unix", socket)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go io.Copy(c, c)
		}
	}()
	fmt.Println("listening")
	conf := &tls.Config{InsecureSkipVerify: true} // the relay is under test
	out, in := make([]byte, bytes), make([]byte, bytes)
	var conns []net.Conn
	for range count {
		c, err := tls.Dial("tcp", addr, conf)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		conns = append(conns, c)
		go c.Write(out)
		if _, err := io.ReadFull(c, in); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	fmt.Println("idle")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test is done
	runtime.KeepAlive(conns)
	return 0
}

// mostKept is well below the cost of a relay that keeps its buffers (46 KB,
// and 145 KB with plain Go). It is above our 17 KB plus the overhead of the
// heap and the race detector.
const mostKept = 32_000

// TestIdleMemory measures the whole memory of an idle relay that has carried
// data.
func TestIdleMemory(t *testing.T) {
	for _, size := range []int{1, 64 << 10} {
		t.Run(fmt.Sprintf("after %d bytes each way", size), func(t *testing.T) {
			perRelay, stack := idleMemory(t, 500, size)
			t.Logf("%d bytes of memory per relay, %d of them stack", perRelay, stack)
			if perRelay > mostKept {
				t.Fatalf("%d bytes per idle relay: buffers are kept, want at most %d", perRelay, mostKept)
			}
		})
	}
}

func idleMemory(t *testing.T, n, size int) (perRelay, stack int) {
	t.Helper()
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	socket := filepath.Join(t.TempDir(), "e.sock")
	cmd := exec.Command(os.Args[0], "__peers_of_test", tcp.Addr().String(), socket, strconv.Itoa(n), strconv.Itoa(size))
	stdin, _ := cmd.StdinPipe()
	stdout, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer stdin.Close()
	lines := bufio.NewScanner(stdout)
	if !lines.Scan() || lines.Text() != "listening" {
		t.Fatalf("peers: %q", lines.Text())
	}
	conf := config(t)
	before := settled()
	relays := make(chan *Relay, n)
	go func() {
		for {
			c, err := tcp.AcceptTCP()
			if err != nil {
				return
			}
			go func() {
				below, err := NewConn(c)
				if err != nil {
					return
				}
				server := tls.Server(below, conf)
				if server.Handshake() != nil {
					return
				}
				engine, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
				if err != nil {
					return
				}
				r := New(server, below, engine)
				relays <- r
				go r.Run()
			}()
		}
	}()
	if !lines.Scan() || lines.Text() != "idle" {
		t.Fatalf("peers: %q", lines.Text())
	}
	all := make([]*Relay, n)
	for i := range all {
		all[i] = <-relays
		for armed(all[i]) { // until it has freed its buffer
			time.Sleep(keptAfter / 20)
		}
	}
	after := settled()
	for _, r := range all {
		r.Cut("test over")
	}
	use := func(m runtime.MemStats) int { return int(m.HeapInuse + m.StackInuse) }
	return (use(after) - use(before)) / n, (int(after.StackInuse) - int(before.StackInuse)) / n
}

func armed(r *Relay) bool {
	r.readMu.Lock()
	defer r.readMu.Unlock()
	return r.armed
}

// settled returns the memory statistics after several collections.
func settled() runtime.MemStats {
	for range 6 { // stacks shrink by half each time, pools empty after two
		runtime.GC()
	}
	debug.FreeOSMemory()
	time.Sleep(50 * time.Millisecond)
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m
}
