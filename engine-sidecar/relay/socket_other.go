//go:build !linux

package relay

import "time"

func setUserTimeout(uintptr, time.Duration) error { return nil }

func outQueue(uintptr) int { return 0 }

func pulseOf(uintptr) (pulse, bool) { return pulse{}, false }
