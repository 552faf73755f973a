package cli

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// listen opens the listener of a tunnel: unix:PATH, or tcp:127.0.0.1:PORT.
func listen(spec string) (net.Listener, error) {
	kind, at, _ := strings.Cut(spec, ":")
	switch {
	case kind == "unix" && at != "":
		return listenUnix(at)
	case kind == "tcp":
		return listenLoopback(at)
	}
	return nil, fmt.Errorf("%q is neither unix:PATH nor tcp:127.0.0.1:PORT", spec)
}

// listenLoopback refuses an address that other machines can reach, because the
// engine admits every user of the tunnel.
func listenLoopback(at string) (net.Listener, error) {
	addr, err := netip.ParseAddrPort(at)
	if err != nil {
		return nil, fmt.Errorf("tcp:%s: %w", at, err)
	}
	if !addr.Addr().IsLoopback() {
		return nil, fmt.Errorf("tcp:%s is not on loopback, and who reaches the tunnel is admitted to the engine", at)
	}
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
	if err != nil {
		return nil, err
	}
	return &loopbackListener{ln}, nil
}

// loopbackListener admits only this user and root, if the system knows the user at
// the other end.
type loopbackListener struct{ *net.TCPListener }

// Accept returns the next connection of this user or root.
func (l *loopbackListener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return nil, err
		}
		if uid, known := loopbackUID(c); known && !uidAllowed(uid) {
			c.Close()
			continue
		}
		return c, nil
	}
}

// host returns a listener's address in the form that Dagger and BuildKit accept.
func host(ln net.Listener) string {
	if a, ok := ln.Addr().(*net.UnixAddr); ok {
		return "unix://" + a.Name
	}
	return "tcp://" + ln.Addr().String()
}
