//go:build !linux

package relay

import (
	"net"
	"time"
)

func setUserTimeout(uintptr, time.Duration) error { return nil }

func userTimeout(uintptr) time.Duration { return 0 }

func setKeepAlive(uintptr, net.KeepAliveConfig, time.Duration) error { return nil }

func outQueue(uintptr) int { return 0 }

func peerExiting(*net.UnixConn) bool { return false }

func pulseOf(uintptr) (tcpInfo, bool) { return tcpInfo{}, false }
