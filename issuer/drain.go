package issuer

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// newGrace is how long a stop waits for the first request of a connection
	// that was accepted and has said nothing.
	newGrace = 5 * time.Second
	// idleGrace is how long a kept connection must have been idle to be closed:
	// its client may have sent the next request before it could know. An answer
	// given during a stop tells it (Connection: close), and it comes no more.
	idleGrace = time.Second
)

// connections knows which HTTP/1 connections owe an answer, or soon may.
// http.Server's own Shutdown drops a request that it reads after it was called,
// and closes what is idle at that moment; a stop therefore waits here first.
// HTTP/2 has GOAWAY, which tells a client what was not taken.
type connections struct {
	mu   sync.Mutex
	open map[net.Conn]connection
	news chan struct{} // closed, and made again, when a connection has answered or gone
}

// connection is in one state since a time: new, with a request, or idle.
type connection struct {
	state http.ConnState
	since time.Time
}

func newConnections() *connections {
	return &connections{open: make(map[net.Conn]connection), news: make(chan struct{})}
}

// state is an http.Server's ConnState hook.
func (c *connections) state(conn net.Conn, s http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch s {
	case http.StateActive:
		if t, ok := conn.(*tls.Conn); ok && t.ConnectionState().NegotiatedProtocol == "h2" {
			delete(c.open, conn)
			break
		}
		c.open[conn] = connection{s, time.Now()}
		return
	case http.StateNew, http.StateIdle:
		c.open[conn] = connection{s, time.Now()}
	default:
		delete(c.open, conn)
	}
	if s != http.StateNew {
		close(c.news)
		c.news = make(chan struct{})
	}
}

// mayOweResponse reports whether a connection may yet bring a request, or wait for its
// answer, and if only time can tell, when to look again.
func (c connection) mayOweResponse(now time.Time) (owed bool, until time.Duration) {
	grace := newGrace
	switch c.state {
	case http.StateActive:
		return true, 0
	case http.StateIdle:
		grace = idleGrace
	}
	until = grace - now.Sub(c.since)
	return until > 0, until
}

// waitIdle waits until no connection owes an answer, or ctx ends.
func (c *connections) waitIdle(ctx context.Context) {
	for {
		now, wait, owed := time.Now(), newGrace, false
		c.mu.Lock()
		for _, conn := range c.open {
			o, until := conn.mayOweResponse(now)
			if owed = owed || o; o && until > 0 {
				wait = min(wait, until)
			}
		}
		news := c.news
		c.mu.Unlock()
		if !owed {
			return
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-news:
		case <-t.C:
		}
		t.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}
