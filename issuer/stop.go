package issuer

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"
)

// newGrace is how long a stop waits for the first request of a connection that
// was accepted and has said nothing.
const newGrace = 5 * time.Second

// connections knows which HTTP/1 connections owe an answer. http.Server's own
// Shutdown drops a request that it reads after it was called; a stop therefore
// waits here first. HTTP/2 has GOAWAY, which tells a client what was not taken.
type connections struct {
	mu   sync.Mutex
	open map[net.Conn]time.Time // since when; until idle or closed
	fed  map[net.Conn]bool      // has begun a request
	idle chan struct{}          // closed, and made anew, when open runs empty
}

func newConnections() *connections {
	return &connections{open: make(map[net.Conn]time.Time), fed: make(map[net.Conn]bool), idle: make(chan struct{})}
}

// state is an http.Server's ConnState hook.
func (c *connections) state(conn net.Conn, s http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch s {
	case http.StateNew:
		c.open[conn] = time.Now()
	case http.StateActive:
		if t, ok := conn.(*tls.Conn); ok && t.ConnectionState().NegotiatedProtocol == "h2" {
			c.forget(conn)
			return
		}
		c.open[conn], c.fed[conn] = time.Now(), true
	default:
		c.forget(conn)
	}
}

func (c *connections) forget(conn net.Conn) {
	delete(c.fed, conn)
	if _, ok := c.open[conn]; !ok {
		return
	}
	if delete(c.open, conn); len(c.open) == 0 {
		close(c.idle)
		c.idle = make(chan struct{})
	}
}

// quiet waits until no connection owes an answer, or ctx ends. Connections that
// have not begun a request within newGrace are not waited for.
func (c *connections) quiet(ctx context.Context) {
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		c.mu.Lock()
		owed := 0
		for conn, since := range c.open {
			if c.fed[conn] || time.Since(since) < newGrace {
				owed++
			}
		}
		idle := c.idle
		c.mu.Unlock()
		if owed == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-idle:
		case <-t.C:
		}
	}
}
