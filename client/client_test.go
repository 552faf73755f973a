package client

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
)

func TestRelay(t *testing.T) {
	t.Parallel()
	w := newWorld(t, loopback{})
	c := w.client()
	conn, err := c.DialContext(t.Context(), "tcp", "dagger:80")
	if err != nil {
		t.Fatal(err)
	}
	echo(t, conn, "hello")
	w.sidecar.waitHeldBy(t, c.Info().Serial)
	// After a half-close, the engine reads to the end and its answer still comes.
	if _, err := io.WriteString(conn, "and more"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("x")); err == nil {
		t.Error("wrote after CloseWrite")
	}
	rest, err := io.ReadAll(conn)
	if err != nil || string(rest) != "and more" {
		t.Errorf("read %q, %v", rest, err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	s := c.Stats()
	if s.Connections != 1 || s.Open != 0 || s.BytesSent != 13 || s.BytesReceived != 13 || s.Wake <= 0 {
		t.Errorf("stats %+v", s)
	}
	eventually(t, "the control connection to close with the last relay", func() bool {
		return w.sidecar.get(func(s *fakeSidecar) int { return len(s.links) }) == 0
	})
}

// TestTruncated checks that a reader gets the data that arrived, and no io.EOF if
// the TCP stream ends before TLS does, at a record's border or within one.
func TestTruncated(t *testing.T) {
	t.Parallel()
	w := newWorld(t, loopback{})
	c := w.client()
	const answer = "the answer"
	for name, tc := range map[string]struct {
		end   func(c *tls.Conn) error
		clean bool
	}{
		"close_notify":  {(*tls.Conn).CloseWrite, true},
		"at the border": {func(c *tls.Conn) error { return c.NetConn().(*net.TCPConn).CloseWrite() }, false},
		"in a record": {func(c *tls.Conn) error {
			_, err := c.NetConn().Write([]byte{23, 3, 3, 1, 0, 7})
			return errors.Join(err, c.NetConn().(*net.TCPConn).CloseWrite())
		}, false},
	} {
		w.sidecar.set(func(s *fakeSidecar) {
			s.serve = func(c net.Conn) {
				_, err := io.WriteString(c, answer)
				if err = errors.Join(err, tc.end(c.(*tls.Conn))); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				_, _ = io.Copy(io.Discard, c)
			}
		})
		conn, err := c.DialContext(t.Context(), "tcp", testEngine)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		if string(got) != answer {
			t.Errorf("%s: read %q", name, got)
		}
		if tc.clean {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		} else if cut := as[*CutError](t, err); cut.Reason != ReasonLost {
			t.Errorf("%s: %v", name, err)
		}
		_ = conn.Close()
	}
}

func TestProxy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, loopback{})
	c := w.client()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- c.Proxy(t.Context(), ln) }()
	for range 3 {
		conn, err := net.Dial("unix", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Repeat("0123456789abcdef", 20_000)
		go func() {
			_, _ = io.WriteString(conn, want)
			_ = conn.(*net.UnixConn).CloseWrite()
		}()
		got, err := io.ReadAll(conn)
		if err != nil || string(got) != want {
			t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
		}
		_ = conn.Close()
	}
	// A revocation ends the proxy, whose error has the reason.
	conn, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	echo(t, conn, "hello")
	w.sidecar.waitHeldBy(t, c.Info().Serial)
	w.sidecar.cutAll(wire.ReasonRevoked)
	cut := as[*CutError](t, <-done)
	if cut.Reason != wire.ReasonRevoked || cut.Serial != c.Info().Serial || !strings.Contains(cut.Error(), "certificate revoked") || !strings.Contains(Hint(cut), "an admin revoked") {
		t.Errorf("cut %v", cut)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the tool's connection lives on")
	}
	if _, err := net.Dial("unix", ln.Addr().String()); err == nil {
		t.Error("the listener lives on")
	}
}

func TestProxyEndsOnRefusal(t *testing.T) {
	t.Parallel()
	w := newWorld(t, loopback{})
	w.sidecar.set(func(s *fakeSidecar) { s.verdict = refuse(wire.ReasonWrongEngine) })
	c := w.client()
	ln := loopback{}.listen(t)
	done := make(chan error, 1)
	go func() { done <- c.Proxy(t.Context(), ln) }()
	// The refusal may arrive before the dial returns.
	if conn, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("the tool sees %v, want a broken connection", err)
		}
		_ = conn.Close()
	}
	if r := as[*RejectedError](t, <-done); r.Reason != wire.ReasonWrongEngine || r.Retryable() {
		t.Errorf("%+v", r)
	}
}

// Without an issuer, a proxy fails new connections and keeps existing ones. Once it
// has none, it ends and returns the reason.
func TestProxyWithoutIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &memory{}
		w := newWorld(t, n)
		c := w.client()
		ln := n.listen(t)
		done := make(chan error, 1)
		go func() { done <- c.Proxy(t.Context(), ln) }()
		dial := func() net.Conn {
			conn, err := n.dialer()(t.Context(), "tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			return conn
		}
		first := dial()
		echo(t, first, "hello")
		w.issuer.set(func(i *fakeIssuer) { i.away = true })
		time.Sleep(maxFeedAge + time.Second)
		second := dial()
		if _, err := second.Read(make([]byte, 1)); err == nil {
			t.Error("a connection without a fresh revocation list")
		}
		synctest.Wait()
		select {
		case err := <-done:
			t.Fatalf("the proxy ended, with a relay open: %v", err)
		default:
		}
		echo(t, first, "still here")
		_ = first.Close()
		synctest.Wait()
		_, _ = dial().Read(make([]byte, 1))
		if p := as[*wire.Problem](t, <-done); p.Name() != wire.ProblemUnavailable {
			t.Errorf("%+v", p)
		}
	})
}

// Without a token for the next certificate, no connection is possible, and a tool
// would retry silently.
func TestProxyEndsWithoutToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &memory{}
		w := newWorld(t, n)
		c := w.client()
		synctest.Wait() // until renewLoop has started its timer
		over := *c.Credential()
		over.Response.NotAfter = time.Now().Add(-time.Minute)
		over.Response.RenewAfter = over.Response.NotAfter.Add(-30 * time.Minute)
		c.cred.Store(&over)
		noToken := errors.New("no token")
		w.source.fail(noToken)
		ln := n.listen(t)
		done := make(chan error, 1)
		go func() { done <- c.Proxy(t.Context(), ln) }()
		conn, err := n.dialer()(t.Context(), "tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Read(make([]byte, 1))
		synctest.Wait()
		select {
		case err := <-done:
			if !errors.Is(err, noToken) {
				t.Error(err)
			}
		default:
			t.Error("the proxy goes on")
		}
	})
}

func TestProxyEndsWithContext(t *testing.T) {
	t.Parallel()
	w := newWorld(t, loopback{})
	c := w.client()
	ctx, cancel := contextWithCancel(t)
	ln := loopback{}.listen(t)
	done := make(chan error, 1)
	go func() { done <- c.Proxy(ctx, ln) }()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	echo(t, conn, "hello")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Close ends relays, dials and the proxy. It revokes nothing.
func TestClose(t *testing.T) {
	t.Parallel()
	w := newWorld(t, loopback{})
	c := w.client()
	conn, err := c.DialContext(t.Context(), "tcp", testEngine)
	if err != nil {
		t.Fatal(err)
	}
	echo(t, conn, "hello")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
	if _, err := c.DialContext(t.Context(), "tcp", testEngine); !errors.Is(err, ErrClosed) {
		t.Errorf("dial after Close: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// With two engines, the address must name one: the client does not guess.
func TestEngineOfAddress(t *testing.T) {
	t.Parallel()
	w := newWorld(t, loopback{})
	w.issuer.set(func(i *fakeIssuer) {
		second := i.engines[0]
		second.Name = "second"
		i.engines = append(i.engines, second)
	})
	c := w.client()
	conn, err := c.DialContext(t.Context(), "tcp", testEngine+":1")
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if _, err := c.DialContext(t.Context(), "tcp", "dagger:1"); err == nil || !strings.Contains(err.Error(), "[default second]") {
		t.Errorf("dial of neither: %v", err)
	}
	if _, err := c.DialContext(t.Context(), "tcp", "second"); err == nil {
		t.Error("believed engine default to be engine second")
	}
	named := w.client(func(c *Config) { c.Engine = testEngine })
	conn, err = named.DialContext(t.Context(), "tcp", "dagger:1")
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}

// The sidecar admits Wake as it admits a relay, and Stats counts no connection.
func TestWake(t *testing.T) {
	t.Parallel()
	w := newWorld(t, loopback{})
	c := w.client()
	if took, err := c.Wake(t.Context()); err != nil || took <= 0 {
		t.Errorf("%v, %v", took, err)
	}
	if s := c.Stats(); s.Connections != 0 || s.Open != 0 || s.FailedDials != 0 || s.Wake <= 0 {
		t.Errorf("stats %+v", s)
	}
	w.sidecar.set(func(s *fakeSidecar) { s.verdict = func(mtls.Peer) string { return wire.ReasonRevoked } })
	_, err := c.Wake(t.Context())
	if r := as[*RejectedError](t, err); r.Reason != wire.ReasonRevoked {
		t.Error(err)
	}
	if s := c.Stats(); s.FailedDials != 1 {
		t.Errorf("stats %+v", s)
	}
}

// A client that wants one engine keeps to it and refuses an answer for several.
func TestOneEngine(t *testing.T) {
	t.Parallel()
	w := newWorld(t, loopback{})
	oneEngine := func(c *Config) { c.OneEngine = true }
	c := w.client(oneEngine)
	// An older issuer refuses the member one_engine, so the client omits it.
	w.issuer.set(func(i *fakeIssuer) {
		i.answer = func(_ int, w http.ResponseWriter, r *http.Request) bool {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			if !bytes.Contains(body, []byte(`"one_engine"`)) {
				return false
			}
			problem(w, wire.ProblemBadRequest, `unknown field "one_engine"`)
			return true
		}
	})
	if n := len(w.client(oneEngine).Info().Engines); n != 1 {
		t.Errorf("%d engines", n)
	}
	w.issuer.set(func(i *fakeIssuer) { i.engines = append(i.engines, wire.Engine{Name: "arm"}) })
	if cred, err := c.mint(t.Context()); err != nil || len(cred.Response.Engines) != 1 {
		t.Errorf("renewed: %v", err)
	}
	cfg := w.config()
	oneEngine(&cfg)
	if c, err := New(t.Context(), cfg); err == nil {
		c.Close()
		t.Error("an answer for two engines was taken for one")
	} else if !strings.Contains(err.Error(), "for 2 engines, and one was wanted") {
		t.Error(err)
	}
}

// A client requests tokens only for a mayfly audience, whatever the issuer says.
func TestAudience(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		info     wire.Info
		audience string
		ok       bool
	}{
		{name: "the issuer's", info: wire.Info{TrustDomain: testDomain, Audience: "mayfly:" + testDomain}, ok: true},
		{name: "of another service", info: wire.Info{TrustDomain: testDomain, Audience: "sts.amazonaws.com"}},
		{name: "of another trust domain", info: wire.Info{TrustDomain: testDomain, Audience: "mayfly:other.example.com"}},
		{name: "configured", audience: "mayfly:" + testDomain, ok: true},
		{name: "configured, of another service", audience: "sts.amazonaws.com"},
		{name: "configured, of another trust domain", audience: "mayfly:other.example.com"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, loopback{})
			w.issuer.set(func(i *fakeIssuer) { i.info = tt.info })
			cfg := w.config()
			cfg.Audience = tt.audience
			c, err := New(t.Context(), cfg)
			if err == nil {
				defer c.Close()
			}
			if (err == nil) != tt.ok {
				t.Errorf("error %v", err)
			}
			for _, a := range w.source.asked {
				if !strings.HasPrefix(a, "mayfly:") {
					t.Errorf("asked for a token for %q", a)
				}
			}
		})
	}
}

func TestRenewInClocks(t *testing.T) {
	t.Parallel()
	now := time.Now()
	c := &Credential{Response: wire.IssueResponse{NotBefore: now.Add(-time.Minute), RenewAfter: now.Add(30 * time.Minute), NotAfter: now.Add(time.Hour)}}
	for _, tt := range []struct {
		clock, want time.Duration
	}{
		{0, 30 * time.Minute},
		{5 * time.Minute, 25 * time.Minute},
		{time.Hour, 15 * time.Minute},  // a clock that is ahead: no frequent renewals
		{-time.Hour, 30 * time.Minute}, // behind: not late
		{20 * time.Minute, 15 * time.Minute},
	} {
		if got := c.renewIn(now.Add(tt.clock)); got != tt.want {
			t.Errorf("clock %v: in %v, want %v", tt.clock, got, tt.want)
		}
	}
}
