package relay

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// KeepAlive makes the kernel find a peer that is gone: probes while the
// connection is silent, and an end to unacknowledged data after timeout
// (TCP_USER_TIMEOUT, RFC 5482).
func KeepAlive(tcp *net.TCPConn, timeout time.Duration) error {
	if err := tcp.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable: true, Idle: timeout / 2, Interval: timeout / 4, Count: 2,
	}); err != nil {
		return err
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(timeout.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return set
}

func outQueue(fd uintptr) int {
	n, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}
