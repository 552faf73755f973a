package relay

import (
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// setUserTimeout bounds the time that sent data may stay unacknowledged
// (TCP_USER_TIMEOUT, RFC 5482).
func setUserTimeout(fd uintptr, d time.Duration) error {
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
}

// userTimeout is what setUserTimeout set, here or on the listener.
func userTimeout(fd uintptr) time.Duration {
	n, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
	if err != nil {
		return 0
	}
	return time.Duration(n) * time.Millisecond
}

// setKeepAlive sets the probes and the user timeout on a listener; connections
// inherit both.
func setKeepAlive(fd uintptr, c net.KeepAliveConfig, timeout time.Duration) error {
	for _, option := range []struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(c.Idle.Seconds())},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(c.Interval.Seconds())},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, c.Count},
	} {
		if err := unix.SetsockoptInt(int(fd), option.level, option.name, option.value); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return os.NewSyscallError("setsockopt", setUserTimeout(fd, timeout))
}

func outQueue(fd uintptr) int {
	n, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}

// pulseOf reads how the peer does.
func pulseOf(fd uintptr) (pulse, bool) {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return pulse{}, false
	}
	return pulse{
		acked:     info.Bytes_acked,
		lastHeard: time.Duration(info.Last_ack_recv) * time.Millisecond,
		resending: info.Retransmits > 0,
	}, true
}
