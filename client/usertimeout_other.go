//go:build !linux

package client

import (
	"net"
	"time"
)

// setUserTimeout does nothing: only Linux has TCP_USER_TIMEOUT. Keepalives and
// the control connection's pings find a dead peer elsewhere, more slowly.
func setUserTimeout(net.Conn, time.Duration) error { return nil }
