package client

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// An engine's TCP connection ends after 20 s without an acknowledgement.
func TestUserTimeout(t *testing.T) {
	t.Parallel()
	w := newWorld(t, loopback{})
	c := w.client()
	conn := dialed(t, c)
	defer conn.Close()
	raw, err := conn.(*relay).conn.tcp.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var ms int
	var got error
	if err := raw.Control(func(fd uintptr) {
		ms, got = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
	}); err != nil || got != nil {
		t.Fatal(err, got)
	}
	if d := time.Duration(ms) * time.Millisecond; d != 20*time.Second {
		t.Errorf("TCP_USER_TIMEOUT is %v", d)
	}
}
