// Package clienttest holds what tests of mayfly's connections share: a network
// path that can be lost.
package clienttest

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// Path forwards TCP connections on loopback to a server. It can lose them
// without an end, as a router does that forgets a flow. Where an ordinary user may not do that, the test is skipped.
type Path struct {
	// Addr is the address to dial in place of the server's.
	Addr string

	tb    testing.TB
	ends  sync.WaitGroup
	mu    sync.Mutex
	conns []*pathConn // that are not lost
}

// pathConn is the dialing side's connection.
type pathConn struct {
	*net.TCPConn
	lost atomic.Bool
}

// Write implements net.Conn. What is written to a lost connection is not sent.
func (c *pathConn) Write(p []byte) (int, error) {
	if c.lost.Load() {
		return len(p), nil
	}
	return c.TCPConn.Write(p)
}

// NewPath opens a path to the server at target, until the test ends.
func NewPath(tb testing.TB, target string) *Path {
	tb.Helper()
	lc := net.ListenConfig{KeepAlive: -1} // probes would show that the path is there
	ln, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Path{Addr: ln.Addr().String(), tb: tb}
	p.ends.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			c := &pathConn{TCPConn: conn.(*net.TCPConn)}
			p.mu.Lock()
			p.conns = append(p.conns, c)
			p.mu.Unlock()
			p.ends.Go(func() { c.forward(ctx, target) })
		}
	})
	tb.Cleanup(func() {
		ln.Close()
		cancel()
		p.ends.Wait()
	})
	return p
}

// forward carries bytes both ways until an end closes the connection, or until
// ctx ends.
func (c *pathConn) forward(ctx context.Context, target string) {
	defer c.Close()
	server, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { server.Close(); c.Close() })
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(server, c.TCPConn); server.Close() })
	both.Go(func() {
		_, _ = io.Copy(struct{ io.Writer }{c}, server)
		if c.lost.Load() {
			<-ctx.Done() // the end is lost too
		}
		c.Close()
	})
	both.Wait()
}

// Lose loses every connection that was made so far. The kernel drops what
// arrives, before it acknowledges anything. Connections made later are whole.
func (p *Path) Lose() {
	p.tb.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		raw, err := c.SyscallConn()
		if err != nil {
			continue // closed
		}
		c.lost.Store(true)
		var set error
		drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K} // keep 0 bytes
		err = raw.Control(func(fd uintptr) {
			set = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop})
		})
		switch {
		case err != nil || set == nil:
		case errors.Is(set, unix.EPERM) && os.Getenv("MAYFLY_TEST_REQUIRE") != "all":
			p.tb.Skip("dropping a socket's packets is not permitted to this user: run the tests as root")
		default:
			p.tb.Fatalf("drop packets: %v", set)
		}
	}
	p.conns = nil
}
