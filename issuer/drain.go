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
	// newGrace is how long a shutdown waits for the first request of a connection that
	// was accepted and has sent nothing.
	newGrace = 5 * time.Second
	// idleGrace is how long a kept-alive connection must have been idle before it is
	// closed, because its client may have sent another request already. Responses
	// during a shutdown carry Connection: close.
	idleGrace = time.Second
)

// connections tracks which HTTP/1 connections wait for a response, or soon may.
// http.Server.Shutdown drops a request that it reads after the call, and closes
// connections that are idle at that moment. A shutdown therefore waits here first.
// HTTP/2 needs no such wait: GOAWAY names the requests that were not taken.
type connections struct {
	mu   sync.Mutex
	open map[net.Conn]connection
	news chan struct{} // closed and replaced when a connection becomes idle or ends
}

// connection is the state of a connection (new, active or idle) and its start.
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

// mayOweResponse reports whether a connection may yet send a request or wait for a
// response. If that depends on time alone, until is when to check again.
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

// waitIdle waits until no connection waits for a response, or until ctx ends.
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
