//go:build !linux

package relay

import (
	"net"
	"time"
)

// KeepAlive makes the kernel probe a silent peer. Only Linux also bounds
// unacknowledged data.
func KeepAlive(tcp *net.TCPConn, timeout time.Duration) error {
	return tcp.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable: true, Idle: timeout / 2, Interval: timeout / 4, Count: 2,
	})
}

func outQueue(uintptr) int { return 0 }
