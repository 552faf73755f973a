package relay

import (
	"time"

	"golang.org/x/sys/unix"
)

// setUserTimeout bounds the time that sent data may stay unacknowledged
// (TCP_USER_TIMEOUT, RFC 5482).
func setUserTimeout(fd uintptr, d time.Duration) error {
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
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
