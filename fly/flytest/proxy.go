package flytest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ProxyConfig says what a proxy stands in front of. Machine is required.
type ProxyConfig struct {
	Machine *Machine
	// Listen gives, by public port, where to listen in its place. Default:
	// 127.0.0.1, any free port.
	Listen map[int]string
	// IdleStop is how long the machine may have no connection before it is
	// stopped, where the file says stop. Zero is Fly's 5 minutes; below zero is
	// never.
	IdleStop time.Duration
	// HoldTimeout bounds the wait of a connection for the machine, and for room
	// under hard_limit. Zero is a minute.
	HoldTimeout time.Duration
	// Certificate is that of the tls handlers. Nil: one is made for Hostname,
	// which EdgeRoots verify.
	Certificate *tls.Certificate
	// Hostname is the name that the shared address knows the app by, by SNI.
	// Empty is the app's at fly.dev.
	Hostname string
	// Dial reaches the machine, say in a network namespace. Default: as this
	// process does.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Logger is told of connections that are refused or dropped. Nil discards.
	Logger *slog.Logger
}

// Proxy is Fly Proxy for the services of one app with one machine: raw TCP,
// and the handlers tls, http and proxy_proto. Close ends it.
type Proxy struct {
	cfg       ProxyConfig
	log       *slog.Logger
	edge      *edge // nil without a tls handler
	listeners map[int]net.Listener
	cancel    context.CancelFunc
	ctx       context.Context // of the proxy's life
	tasks     sync.WaitGroup
	pause     gate
	slots     []*slots

	mu     sync.Mutex
	load   int
	idle   time.Time // since when load is zero
	conns  map[net.Conn]struct{}
	closed bool

	accepted, dropped atomic.Int64
}

// NewProxy listens for every TCP service of the machine's app.
func NewProxy(cfg ProxyConfig) (*Proxy, error) {
	if cfg.Machine == nil {
		return nil, errors.New("flytest: a proxy wants a Machine")
	}
	if cfg.IdleStop == 0 {
		cfg.IdleStop = 5 * time.Minute
	}
	if cfg.HoldTimeout == 0 {
		cfg.HoldTimeout = time.Minute
	}
	if cfg.Hostname == "" {
		cfg.Hostname = cfg.Machine.App().Hostname()
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	p := &Proxy{cfg: cfg, log: cfg.Logger, listeners: map[int]net.Listener{}, idle: time.Now(), conns: map[net.Conn]struct{}{}}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	for _, service := range cfg.Machine.App().AllServices() {
		if err := p.serve(service); err != nil {
			p.Close()
			return nil, fmt.Errorf("flytest: %w", err)
		}
	}
	if len(p.listeners) == 0 {
		p.Close()
		return nil, errors.New("flytest: the app has no TCP service")
	}
	p.tasks.Go(p.autostop)
	return p, nil
}

// serve opens a service's ports.
func (p *Proxy) serve(s Service) error {
	if s.Protocol != "tcp" {
		return fmt.Errorf("service %d: protocol %s is not proxied here", s.InternalPort, s.Protocol)
	}
	if s.AutoStopMachines == "suspend" {
		return fmt.Errorf("service %d: suspend cannot be shown here", s.InternalPort)
	}
	room := newSlots(s.Concurrency)
	p.slots = append(p.slots, room)
	for _, port := range s.Ports {
		if slices.Contains(port.Handlers, "pg_tls") {
			return fmt.Errorf("port %d: handler pg_tls is not here", port.Port)
		}
		if slices.Contains(port.Handlers, "tls") && p.edge == nil {
			e, err := newEdge(p.cfg.Hostname, p.cfg.Certificate)
			if err != nil {
				return err
			}
			p.edge = e
		}
		addr, ok := p.cfg.Listen[port.Port]
		if !ok {
			addr = "127.0.0.1:0"
		}
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		p.listeners[port.Port] = ln
		r := &route{proxy: p, service: s, port: port, room: room}
		if slices.Contains(port.Handlers, "http") {
			p.tasks.Go(func() { r.serveHTTP(p.ctx, ln) })
			continue
		}
		p.tasks.Go(func() { p.accept(ln, r) })
	}
	return nil
}

// Addr is the address of the app's first port.
func (p *Proxy) Addr() string {
	for _, s := range p.cfg.Machine.App().AllServices() {
		for _, port := range s.Ports {
			return p.AddrOf(port.Port)
		}
	}
	return ""
}

// AddrOf is where a public port is listened for; "" when it is none of the
// app's.
func (p *Proxy) AddrOf(port int) string {
	ln, ok := p.listeners[port]
	if !ok {
		return ""
	}
	return ln.Addr().String()
}

// EdgeRoots is the PEM of the CA behind the certificate of the tls handlers,
// nil without one or when it was given.
func (p *Proxy) EdgeRoots() []byte {
	if p.edge == nil {
		return nil
	}
	return p.edge.roots
}

// Load is the number of connections now, held ones included, as Fly counts.
func (p *Proxy) Load() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.load
}

// Accepted counts the connections that reached the machine's side of a
// handler, Dropped those that were given up for want of room or of a machine.
func (p *Proxy) Accepted() int64 { return p.accepted.Load() }

// Dropped: see Accepted.
func (p *Proxy) Dropped() int64 { return p.dropped.Load() }

// Freeze stops every byte, both ways, and leaves all connections open, as a
// path does that loses packets. Thaw lets them go on.
func (p *Proxy) Freeze() { p.pause.shut() }

// Thaw undoes Freeze.
func (p *Proxy) Thaw() { p.pause.open() }

// Cut closes every connection now, as an edge does that goes away.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.conns {
		conn.Close()
	}
}

// Close ends the proxy and its connections. The machine is left as it is.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	for _, ln := range p.listeners {
		ln.Close()
	}
	p.Cut()
	p.pause.open()
	p.tasks.Wait()
	return nil
}

func (p *Proxy) accept(ln net.Listener, r *route) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			if p.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors
			continue
		}
		if !p.track(conn) {
			conn.Close()
			return
		}
		p.tasks.Go(func() {
			defer p.untrack(conn)
			r.handle(p.ctx, conn)
		})
	}
}

// track notes a connection to be cut; false when the proxy is closed.
func (p *Proxy) track(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.conns[conn] = struct{}{}
	return true
}

func (p *Proxy) untrack(conn net.Conn) {
	conn.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, conn)
}

// count adds to the load, and notes since when there is none.
func (p *Proxy) count(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.load += n
	if p.load == 0 {
		p.idle = time.Now()
	}
}

// autostop stops the machine when it had no load for IdleStop, which Fly's
// loop also finds out some time later only.
func (p *Proxy) autostop() {
	stops := slices.ContainsFunc(p.cfg.Machine.App().AllServices(), func(s Service) bool {
		return s.AutoStopMachines == "stop" && s.MinMachinesRunning == 0
	})
	if !stops || p.cfg.IdleStop < 0 {
		return
	}
	tick := time.NewTicker(max(p.cfg.IdleStop/10, 5*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-tick.C:
		}
		if p.isIdle() {
			p.log.Info("autostop", "idle", p.cfg.IdleStop)
			_ = p.cfg.Machine.Stop(p.ctx)
		}
	}
}

func (p *Proxy) isIdle() bool {
	m := p.cfg.Machine
	m.mu.Lock()
	started, since := m.state == StateStarted, m.since
	m.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	return started && p.load == 0 && time.Since(since) >= p.cfg.IdleStop && time.Since(p.idle) >= p.cfg.IdleStop
}
