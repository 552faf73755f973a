package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/wire"
)

const (
	testDomain     = "ci.example.com"
	testEngine     = "default"
	testServerName = "engine.example.com"
)

// network is where a test's issuer and sidecar listen: loopback, or memory for
// tests that depend on time.
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

// memory is a network of pipes. Goroutines that wait on it are durably blocked, so
// a synctest bubble's clock advances.
type memory struct {
	mu    sync.Mutex
	ports map[string]*memListener
	// refuse makes every dial fail as on a closed port.
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

// world is an issuer and an engine with the same CA.
type world struct {
	t       *testing.T
	net     network
	ca      *clienttest.CA
	issuer  *fakeIssuer
	sidecar *fakeSidecar
	source  *countingSource
}

func newWorld(t *testing.T, n network) *world {
	t.Helper()
	ca := clienttest.New(t, testDomain)
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

// countingSource returns a different token each time.
type countingSource struct {
	mu    sync.Mutex
	n     int
	fixed string // if set, the token of every call
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

// fail makes all further calls fail.
func (s *countingSource) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *countingSource) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// eventually waits until ok returns true; another goroutine makes it so.
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

// echo sends text and expects it back.
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
