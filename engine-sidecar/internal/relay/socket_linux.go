package relay

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// setUserTimeout bounds the time that sent data may stay unacknowledged
// (TCP_USER_TIMEOUT, RFC 5482).
func setUserTimeout(fd uintptr, d time.Duration) error {
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
}

// userTimeout returns the value that setUserTimeout set, on fd or on its
// listener.
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

// pulseOf reads the kernel's information about the peer.
func pulseOf(fd uintptr) (tcpInfo, bool) {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return tcpInfo{}, false
	}
	return tcpInfo{
		acked:     info.Bytes_acked,
		lastHeard: time.Duration(info.Last_ack_recv) * time.Millisecond,
		resending: info.Retransmits > 0,
	}, true
}

// exitingFlag is PF_EXITING among the flags in /proc/PID/stat (proc(5)): the
// process has begun to exit, which closes its sockets.
const exitingFlag = 0x4

// peerExiting reports whether the process that listens at the other end of
// conn is exiting or gone. It returns false for a process in another PID
// namespace.
func peerExiting(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var peer *unix.Ucred
	var got error
	err = raw.Control(func(fd uintptr) { peer, got = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || got != nil || peer.Pid <= 0 {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", peer.Pid))
	if err != nil {
		return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
	}
	// The name, in brackets, may hold any characters. State is the first field
	// after it, flags the seventh.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	return strings.Contains("ZX", fields[0]) || err == nil && flags&exitingFlag != 0
}
