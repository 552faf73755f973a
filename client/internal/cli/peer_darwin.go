package cli

import (
	"net"

	"golang.org/x/sys/unix"
)

// peerUID returns the user at the other end of a unix socket (LOCAL_PEERCRED).
func peerUID(c *net.UnixConn) (uid int, known bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, true // without an answer, admit no user
	}
	uid = -1
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED); err == nil {
			uid = int(cred.Uid)
		}
	})
	return uid, true
}

// loopbackUID returns known false: this system does not report the user.
func loopbackUID(*net.TCPConn) (uid int, known bool) { return 0, false }
