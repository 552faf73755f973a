package supervise

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// socketPair returns the sidecar's and the child's end of their connection.
func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	file := os.NewFile(uintptr(fds[0]), "sidecar")
	defer file.Close()
	conn, err := net.FileConn(file) // a duplicate, close-on-exec
	if err != nil {
		unix.Close(fds[1])
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	return conn.(*net.UnixConn), os.NewFile(uintptr(fds[1]), "child"), nil
}

// listenNotify opens the socket for sd_notify(3). An abstract name leaves no
// file when the sidecar is killed.
func listenNotify() (*net.UnixConn, error) {
	addr := &net.UnixAddr{Net: "unixgram", Name: "@mayfly-notify-" + rand.Text()}
	conn, err := net.ListenUnixgram("unixgram", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for the engine's notification: %w", err)
	}
	return conn, nil
}

// isReady reports whether a notification has the line READY=1.
func isReady(message []byte) bool {
	for line := range bytes.Lines(message) {
		if string(bytes.TrimRight(line, "\n")) == "READY=1" {
			return true
		}
	}
	return false
}
