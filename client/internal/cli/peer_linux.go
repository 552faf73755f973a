package cli

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// peerUID returns the user at the other end of a unix socket (SO_PEERCRED), at the
// time of the connect.
func peerUID(c *net.UnixConn) (uid int, known bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, true // without an answer, admit no user
	}
	uid = -1
	raw.Control(func(fd uintptr) {
		if cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			uid = int(cred.Uid)
		}
	})
	return uid, true
}

// loopbackUID returns the user who owns the other end of a loopback connection,
// from the kernel's table of TCP sockets.
func loopbackUID(c *net.TCPConn) (uid int, known bool) {
	remote, ok1 := c.RemoteAddr().(*net.TCPAddr)
	local, ok2 := c.LocalAddr().(*net.TCPAddr)
	if !ok1 || !ok2 {
		return -1, true
	}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		if uid, found := findSocket(table, remote.AddrPort(), local.AddrPort()); found {
			return uid, true
		}
	}
	return -1, true
}

// findSocket finds the socket with these two ends in a table of proc(5).
func findSocket(table string, local, remote netip.AddrPort) (int, bool) {
	f, err := os.Open(table)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	want := map[[2]string]bool{
		{procAddr(local, false), procAddr(remote, false)}: true,
		{procAddr(local, true), procAddr(remote, true)}:   true,
	}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// sl local_address rem_address st tx:rx tr:tm retrnsmt uid ...
		field := strings.Fields(lines.Text())
		// The table shows a closed socket as root's, so only an established socket (01)
		// shows its real owner.
		if len(field) < 8 || field[3] != "01" || !want[[2]string{field[1], field[2]}] {
			continue
		}
		if uid, err := strconv.Atoi(field[7]); err == nil {
			return uid, true
		}
	}
	return 0, false
}

// procAddr formats an address as proc(5) does: 32-bit words in the machine's byte
// order, and the port in hex. If mapped is set, it formats IPv4 as IPv6.
func procAddr(a netip.AddrPort, mapped bool) string {
	ip := a.Addr().Unmap().AsSlice()
	if mapped && len(ip) == 4 {
		b := a.Addr().Unmap().As4()
		m := netip.AddrFrom4(b).As16()
		ip = m[:]
	}
	var s strings.Builder
	for i := 0; i < len(ip); i += 4 {
		var w [4]byte
		binary.BigEndian.PutUint32(w[:], binary.NativeEndian.Uint32(ip[i:]))
		s.WriteString(strings.ToUpper(hex.EncodeToString(w[:])))
	}
	return fmt.Sprintf("%s:%04X", s.String(), a.Port())
}
