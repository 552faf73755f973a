package client

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// fakeSidecar implements the sidecar's protocol and has an echo server as its engine.
type fakeSidecar struct {
	t    *testing.T
	ca   *clienttest.CA
	addr string
	ln   net.Listener
	wg   sync.WaitGroup

	mu      sync.Mutex
	cert    *tls.Certificate
	roots   *x509.CertPool
	verdict func(p mtls.Peer) string // reason; nil admits
	authTLS func(p mtls.Peer) error  // alert; nil admits
	accept  func(n int, c net.Conn) bool
	serve   func(net.Conn)
	frozen  bool
	deaf    bool // accepts no control connection
	crowded bool // ends new control connections as soon as they are admitted
	conns   map[net.Conn]struct{}
	relays  map[string]*fakeRelay
	links   map[*fakeLink]struct{}
	n       int // connections accepted
	opened  int // control connections opened
	holds   int // holds confirmed
}

// fakeRelay is the sidecar's end of a relay.
type fakeRelay struct {
	bottom net.Conn
	run    string
	id     string
	expiry *time.Timer
	heldBy string // serial
	held   bool   // by a control connection
}

// fakeLink is the sidecar's end of a control connection.
type fakeLink struct {
	conn   *tls.Conn
	bottom net.Conn
	peer   mtls.Peer
	mu     sync.Mutex
}

func startSidecar(t *testing.T, n network, ca *clienttest.CA) *fakeSidecar {
	t.Helper()
	s := &fakeSidecar{
		t: t, ca: ca, roots: ca.Roots(), ln: n.listen(t),
		conns: map[net.Conn]struct{}{}, relays: map[string]*fakeRelay{}, links: map[*fakeLink]struct{}{},
	}
	s.addr = s.ln.Addr().String()
	s.cert = ca.Issue(t, engineLeaf())
	s.wg.Go(s.acceptAll)
	t.Cleanup(s.close)
	return s
}

func engineLeaf() clienttest.Leaf {
	return clienttest.Leaf{ID: "/engine/" + testEngine + "/fly/1", DNS: []string{testServerName}, Usage: x509.ExtKeyUsageServerAuth, NotAfter: time.Now().Add(24 * time.Hour)}
}

func (s *fakeSidecar) set(f func(*fakeSidecar)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

func (s *fakeSidecar) get(f func(*fakeSidecar) int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return f(s)
}

func (s *fakeSidecar) close() {
	_ = s.ln.Close()
	s.reset()
	s.wg.Wait()
}

// reset breaks every connection.
func (s *fakeSidecar) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.Close()
	}
}

// resetControl breaks the control connections.
func (s *fakeSidecar) resetControl() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.links {
		_ = l.bottom.Close()
	}
}

// Certificate and Roots implement mtls.Source.
func (s *fakeSidecar) Certificate() (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cert, nil
}

func (s *fakeSidecar) Roots() *x509.CertPool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.roots
}

func (s *fakeSidecar) acceptAll() {
	for {
		conn, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.n++
		n, accept := s.n, s.accept
		s.conns[conn] = struct{}{}
		s.mu.Unlock()
		s.wg.Go(func() {
			defer func() {
				_ = conn.Close()
				s.mu.Lock()
				delete(s.conns, conn)
				s.mu.Unlock()
			}()
			if accept == nil || accept(n, conn) {
				s.handle(conn, conn)
			}
		})
	}
}

// handle serves one connection. bottom is its TCP connection.
func (s *fakeSidecar) handle(conn, bottom net.Conn) {
	var peer mtls.Peer
	c := tls.Server(conn, mtls.ServerConfig(s, s.ca.TrustDomain, func(p mtls.Peer) error {
		peer = p
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.authTLS != nil {
			return s.authTLS(p)
		}
		return nil
	}))
	if err := c.Handshake(); err != nil {
		return
	}
	reason := ""
	s.mu.Lock()
	if s.verdict != nil {
		reason = s.verdict(peer)
	}
	deaf := s.deaf
	s.mu.Unlock()
	switch peer.ALPN {
	case wire.ALPNRelay:
		s.relay(c, bottom, peer, reason)
	case wire.ALPNControl:
		if deaf {
			return
		}
		s.control(c, bottom, peer, reason)
	default:
		_, _ = io.Copy(c, c)
		_ = c.Close()
	}
}

func (s *fakeSidecar) relay(c *tls.Conn, bottom net.Conn, p mtls.Peer, reason string) {
	if reason != "" {
		_, _ = io.WriteString(c, wire.Verdict(reason))
		_ = c.Close()
		return
	}
	name, err := mtls.RelayName(c.ConnectionState())
	if err != nil {
		return
	}
	r := &fakeRelay{bottom: bottom, run: p.Claims.Grant.Run, id: p.Claims.ID.String(), heldBy: p.Serial()}
	r.expiry = time.AfterFunc(time.Until(p.Certificate.NotAfter), func() { s.cut(name, wire.ReasonExpired) })
	s.mu.Lock()
	s.relays[name] = r
	serve := s.serve
	s.mu.Unlock()
	defer func() {
		r.expiry.Stop()
		s.mu.Lock()
		delete(s.relays, name)
		s.mu.Unlock()
	}()
	if _, err := io.WriteString(c, wire.VerdictOK); err != nil {
		return
	}
	if serve != nil {
		serve(c)
		return
	}
	_, _ = io.Copy(struct{ io.Writer }{c}, c)
	_ = c.CloseWrite()
	_, _ = io.Copy(io.Discard, c)
}

// cut sends the cut on every control connection, and then closes the relay.
func (s *fakeSidecar) cut(name, reason string) {
	s.mu.Lock()
	r := s.relays[name]
	links := make([]*fakeLink, 0, len(s.links))
	for l := range s.links {
		links = append(links, l)
	}
	s.mu.Unlock()
	if r == nil {
		return
	}
	for _, l := range links {
		l.send(wire.Control{Cut: name, Reason: reason})
	}
	_ = r.bottom.Close()
}

func (s *fakeSidecar) cutAll(reason string) {
	s.mu.Lock()
	names := make([]string, 0, len(s.relays))
	for name := range s.relays {
		names = append(names, name)
	}
	s.mu.Unlock()
	for _, name := range names {
		s.cut(name, reason)
	}
}

func (s *fakeSidecar) control(c *tls.Conn, bottom net.Conn, p mtls.Peer, reason string) {
	_, _ = io.WriteString(c, wire.Verdict(reason))
	if reason != "" {
		_ = c.Close()
		return
	}
	l := &fakeLink{conn: c, bottom: bottom, peer: p}
	s.mu.Lock()
	s.opened++
	if s.crowded {
		s.mu.Unlock()
		_ = c.Close()
		return
	}
	s.links[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.links, l)
		s.mu.Unlock()
	}()
	lines := bufio.NewReaderSize(c, wire.MaxControlLine)
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			return
		}
		m, err := wire.ParseControl(line)
		if err != nil {
			s.t.Errorf("sidecar: %v", err)
			return
		}
		s.mu.Lock()
		frozen := s.frozen
		s.mu.Unlock()
		if frozen {
			continue
		}
		if m.Ping != 0 {
			l.send(wire.Control{Pong: m.Ping})
		}
		if m.Hold != nil {
			l.send(wire.Control{Held: s.hold(m.Hold, p)})
		}
	}
}

// hold ties relays of the same run and identity to p's certificate.
func (s *fakeSidecar) hold(names []string, p mtls.Peer) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := []string{}
	for _, name := range names {
		r := s.relays[name]
		if r == nil || r.run == "" || r.run != p.Claims.Grant.Run || r.id != p.Claims.ID.String() {
			continue
		}
		r.expiry.Reset(time.Until(p.Certificate.NotAfter))
		r.heldBy, r.held = p.Serial(), true
		s.holds++
		held = append(held, name)
	}
	return held
}

func (l *fakeLink) send(m wire.Control) {
	line, err := m.Line()
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = l.conn.Write(line)
}

// waitHeldBy waits until a control connection under this serial holds all relays.
func (s *fakeSidecar) waitHeldBy(t *testing.T, serial string) {
	t.Helper()
	eventually(t, "relays to hang on "+serial, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, r := range s.relays {
			if r.heldBy != serial || !r.held {
				return false
			}
		}
		return len(s.relays) > 0
	})
}
