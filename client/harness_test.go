package client

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/mtls/mtlstest"
	"github.com/mayfly-ca/mayfly/client/wire"
)

const (
	testDomain     = "ci.example.com"
	testEngine     = "default"
	testServerName = "engine.example.com"
)

// network is where a test's issuer and sidecar listen: loopback, or memory for
// tests of time.
type network interface {
	listen(t *testing.T) net.Listener
	dialer() DialFunc // nil: the network's own
}

type loopback struct{}

func (loopback) listen(t *testing.T) net.Listener {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func (loopback) dialer() DialFunc { return nil }

// memory is a network of pipes: goroutines that wait on it are durably blocked,
// so a synctest bubble's clock runs.
type memory struct {
	mu    sync.Mutex
	ports map[string]*memListener
	// refuse makes every dial end as on a closed port.
	refuse bool
}

type memListener struct {
	net   *memory
	addr  memAddr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

type memAddr string

func (memAddr) Network() string  { return "tcp" }
func (a memAddr) String() string { return string(a) }

func (m *memory) listen(*testing.T) net.Listener {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ports == nil {
		m.ports = map[string]*memListener{}
	}
	l := &memListener{net: m, addr: memAddr(fmt.Sprintf("127.0.0.1:%d", len(m.ports)+1)), conns: make(chan net.Conn), done: make(chan struct{})}
	m.ports[l.addr.String()] = l
	return l
}

func (m *memory) dialer() DialFunc {
	return func(ctx context.Context, _, addr string) (net.Conn, error) {
		m.mu.Lock()
		l, refuse := m.ports[addr], m.refuse
		m.mu.Unlock()
		if l == nil || refuse {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
		}
		near, far := net.Pipe()
		select {
		case l.conns <- far:
			return near, nil
		case <-l.done:
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (l *memListener) Addr() net.Addr { return l.addr }

func (l *memListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// world is an issuer and an engine of one CA.
type world struct {
	t       *testing.T
	net     network
	ca      *mtlstest.CA
	issuer  *fakeIssuer
	sidecar *fakeSidecar
	source  *countingSource
}

func newWorld(t *testing.T, n network) *world {
	t.Helper()
	ca := mtlstest.New(t, testDomain)
	w := &world{t: t, net: n, ca: ca, source: &countingSource{}}
	w.sidecar = startSidecar(t, n, ca)
	w.issuer = startIssuer(t, n, ca, wire.Engine{Name: testEngine, Endpoint: "tcp://" + w.sidecar.addr, ServerName: testServerName})
	return w
}

func (w *world) config() Config {
	return Config{Issuer: w.issuer.url, Source: w.source, Dial: w.net.dialer(), WakeTimeout: 20 * time.Second}
}

func (w *world) client(change ...func(*Config)) *Client {
	w.t.Helper()
	cfg := w.config()
	for _, f := range change {
		f(&cfg)
	}
	c, err := New(w.t.Context(), cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// countingSource gives a different token each time.
type countingSource struct {
	mu    sync.Mutex
	n     int
	fixed string // if set, always this
	err   error
	asked []string
}

func (s *countingSource) String() string { return "test" }

func (s *countingSource) Token(_ context.Context, audience string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	s.asked = append(s.asked, audience)
	if s.err != nil || s.fixed != "" {
		return s.fixed, s.err
	}
	return fmt.Sprintf("a.b.%d", s.n), nil
}

func (s *countingSource) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// fakeIssuer speaks the issuer's API for one engine.
type fakeIssuer struct {
	t    *testing.T
	ca   *mtlstest.CA
	url  string
	http *http.Server

	mu      sync.Mutex
	engines []wire.Engine
	leaf    mtlstest.Leaf
	ttl     time.Duration
	feed    mtlstest.Feed
	info    wire.Info
	// answer, if it returns true, has answered the n-th POST of a certificate,
	// from 1; spoil changes a right answer.
	answer func(n int, w http.ResponseWriter, r *http.Request) bool
	spoil  func(*wire.IssueResponse)
	posts  int
	feeds  int
	tokens []string
}

func startIssuer(t *testing.T, n network, ca *mtlstest.CA, engines ...wire.Engine) *fakeIssuer {
	t.Helper()
	ln := n.listen(t)
	i := &fakeIssuer{
		t: t, ca: ca, url: "http://" + ln.Addr().String(), engines: engines, ttl: time.Hour,
		info: wire.Info{TrustDomain: testDomain, Audience: "mayfly:" + testDomain},
		leaf: mtlstest.Leaf{Run: "1/1/1"},
	}
	i.http = &http.Server{Handler: i.handler()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = i.http.Serve(ln)
	}()
	t.Cleanup(func() {
		_ = i.http.Close()
		<-done
	})
	return i
}

func (i *fakeIssuer) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.PathInfo, func(w http.ResponseWriter, _ *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		_ = json.NewEncoder(w).Encode(i.info)
	})
	mux.HandleFunc("GET "+wire.PathCRLWait, func(w http.ResponseWriter, _ *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.feeds++
		_, _ = w.Write(i.ca.Feed(i.t, i.feed))
	})
	mux.HandleFunc("GET "+wire.PathTrustBundle, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.ca.Root.Certificate.Raw}))
	})
	mux.HandleFunc("POST "+wire.PathCertificates, i.issue)
	return mux
}

func (i *fakeIssuer) set(f func(*fakeIssuer)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f(i)
}

func (i *fakeIssuer) get(f func(*fakeIssuer) int) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return f(i)
}

func (i *fakeIssuer) issue(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.posts++
	i.tokens = append(i.tokens, r.Header.Get("Authorization"))
	n, answer := i.posts, i.answer
	i.mu.Unlock()
	if answer != nil && answer(n, w, r) {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	var req wire.IssueRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		problem(w, wire.ProblemBadRequest, err.Error())
		return
	}
	block, _ := pem.Decode([]byte(req.CSR))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || csr.CheckSignature() != nil {
		problem(w, wire.ProblemBadCSR, "bad csr")
		return
	}
	resp := i.certify(csr, req.Engine)
	if i.spoil != nil {
		i.spoil(&resp)
	}
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(resp)
}

func (i *fakeIssuer) certify(csr *x509.CertificateRequest, engine string) wire.IssueResponse {
	leaf := i.leaf
	now := time.Now()
	leaf.Key, leaf.NotBefore, leaf.NotAfter = csr.PublicKey, now.Add(-time.Minute), now.Add(i.ttl)
	engines := i.engines
	if engine != "" {
		engines = slices.DeleteFunc(slices.Clone(engines), func(e wire.Engine) bool { return e.Name != engine })
	}
	if leaf.Engines == nil {
		for _, e := range engines {
			leaf.Engines = append(leaf.Engines, e.Name)
		}
	}
	cert := i.ca.Issue(i.t, leaf)
	var chain strings.Builder
	for _, der := range cert.Certificate {
		_ = pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	f := i.feed
	return wire.IssueResponse{
		Serial: mtls.Serial(cert.Leaf.SerialNumber), Certificate: chain.String(),
		TrustBundle: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.ca.Root.Certificate.Raw})),
		CRL:         string(i.ca.Feed(i.t, f)),
		NotBefore:   cert.Leaf.NotBefore, NotAfter: cert.Leaf.NotAfter,
		RenewAfter: cert.Leaf.NotAfter.Add(-i.ttl / 2),
		Identity:   cert.Leaf.URIs[0].String(), Rule: "rule", Engines: engines,
	}
}

func problem(w http.ResponseWriter, name, detail string) {
	w.Header().Set("Content-Type", wire.ProblemMediaType)
	w.WriteHeader(wire.ProblemStatus(name))
	_ = json.NewEncoder(w).Encode(wire.Problem{Type: wire.ProblemPrefix + name, Title: name, Status: wire.ProblemStatus(name), Detail: detail})
}

// fakeSidecar speaks the sidecar's protocol and serves an echo as its engine.
type fakeSidecar struct {
	t    *testing.T
	ca   *mtlstest.CA
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
	conns   map[net.Conn]struct{}
	relays  map[string]*fakeRelay
	links   map[*fakeLink]struct{}
	n       int // connections accepted
	opened  int // control connections opened
	holds   int // holds confirmed
}

// fakeRelay is a relay at the sidecar's end.
type fakeRelay struct {
	bottom net.Conn
	run    string
	id     string
	expiry *time.Timer
	heldBy string // serial
	held   bool   // by a control connection
}

// fakeLink is a control connection at the sidecar's end.
type fakeLink struct {
	conn   *tls.Conn
	bottom net.Conn
	peer   mtls.Peer
	mu     sync.Mutex
}

func startSidecar(t *testing.T, n network, ca *mtlstest.CA) *fakeSidecar {
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

func engineLeaf() mtlstest.Leaf {
	return mtlstest.Leaf{ID: "/engine/" + testEngine + "/fly/1", DNS: []string{testServerName}, Usage: x509.ExtKeyUsageServerAuth, NotAfter: time.Now().Add(24 * time.Hour)}
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

// handle serves one connection; bottom is the TCP one.
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

// cut tells every control connection, and cuts.
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
	s.links[l] = struct{}{}
	s.opened++
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

// waitHeldBy waits until a control connection of this serial holds every relay.
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

// eventually waits for what another goroutine is about to do.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// echo sends text and wants it back.
func echo(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	if string(b) != text {
		t.Fatalf("echo %q of %q", b, text)
	}
}

func as[T error](t *testing.T, err error) T {
	t.Helper()
	var e T
	if !errors.As(err, &e) {
		t.Fatalf("error is %T: %v", err, err)
	}
	return e
}
