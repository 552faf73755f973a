package sidecar

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/time/rate"

	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/admission"
	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/relay"
)

const (
	// deadPeer is the time within which the kernel detects a lost peer.
	deadPeer = 20 * time.Second
	// refusalWait bounds the wait for a refused peer to read the reason.
	refusalWait = 2 * time.Second
)

// maxHandshake bounds the bytes that a client may send before it is
// authenticated. Mayfly's clients send 4 KB, and a client with three 4096-bit
// RSA certificates sends 8 KB. crypto/tls alone accepts 256 KB from a
// stranger, and verifies a hundred signatures in it.
const maxHandshake = 32 << 10

// handshakeConn bounds the bytes that are read during the handshake.
type handshakeConn struct {
	*relay.Conn
	left int // bytes that may still arrive; negative means no bound
}

var errLongHandshake = errors.New("handshake is longer than any client's")

// Read implements net.Conn.
func (c *handshakeConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.left >= 0 {
		if c.left -= n; c.left < 0 {
			c.left = 0
			return 0, errLongHandshake
		}
	}
	return n, err
}

// listener accepts the clients' connections. It can be opened again after
// close.
type listener struct {
	s       *sidecar
	conf    *tls.Config
	rate    *rate.Limiter
	limiter *addressLimiter // per address
	proxies []netip.Prefix
	addr    string // address to listen on; the actual one after the first open

	strangers *rate.Limiter // log lines about unauthenticated peers
	unlogged  atomic.Int64  // lines that strangers refused

	mu    sync.Mutex
	ln    *net.TCPListener
	conns sync.WaitGroup
}

func newFront(s *sidecar) (*listener, error) {
	perSecond := s.cfg.Limits.HandshakeRate
	f := &listener{s: s, addr: s.cfg.Listen, rate: rate.NewLimiter(rate.Limit(perSecond), 2*perSecond),
		limiter: newShares(perSecond), strangers: rate.NewLimiter(strangersPerSecond, strangersAtOnce)}
	var err error
	if f.proxies, err = parsePrefixes(s.cfg.TrustedProxies); err != nil {
		return nil, err
	}
	return f, nil
}

// secure creates the TLS configuration. Call it once the trust domain is
// known, before open. Each handshake asks for the current certificate and
// roots.
func (f *listener) secure(td spiffeid.TrustDomain) {
	f.conf = mtls.ServerConfig(&f.s.own, td, f.authorize)
	follow := f.conf.GetConfigForClient
	f.conf.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if !f.rate.Allow() {
			return nil, errHandshakeRate
		}
		return follow(h)
	}
}

var errHandshakeRate = errors.New("too many handshakes in this second")

// authorize ends the handshake of a refused client that does not speak a
// mayfly protocol. The other clients get the reason after the handshake.
func (f *listener) authorize(p mtls.Peer) error {
	if p.ALPN == wire.ALPNRelay || p.ALPN == wire.ALPNControl {
		return nil
	}
	if refusal := f.s.gate.Judge(p); refusal != nil {
		return &refusedPeer{refusal, p}
	}
	return nil
}

// refusedPeer is a Refusal with its peer, for the log.
type refusedPeer struct {
	*admission.Refusal
	peer mtls.Peer
}

func (r *refusedPeer) Unwrap() error { return r.Refusal }

// open starts listening.
func (f *listener) open() (net.Addr, error) {
	ln, err := relay.ListenConfig(deadPeer).Listen(context.Background(), "tcp", f.addr)
	if err != nil {
		return nil, wire.ListenError("listen", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ln = ln.(*net.TCPListener)
	f.addr = ln.Addr().String()
	f.conns.Go(func() { f.accept(f.ln) })
	return ln.Addr(), nil
}

// close stops listening. Existing connections continue.
func (f *listener) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ln != nil {
		_ = f.ln.Close()
		f.ln = nil
	}
}

// listening reports whether the listener is open.
func (f *listener) listening() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ln != nil
}

func (f *listener) accept(ln *net.TCPListener) {
	for {
		tcp, err := ln.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			// Most likely out of descriptors, which later become free.
			f.s.log.Error("accept", "error", err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		w := f.s.pending.enter(func() { _ = tcp.SetLinger(0); _ = tcp.Close() })
		f.conns.Go(func() { f.handshake(tcp, w) })
	}
}

// handshake authenticates a connection and serves it.
func (f *listener) handshake(tcp *net.TCPConn, w *pendingConn) {
	deadline := time.Now().Add(f.s.cfg.Limits.HandshakeTimeout)
	remote, err := f.address(tcp, w, deadline)
	if err != nil {
		w.leave()
		f.s.metrics.handshakes.WithLabelValues("failed").Inc()
		f.s.log.Debug("connection refused before TLS", "error", err, "peer", tcp.RemoteAddr())
		_ = tcp.Close()
		return
	}
	below, err := relay.NewConn(tcp)
	if err == nil {
		err = errors.Join(below.KeepAlive(deadPeer), tcp.SetDeadline(deadline))
	}
	if err != nil {
		w.leave()
		_ = tcp.Close()
		return
	}
	measured := &handshakeConn{Conn: below, left: maxHandshake}
	conn := tls.Server(measured, f.conf)
	err = conn.Handshake()
	measured.left = -1
	if err != nil {
		f.failed(err, remote)
		below.Farewell(refusalWait)
		w.leave()
		return
	}
	peer, err := f.peer(conn)
	if err != nil {
		// Unexpected: the handshake has just verified this with the same code.
		f.failed(err, remote)
		w.leave()
		_ = below.Abort()
		return
	}
	f.s.metrics.handshakes.WithLabelValues("ok").Inc()
	c := &connection{s: f.s, tls: conn, below: below, peer: partyOf(peer, remote), pending: w}
	c.serve(peer)
}

// address returns the client's address, from the PROXY header or the TCP
// connection.
func (f *listener) address(tcp *net.TCPConn, w *pendingConn, deadline time.Time) (netip.AddrPort, error) {
	peer := addrOf(tcp.RemoteAddr())
	if f.s.cfg.ProxyProtocol == ProxyOff {
		// The peer may be a client or a proxy, so the limit per address is off.
		return peer, nil
	}
	if !trusted(f.proxies, peer.Addr()) {
		return peer, errors.New("peer is not in trusted_proxies")
	}
	if err := tcp.SetReadDeadline(deadline); err != nil {
		return peer, err
	}
	addr, err := readProxyHeader(tcp)
	switch {
	case err != nil:
		return peer, err
	case !addr.IsValid(): // the proxy's own health check
		return peer, nil
	case !f.limiter.allow(addr.Addr(), time.Now()):
		f.s.metrics.handshakes.WithLabelValues("limited").Inc()
		return addr, errHandshakeRate
	case !w.setAddr(addr.Addr()):
		f.s.metrics.handshakes.WithLabelValues("limited").Inc()
		return addr, errors.New("too many handshakes of this address")
	}
	return addr, nil
}

// failed logs a failed handshake. It logs a warning only if the client has
// presented a certificate.
func (f *listener) failed(err error, remote netip.AddrPort) {
	result := "failed"
	if errors.Is(err, errHandshakeRate) {
		result = "limited"
	}
	f.s.metrics.handshakes.WithLabelValues(result).Inc()
	var refused *refusedPeer
	var bad *tls.CertificateVerificationError
	switch {
	case errors.As(err, &refused):
		f.s.refused(refused.Refusal, partyOf(refused.peer, remote), refused.peer.ALPN)
	case errors.As(err, &bad):
		f.logUnauthenticated(slog.LevelWarn, "client certificate does not verify", err, remote)
	case errors.Is(err, io.EOF):
		f.s.log.Debug("connection closed in the handshake", "remote", remote)
	default:
		f.logUnauthenticated(slog.LevelInfo, "handshake", err, remote)
	}
}

// Bounds of the log lines that unauthenticated peers cause: a rate per second
// and a burst.
const (
	strangersPerSecond = 5
	strangersAtOnce    = 50
)

// logUnauthenticated logs an event of an unauthenticated peer, within the
// bounds. The next line has the number of omitted lines; metrics count all.
func (f *listener) logUnauthenticated(level slog.Level, what string, err error, remote netip.AddrPort) {
	ctx := context.Background()
	if !f.s.log.Enabled(ctx, level) {
		return
	}
	if !f.strangers.Allow() {
		f.unlogged.Add(1)
		return
	}
	attrs := []slog.Attr{slog.Any("error", err), slog.String("remote", remote.String())}
	if n := f.unlogged.Swap(0); n > 0 {
		attrs = append(attrs, slog.Int64("unlogged", n))
	}
	f.s.log.LogAttrs(ctx, level, what, attrs...)
}

// peer returns the authenticated peer of the connection.
func (f *listener) peer(conn *tls.Conn) (mtls.Peer, error) {
	cs := conn.ConnectionState()
	if len(cs.VerifiedChains) == 0 {
		return mtls.Peer{}, errors.New("no verified chain")
	}
	chain := cs.VerifiedChains[0]
	claims, err := identity.FromCertificate(chain[0], f.s.own.now.Load().TrustDomain)
	if err != nil {
		return mtls.Peer{}, err
	}
	return mtls.Peer{Claims: claims, Certificate: chain[0], Chain: chain, ALPN: cs.NegotiatedProtocol}, nil
}

// refused counts and logs a refusal of an authenticated peer.
func (s *sidecar) refused(r *admission.Refusal, p peerInfo, alpn string) {
	s.metrics.refusals.WithLabelValues(r.Reason).Inc()
	s.log.LogAttrs(context.Background(), slog.LevelWarn, "client refused", append(p.attrs(),
		slog.String("reason", r.Reason), slog.Any("error", r.Err), slog.String("alpn", alpn))...)
}

// peerInfo describes a peer in the log and in session reports.
type peerInfo struct {
	serial     string
	run        string
	repository string
	identity   string
	remote     string
}

func partyOf(p mtls.Peer, remote netip.AddrPort) peerInfo {
	return peerInfo{
		serial: p.Serial(), run: p.Claims.Grant.Run, repository: p.Claims.Workflow.SourceRepositoryURI,
		identity: p.Claims.ID.String(), remote: remote.String(),
	}
}

// attrs returns the log attributes of a peer.
func (p *peerInfo) attrs() []slog.Attr {
	return []slog.Attr{
		slog.String("serial", p.serial),
		slog.String("run", p.run),
		slog.String("repository", p.repository),
		slog.String("identity", p.identity),
		slog.String("remote", p.remote),
	}
}
