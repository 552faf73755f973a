package relay

import (
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

// peerTimeout tells a peer that is slow from one that is gone. The kernel's bound
// on unacknowledged data (TCP_USER_TIMEOUT) does not: it also ends a connection
// whose peer answers every probe but has its window closed, because whoever
// reads there has paused.
//
// So, while data is unacknowledged, a timer looks at the connection, and moves
// the bound ahead as long as the peer answers.
type peerTimeout struct {
	mu       sync.Mutex
	timeout  time.Duration // 0: the kernel's defaults, and nobody looks
	timer    *time.Timer
	watching bool
	writes   uint64 // counts calls of watch
	lookedAt uint64 // writes at the last look
	extended bool
	acked    uint64    // at the last look
	since    time.Time // of when acked stands still
}

// tcpInfo is what the kernel knows of the peer.
type tcpInfo struct {
	acked     uint64        // bytes, ever
	lastHeard time.Duration // since its last acknowledgement of anything
	resending bool          // data is lost, not held back by the peer's window
}

// ListenConfig is of a listener whose connections find a peer that is gone
// within about timeout. Where the system lets connections inherit that, it
// spares each the calls of KeepAlive.
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

// keepAlive is of the probes while a connection is silent.
func keepAlive(timeout time.Duration) net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: timeout / 2, Interval: timeout / 4, Count: 2}
}

// KeepAlive makes the kernel find a peer that is gone within about timeout:
// probes while the connection is silent, and a bound on unacknowledged data,
// which a peer that is merely slow is not held to.
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

// bound sets the kernel's.
func (c *Conn) bound(d time.Duration) error {
	var set error
	err := c.raw.Control(func(fd uintptr) { set = setUserTimeout(fd, d) })
	return errors.Join(err, set)
}

// watch begins to look after the peer of what is about to be written.
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

// checkPeer is the timer's function. The last one is that which finds nothing
// unacknowledged, or the connection closed.
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

// alive reports whether the peer has acknowledged anything of late.
func (c *Conn) alive(within time.Duration) bool {
	var now tcpInfo
	known := false
	err := c.raw.Control(func(fd uintptr) { now, known = pulseOf(fd) })
	return err == nil && known && now.lastHeard < within
}
