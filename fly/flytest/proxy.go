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

// ProxyConfig describes a proxy. Machine is required.
type ProxyConfig struct {
	Machine *Machine
	// Listen maps a public port to the address to listen on instead. The default is
	// 127.0.0.1 and any free port.
	Listen map[int]string
	// IdleStop is how long the machine may have no connection before the proxy
	// stops it, if the file says stop. Zero means Fly's 5 minutes; a negative value
	// means never.
	IdleStop time.Duration
	// HoldTimeout bounds how long a connection waits for the machine and for a free
	// place under hard_limit. Zero means a minute.
	HoldTimeout time.Duration
	// Certificate is the certificate of the tls handlers. If it is nil, the proxy
	// makes one for Hostname, which EdgeRoots verify.
	Certificate *tls.Certificate
	// Hostname is the app's name at the shared address, for SNI. Empty means the
	// app's name at fly.dev.
	Hostname string
	// Dial connects to the machine, for example in a network namespace. The default
	// connects from this process.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Logger logs refused and dropped connections. Nil discards them.
	Logger *slog.Logger
}

// Proxy is Fly Proxy for the services of one app with one machine: raw TCP, and the
// handlers tls, http and proxy_proto. Close ends it.
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
	idle   time.Time // time since which load is zero
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

// Addr returns the address of the app's first port.
func (p *Proxy) Addr() string {
	for _, s := range p.cfg.Machine.App().AllServices() {
		for _, port := range s.Ports {
			return p.AddrOf(port.Port)
		}
	}
	return ""
}

// AddrOf returns the listening address of a public port, or "" if the app has no
// such port.
func (p *Proxy) AddrOf(port int) string {
	ln, ok := p.listeners[port]
	if !ok {
		return ""
	}
	return ln.Addr().String()
}

// EdgeRoots returns the PEM of the CA of the tls handlers' certificate. It is nil
// without such a handler, or if the certificate was given.
func (p *Proxy) EdgeRoots() []byte {
	if p.edge == nil {
		return nil
	}
	return p.edge.roots
}

// Load returns the current number of connections, as Fly counts: held ones are
// included.
func (p *Proxy) Load() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.load
}

// Accepted returns the number of connections that reached the machine's side of a
// handler.
func (p *Proxy) Accepted() int64 { return p.accepted.Load() }

// Dropped returns the number of connections that the proxy gave up, for lack of a
// free place or of a machine.
func (p *Proxy) Dropped() int64 { return p.dropped.Load() }

// Freeze stops every byte, both ways, and leaves all connections open, like a
// network path that loses packets. Thaw ends it.
func (p *Proxy) Freeze() { p.pause.shut() }

// Thaw ends Freeze.
func (p *Proxy) Thaw() { p.pause.open() }

// Cut closes every connection at once, like an edge that goes away.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.conns {
		conn.Close()
	}
}

// Close ends the proxy and its connections. It does not change the machine.
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
			time.Sleep(10 * time.Millisecond) // no file descriptor is free
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

// track registers a connection for Cut. It returns false if the proxy is closed.
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

// count adds n to the load, and stores the time when the load becomes zero.
func (p *Proxy) count(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.load += n
	if p.load == 0 {
		p.idle = time.Now()
	}
}

// autostop stops the machine after IdleStop without load. Like Fly's loop, it may
// notice this some time later.
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
