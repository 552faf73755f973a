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

// TestMain lets the test binary be the clients and the engine of
// TestIdleMemory, whose memory is not to be counted.
func TestMain(m *testing.M) {
	if len(os.Args) == 6 && os.Args[1] == "__peers_of_test" {
		os.Exit(peers(os.Args[2], os.Args[3], os.Args[4], os.Args[5]))
	}
	os.Exit(m.Run())
}

// peers is an echoing engine on a socket and n clients that each send size
// bytes through the relay and wait for them, then stay.
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

// TestIdleMemory: a relay that has carried data and is idle costs at most
// 50 KB of the sidecar's memory.
func TestIdleMemory(t *testing.T) {
	for _, size := range []int{1, 64 << 10} {
		t.Run(fmt.Sprintf("after %d bytes each way", size), func(t *testing.T) {
			perRelay, stack := idleMemory(t, 500, size)
			t.Logf("%d bytes of memory per relay, %d of them stack", perRelay, stack)
			if perRelay > 50_000 {
				t.Fatalf("%d bytes per idle relay, want at most 50000", perRelay)
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
	after := settled()
	for range n {
		(<-relays).Cut("test over")
	}
	use := func(m runtime.MemStats) int { return int(m.HeapInuse + m.StackInuse) }
	return (use(after) - use(before)) / n, (int(after.StackInuse) - int(before.StackInuse)) / n
}

// settled is what is in use after the collector has had its time.
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
