package relay

import (
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

// peerTimeout distinguishes a slow peer from one that is gone. The kernel's
// bound on unacknowledged data (TCP_USER_TIMEOUT) does not. It also ends a
// connection whose peer answers every probe but keeps its window closed,
// because its reader has paused.
//
// While data is unacknowledged, a timer checks the connection, and extends the
// bound as long as the peer answers.
type peerTimeout struct {
	mu       sync.Mutex
	timeout  time.Duration // 0: the kernel's defaults, without checks
	timer    *time.Timer
	watching bool
	writes   uint64 // counts calls of watch
	lookedAt uint64 // value of writes at the last check
	extended bool
	acked    uint64    // at the last check
	since    time.Time // when acked last changed
}

// tcpInfo is the kernel's information about the peer.
type tcpInfo struct {
	acked     uint64        // bytes, ever
	lastHeard time.Duration // since the peer's last acknowledgement
	resending bool          // data is lost, not held back by the peer's window
}

// ListenConfig returns the configuration of a listener whose connections
// detect a lost peer within about timeout. Where connections inherit these
// settings from the listener, KeepAlive needs no more system calls.
func ListenConfig(timeout time.Duration) *net.ListenConfig {
	return &net.ListenConfig{
		KeepAlive: -1, // Go's own would be set on each connection
		Control: func(_, _ string, raw syscall.RawConn) error {
			var set error
			err := raw.Control(func(fd uintptr) { set = setKeepAlive(fd, keepAlive(timeout), timeout) })
			return errors.Join(err, set)
		},
	}
}

// keepAlive returns the settings of the probes on a silent connection.
func keepAlive(timeout time.Duration) net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: timeout / 2, Interval: timeout / 4, Count: 2}
}

// KeepAlive makes the connection detect a lost peer within about timeout: by
// probes while it is silent, and by a bound on unacknowledged data. The bound
// does not apply to a peer that is only slow.
func (c *Conn) KeepAlive(timeout time.Duration) error {
	c.peerTimeout.mu.Lock()
	defer c.peerTimeout.mu.Unlock()
	c.peerTimeout.timeout = timeout
	inherited := false
	if err := c.raw.Control(func(fd uintptr) { inherited = userTimeout(fd) == timeout }); err != nil {
		return err
	}
	if inherited {
		return nil
	}
	return errors.Join(c.tcp.SetKeepAliveConfig(keepAlive(timeout)), c.bound(timeout))
}

// bound sets the kernel's bound on unacknowledged data.
func (c *Conn) bound(d time.Duration) error {
	var set error
	err := c.raw.Control(func(fd uintptr) { set = setUserTimeout(fd, d) })
	return errors.Join(err, set)
}

// watch starts the checks of the peer. Call it before a write.
func (c *Conn) watch() {
	p := &c.peerTimeout
	p.mu.Lock()
	defer p.mu.Unlock()
	p.writes++
	if p.watching || p.timeout == 0 {
		return
	}
	p.watching, p.since = true, time.Now()
	if p.timer == nil {
		p.timer = time.AfterFunc(p.timeout/4, c.checkPeer)
		return
	}
	p.timer.Reset(p.timeout / 4)
}

// checkPeer is the timer's function. It stops when no data is unacknowledged
// or the connection is closed.
func (c *Conn) checkPeer() {
	p := &c.peerTimeout
	p.mu.Lock()
	defer p.mu.Unlock()
	left := c.unsent()
	var now tcpInfo
	known := false
	if err := c.raw.Control(func(fd uintptr) { now, known = pulseOf(fd) }); err != nil || !known {
		p.watching = false
		return
	}
	writes := p.writes
	switch {
	case left == 0 || now.acked != p.acked:
		p.acked, p.since = now.acked, time.Now()
		if p.extended {
			p.extended = c.bound(p.timeout) != nil
		}
	case !now.resending && now.lastHeard < p.timeout*3/4:
		p.extended = c.bound(time.Since(p.since)+p.timeout*5/4) == nil
	}
	if left == 0 && writes == p.lookedAt {
		p.watching = false
		return
	}
	p.lookedAt = writes
	p.timer.Reset(p.timeout / 4)
}

// alive reports whether the peer has acknowledged anything within the given
// time.
func (c *Conn) alive(within time.Duration) bool {
	var now tcpInfo
	known := false
	err := c.raw.Control(func(fd uintptr) { now, known = pulseOf(fd) })
	return err == nil && known && now.lastHeard < within
}
