//go:build !linux

package client

import (
	"net"
	"time"
)

// setUserTimeout does nothing: only Linux has TCP_USER_TIMEOUT. On other systems
// keepalives and the control connection's pings detect a dead peer, more slowly.
func setUserTimeout(net.Conn, time.Duration) error { return nil }
