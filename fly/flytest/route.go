package flytest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/pires/go-proxyproto"
)

// Times of Fly's edge.
const (
	edgeHandshake = 10 * time.Second
	dialTimeout   = 5 * time.Second
	dialAgain     = 10 * time.Millisecond
)

// route is the path from one public port to the machine.
type route struct {
	proxy   *Proxy
	service Service
	port    Port
	room    *slots
	// transport belongs to the http handler. Its dial wakes the machine.
	transport http.RoundTripper
}

// handle carries one connection. It closes only the connections that it opened.
func (r *route) handle(ctx context.Context, conn net.Conn) {
	p := r.proxy
	if !p.pause.wait(ctx) {
		return
	}
	var front duplex = conn.(*net.TCPConn)
	if slices.Contains(r.port.Handlers, "tls") {
		tlsConn := tls.Server(conn, p.edge.config(r.port.TLSOptions))
		hctx, cancel := context.WithTimeout(ctx, edgeHandshake)
		err := tlsConn.HandshakeContext(hctx)
		cancel()
		if err != nil {
			p.log.Debug("edge handshake", "error", err)
			return // the machine is not woken
		}
		front = tlsConn
	}
	p.count(1)
	defer p.count(-1)
	back, err := r.reach(ctx)
	if err != nil {
		p.dropped.Add(1)
		p.log.Warn("connection dropped", "port", r.port.Port, "error", err)
		return
	}
	defer r.room.leave()
	defer back.Close()
	if !p.track(back) {
		return
	}
	defer p.untrack(back)
	p.accepted.Add(1)
	if err := r.announce(back, conn); err != nil {
		p.log.Warn("connection dropped", "port", r.port.Port, "error", err)
		return
	}
	r.carry(ctx, front, back)
}

// reach waits for a free place and for the machine, which it starts if needed, and
// connects. On success the caller must free the place.
func (r *route) reach(ctx context.Context) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, r.proxy.cfg.HoldTimeout)
	defer cancel()
	if err := r.room.enter(ctx); err != nil {
		return nil, fmt.Errorf("hard_limit: %w", err)
	}
	conn, err := r.wake(ctx)
	if err != nil {
		r.room.leave()
		return nil, err
	}
	return conn, nil
}

// wake connects to the machine's port. It starts the machine if it is down.
func (r *route) wake(ctx context.Context) (*net.TCPConn, error) {
	m := r.proxy.cfg.Machine
	for {
		switch state := m.State(); {
		case state == StateDestroyed:
			return nil, errors.New("machine is destroyed")
		case state == StateStarted || state == StateStarting:
		case r.service.AutoStartMachines != nil && !*r.service.AutoStartMachines:
			return nil, fmt.Errorf("machine is %s and auto_start_machines is off", state)
		default:
			if err := m.Start(ctx); err != nil {
				return nil, fmt.Errorf("start machine: %w", err)
			}
		}
		conn, err := r.proxy.cfg.Dial(ctx, "tcp", m.Address(r.service.InternalPort))
		if err == nil {
			return conn.(*net.TCPConn), nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("machine is %s: %w", m.State(), err)
		case <-time.After(dialAgain):
		}
	}
}

// announce sends the PROXY header, if the handler asks for it.
func (r *route) announce(back, client net.Conn) error {
	if !slices.Contains(r.port.Handlers, "proxy_proto") {
		return nil
	}
	version := byte(1)
	if r.port.ProxyProtoOptions != nil && r.port.ProxyProtoOptions.Version == "v2" {
		version = 2
	}
	header := proxyproto.HeaderProxyFromAddrs(version, client.RemoteAddr(), client.LocalAddr())
	_, err := header.WriteTo(back)
	return err
}

// duplex is a connection whose sending side can be closed alone.
type duplex interface {
	net.Conn
	CloseWrite() error
}

// carry copies both ways until both have ended. It preserves half-close.
func (r *route) carry(ctx context.Context, front duplex, back *net.TCPConn) {
	defer context.AfterFunc(ctx, func() { front.Close(); back.Close() })()
	var both sync.WaitGroup
	one := func(to, from duplex) {
		if _, err := io.Copy(gated{to, ctx, &r.proxy.pause}, onlyReader{from}); err != nil {
			// If one side breaks, close both.
			front.Close()
			back.Close()
			return
		}
		_ = to.CloseWrite()
	}
	both.Go(func() { one(back, front) })
	both.Go(func() { one(front, back) })
	both.Wait()
}

// onlyReader keeps io.Copy from copying in the kernel, which would bypass the gate.
type onlyReader struct{ io.Reader }

// gated writes only while the gate is open.
type gated struct {
	io.Writer
	ctx  context.Context
	gate *gate
}

// Write implements io.Writer.
func (g gated) Write(p []byte) (int, error) {
	if !g.gate.wait(g.ctx) {
		return 0, context.Cause(g.ctx)
	}
	return g.Writer.Write(p)
}

// gate is open, or shut until the next open. The zero gate is open.
type gate struct {
	mu     sync.Mutex
	closed chan struct{} // nil if open
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed == nil {
		g.closed = make(chan struct{})
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed != nil {
		close(g.closed)
		g.closed = nil
	}
}

// wait returns true when the gate is open, and false if ctx ends first.
func (g *gate) wait(ctx context.Context) bool {
	for {
		g.mu.Lock()
		closed := g.closed
		g.mu.Unlock()
		if closed == nil {
			return ctx.Err() == nil
		}
		select {
		case <-closed:
		case <-ctx.Done():
			return false
		}
	}
}

// slots are the free places of a service on its machine: hard_limit connections.
type slots struct{ taken chan struct{} } // nil: no limit

func newSlots(c *Concurrency) *slots {
	if c == nil || c.HardLimit == 0 {
		return &slots{}
	}
	return &slots{taken: make(chan struct{}, c.HardLimit)}
}

func (s *slots) enter(ctx context.Context) error {
	if s.taken == nil {
		return nil
	}
	select {
	case s.taken <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *slots) leave() {
	if s.taken != nil {
		<-s.taken
	}
}
