package relay

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestKeepAlive: a connection has the same bounds, inherited from its listener
// or set by itself.
func TestKeepAlive(t *testing.T) {
	t.Parallel()
	const bound = 20 * time.Second
	for name, conf := range map[string]*net.ListenConfig{"inherited": ListenConfig(bound), "its own": new(net.ListenConfig)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ln, err := conf.Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			far, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer far.Close()
			tcp, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer tcp.Close()
			c, err := NewConn(tcp.(*net.TCPConn))
			if err != nil {
				t.Fatal(err)
			}
			if err := c.KeepAlive(bound); err != nil {
				t.Fatal(err)
			}
			for _, option := range []struct {
				name        string
				level, what int
				want        int
			}{
				{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
				{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 10},
				{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 5},
				{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 2},
				{"TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 20_000},
			} {
				_ = c.raw.Control(func(fd uintptr) {
					if got, err := unix.GetsockoptInt(int(fd), option.level, option.what); err != nil || got != option.want {
						t.Errorf("%s is %d (%v), want %d", option.name, got, err, option.want)
					}
				})
			}
			if c.peerTimeout.timeout != bound {
				t.Errorf("the peer is looked after by %v, want %v", c.peerTimeout.timeout, bound)
			}
		})
	}
}
