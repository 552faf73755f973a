package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
)

func contextWithCancel(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithCancel(t.Context())
}

func refuse(reason string) func(mtls.Peer) string {
	return func(mtls.Peer) string { return reason }
}

// TestEngineRefuses checks the errors of an engine that does not take the
// connection. Time is the bubble's, so a wake timeout costs nothing.
func TestEngineRefuses(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(*world)
		after func(*world, *Client) // New
		// want is checked with the error; nil means the dial succeeds.
		want func(*testing.T, error)
		says string
	}{
		{name: "awake"},
		{name: "closes the first two connections, as a proxy does that wakes it", spoil: func(w *world) {
			w.sidecar.accept = func(n int, _ net.Conn) bool { return n > 2 }
		}},
		{name: "full at first", spoil: func(w *world) {
			tries := 0
			w.sidecar.verdict = func(p mtls.Peer) string {
				if tries++; tries <= 3 && p.ALPN == wire.ALPNRelay {
					return wire.ReasonLimit
				}
				return ""
			}
		}},
		{name: "too many handshakes at first", spoil: func(w *world) {
			w.sidecar.accept = func(n int, c net.Conn) bool {
				if n <= 3 {
					overrun := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
						return nil, errors.New("too many handshakes in this second")
					}}
					_ = tls.Server(c, overrun).Handshake() // the alert internal_error
				}
				return n > 3
			}
		}},
		{name: "full for good", spoil: verdict(wire.ReasonLimit), want: rejected(wire.ReasonLimit, true), says: "as many connections as it takes"},
		{name: "feed stale for good", spoil: verdict(wire.ReasonFeedStale), want: rejected(wire.ReasonFeedStale, true), says: "does not reach the issuer"},
		{name: "draining for good", spoil: verdict(wire.ReasonDraining), want: rejected(wire.ReasonDraining, true), says: "about to stop"},
		{name: "draining, then silent", spoil: func(w *world) {
			w.sidecar.verdict = refuse(wire.ReasonDraining)
			w.sidecar.accept = func(n int, c net.Conn) bool {
				if n > 1 {
					_, _ = io.Copy(io.Discard, c)
				}
				return n == 1
			}
		}, want: rejected(wire.ReasonDraining, true), says: "about to stop"},
		{name: "revoked", spoil: verdict(wire.ReasonRevoked), want: rejected(wire.ReasonRevoked, false), says: "an admin revoked this run"},
		{name: "expired", spoil: verdict(wire.ReasonExpired), want: rejected(wire.ReasonExpired, false), says: "set the clocks"},
		{name: "wrong engine", spoil: verdict(wire.ReasonWrongEngine), want: rejected(wire.ReasonWrongEngine, false), says: "add this engine to the rule"},
		{name: "a reason of a later version", spoil: verdict("moon_phase"), want: rejected("moon_phase", true), says: "moon_phase"},
		{name: "engine's socket refuses for good", spoil: verdict(wire.ReasonEngineUnavailable), want: rejected(wire.ReasonEngineUnavailable, true), says: "the engine takes no connections"},
		{name: "engine's socket refuses at first", spoil: func(w *world) {
			tries := 0
			w.sidecar.verdict = func(p mtls.Peer) string {
				if tries++; tries <= 3 && p.ALPN == wire.ALPNRelay {
					return wire.ReasonEngineUnavailable
				}
				return ""
			}
		}},
		{name: "knows another root", spoil: func(w *world) {
			w.sidecar.roots = clienttest.New(w.t, testDomain).Roots()
		}, want: rejected(ReasonUnknownCA, false), says: "sidecar the same issuer"},
		{name: "sees the certificate expired", spoil: func(w *world) {
			w.sidecar.accept = func(_ int, c net.Conn) bool {
				serveAt(w, c, time.Now().Add(2*time.Hour))
				return false
			}
		}, want: rejected(wire.ReasonExpired, false), says: "expired certificate"},
		{name: "fails the handshake as for h2", spoil: func(w *world) {
			w.sidecar.authTLS = func(mtls.Peer) error { return errors.New("no") }
		}, want: rejected(ReasonBadCertificate, false), says: "look in the sidecar's log"},
		{name: "asleep for good", after: func(w *world, _ *Client) { w.sidecar.ln.Close() }, want: unreachable, says: "did not answer within 20s"},
		{name: "accepts and never speaks", spoil: func(w *world) {
			w.sidecar.accept = func(_ int, c net.Conn) bool {
				_, _ = io.Copy(io.Discard, c)
				return false
			}
		}, want: unreachable, says: "did not answer within 20s"},
		{name: "shakes hands and never speaks", spoil: func(w *world) {
			w.sidecar.accept = func(_ int, c net.Conn) bool {
				s := tls.Server(c, mtls.ServerConfig(w.sidecar, w.ca.TrustDomain, func(mtls.Peer) error { return nil }))
				if s.Handshake() == nil {
					_, _ = io.Copy(io.Discard, s)
				}
				return false
			}
		}, want: unreachable, says: "did not answer within 20s"},
		{name: "is no TLS server", spoil: func(w *world) {
			w.sidecar.accept = func(_ int, c net.Conn) bool {
				go func() { _, _ = io.Copy(io.Discard, c) }()
				_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
				return false
			}
		}, want: untrustedEngine, says: "correct the port in the endpoint of engine default"},
		{name: "speaks no verdict", spoil: func(w *world) {
			w.sidecar.accept = func(_ int, c net.Conn) bool {
				s := tls.Server(c, mtls.ServerConfig(w.sidecar, w.ca.TrustDomain, func(mtls.Peer) error { return nil }))
				if s.Handshake() == nil {
					_, _ = io.WriteString(s, "PRI * HTTP/2.0\r\n")
				}
				return false
			}
		}, want: untrustedEngine, says: "no verdict"},
		{name: "negotiates nothing", spoil: func(w *world) {
			w.sidecar.accept = func(_ int, c net.Conn) bool {
				cert, _ := w.sidecar.Certificate()
				s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequireAnyClientCert})
				if s.Handshake() == nil {
					_, _ = io.WriteString(s, wire.VerdictOK)
				}
				return false
			}
		}, want: untrustedEngine, says: "does not speak mayfly/1"},
		{name: "wrong name", spoil: engineCert(func(l *clienttest.Leaf) { l.DNS = []string{"other.example.com"} }), want: untrustedEngine, says: "not engine.example.com"},
		{name: "wildcard name", spoil: engineCert(func(l *clienttest.Leaf) { l.DNS = []string{"*.example.com"} }), want: untrustedEngine, says: "does not name engine.example.com"},
		{name: "certificate of another engine", spoil: engineCert(func(l *clienttest.Leaf) { l.ID, l.Engines = "/engine/other/fly/1", []string{"other"} }), want: untrustedEngine, says: "it leads to engine other"},
		{name: "identity of this engine, grant of another", spoil: engineCert(func(l *clienttest.Leaf) { l.Engines = []string{"other"} }), want: untrustedEngine, says: "not granted for engine default"},
		{name: "engine whose name begins with ours", spoil: engineCert(func(l *clienttest.Leaf) { l.ID = "/engine/default-2/fly/1" }), want: untrustedEngine, says: "it is engine default-2"},
		{name: "identity of a job", spoil: engineCert(func(l *clienttest.Leaf) { l.ID = "/github/engine/default/1" }), want: untrustedEngine, says: "which is no engine's"},
		{name: "client certificate as a server's", spoil: engineCert(func(l *clienttest.Leaf) { l.Usage = x509.ExtKeyUsageClientAuth }), want: untrustedEngine, says: "incompatible key usage"},
		{name: "expired certificate", spoil: engineCert(func(l *clienttest.Leaf) { l.NotAfter = time.Now().Add(-time.Second) }), want: untrustedEngine, says: "expired"},
		{name: "another root, same trust domain", spoil: func(w *world) {
			w.sidecar.cert = clienttest.New(w.t, testDomain).Issue(w.t, engineLeaf())
		}, want: untrustedEngine, says: "unknown authority"},
		{name: "our root, another trust domain", spoil: func(w *world) {
			other := *w.ca
			other.TrustDomain = clienttest.New(w.t, "ci.other.example").TrustDomain
			w.sidecar.cert = other.Issue(w.t, engineLeaf())
		}, want: untrustedEngine, says: "trust domain"},
		{name: "revoked certificate, in the list of the 201", spoil: func(w *world) {
			w.issuer.feed.Revoked = []*big.Int{w.sidecar.cert.Leaf.SerialNumber}
		}, want: untrustedEngine, says: "revoked"},
		{name: "another serial revoked", spoil: func(w *world) {
			w.issuer.feed.Revoked = []*big.Int{clienttest.Serial(w.t)}
		}},
		{name: "certificate from before the floor", spoil: func(w *world) {
			w.sidecar.cert = w.ca.Issue(w.t, func() clienttest.Leaf { l := engineLeaf(); l.NotBefore = time.Now().Add(-time.Hour); return l }())
			w.issuer.feed.Floor = time.Now().Add(-time.Minute)
		}, want: untrustedEngine, says: "issued before everything was revoked"},
		{name: "certificate of a compromised intermediate", spoil: func(w *world) {
			i := w.ca.AddIntermediate(w.t)
			l := engineLeaf()
			l.Intermediate = i
			w.sidecar.cert = w.ca.Issue(w.t, l)
			w.issuer.feed.Compromised = []int{i}
		}, want: untrustedEngine, says: "revoked: its intermediate"},
		{name: "certificate of a compromised intermediate that the list leaves out", spoil: func(w *world) {
			l := engineLeaf()
			l.Intermediate = w.ca.AddIntermediate(w.t)
			w.sidecar.cert = w.ca.Issue(w.t, l)
			w.issuer.feed.Compromised, w.issuer.feed.Absent = []int{l.Intermediate}, []int{l.Intermediate}
		}, want: untrustedEngine, says: "revoked: its intermediate"},
		{name: "certificate of an older intermediate", spoil: func(w *world) {
			l := engineLeaf()
			l.Intermediate = w.ca.AddIntermediate(w.t)
			w.sidecar.cert = w.ca.Issue(w.t, l)
		}},
		{name: "endpoint of another scheme", spoil: func(w *world) {
			w.issuer.engines[0].Endpoint = "http://127.0.0.1:1"
		}, want: undialable, says: "another scheme"},
		{name: "host that does not exist", after: cannotDial(&net.DNSError{Err: "no such host", IsNotFound: true}), want: undialable, says: "its host does not exist"},
		{name: "a firewall of this machine", after: cannotDial(syscall.EPERM), want: undialable, says: "a firewall or sandbox"},
		{name: "too many open files", after: cannotDial(syscall.EMFILE), want: undialable, says: "ulimit -n"},
		{name: "a name server that does not answer at first", after: cannotDial(&net.DNSError{Err: "server misbehaving", IsTemporary: true})},
		{name: "no route at first", after: cannotDial(syscall.ENETUNREACH, syscall.ENETUNREACH)},
		{name: "nothing listens", after: cannotDial(slices.Repeat([]error{syscall.ECONNREFUSED}, 1000)...), want: unreachable, says: "nothing listens at tcp://"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, &memory{})
				if tt.spoil != nil {
					w.sidecar.set(func(*fakeSidecar) { w.issuer.set(func(*fakeIssuer) { tt.spoil(w) }) })
				}
				c := w.client(func(c *Config) { c.Progress = onlySleepWakes(t) })
				if tt.after != nil {
					tt.after(w, c)
				}
				conn, err := c.DialContext(t.Context(), "tcp", testEngine)
				if tt.want == nil {
					if err != nil {
						t.Fatal(err)
					}
					echo(t, conn, "hello")
					_ = conn.Close()
					return
				}
				if err == nil {
					t.Fatal("the dial succeeded")
				}
				tt.want(t, err)
				if said := err.Error() + "\n" + Hint(err); !strings.Contains(said, tt.says) {
					t.Errorf("says %q, want %q in it", said, tt.says)
				}
			})
		})
	}
}

func verdict(reason string) func(*world) {
	return func(w *world) { w.sidecar.verdict = refuse(reason) }
}

func engineCert(change func(*clienttest.Leaf)) func(*world) {
	return func(w *world) {
		l := engineLeaf()
		change(&l)
		w.sidecar.cert = w.ca.Issue(w.t, l)
	}
}

func rejected(reason string, retryable bool) func(*testing.T, error) {
	return func(t *testing.T, err error) {
		t.Helper()
		r := as[*RejectedError](t, err)
		if r.Reason != reason || r.Retryable() != retryable || r.Engine != testEngine || len(r.Serial) != 32 {
			t.Errorf("%+v", r)
		}
	}
}

func unreachable(t *testing.T, err error) {
	t.Helper()
	if u := as[*EngineUnreachableError](t, err); u.Waited < 20*time.Second || u.Waited > 21*time.Second {
		t.Errorf("%+v", u)
	}
}

func undialable(t *testing.T, err error) {
	t.Helper()
	if u := as[*EngineUnreachableError](t, err); !u.Final || u.Attempts != 1 {
		t.Errorf("%+v", u)
	}
}

// cannotDial makes the next dials fail with these errors, in order.
func cannotDial(errs ...error) func(*world, *Client) {
	return func(_ *world, c *Client) {
		works := c.cfg.Dial
		c.cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if len(errs) == 0 {
				return works(ctx, network, addr)
			}
			err := errs[0]
			errs = errs[1:]
			return nil, &net.OpError{Op: "dial", Net: network, Err: err}
		}
	}
}

// onlySleepWakes checks that an event says "waking" only after errors that a
// sleeping machine causes.
func onlySleepWakes(t *testing.T) func(Event) {
	return func(e Event) {
		var refused *RejectedError
		var dns *net.DNSError
		_, alert := alertText(e.Err)
		awake := errors.As(e.Err, &refused) || errors.As(e.Err, &dns) || errors.Is(e.Err, syscall.ENETUNREACH) || alert
		if e.Kind == EventWaking && awake || e.Kind == EventRetrying && !awake {
			t.Errorf("event %s after %v", e.Kind, e.Err)
		}
	}
}

func untrustedEngine(t *testing.T, err error) {
	t.Helper()
	as[*UntrustedEngineError](t, err)
}

// serveAt does the handshake of a sidecar whose clock shows at.
func serveAt(w *world, c net.Conn, at time.Time) {
	config := mtls.ServerConfig(w.sidecar, w.ca.TrustDomain, func(mtls.Peer) error { return nil })
	config.Time = func() time.Time { return at }
	config.ClientCAs = w.ca.Roots()
	config.GetConfigForClient = nil
	_ = tls.Server(c, config).Handshake()
}

// A dial ends with its context, and its error says what the dial waited for.
func TestDialContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &memory{})
		c := w.client()
		w.sidecar.ln.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		_, err := c.DialContext(ctx, "tcp", testEngine)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "refused") || time.Since(start) != 3*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

// The client fetches the revocation list again if it is older than five minutes.
func TestFeedIsFetchedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &memory{})
		c := w.client()
		dial := func() error {
			conn, err := c.DialContext(t.Context(), "tcp", testEngine)
			if err == nil {
				_ = conn.Close()
			}
			return err
		}
		w.issuer.set(func(i *fakeIssuer) { i.feed.Revoked = []*big.Int{w.sidecar.cert.Leaf.SerialNumber}; i.feed.Number = 2 })
		if err := dial(); err != nil {
			t.Fatalf("with the list of the 201: %v", err)
		}
		time.Sleep(5*time.Minute + time.Second)
		untrustedEngine(t, dial())
		if n := w.issuer.get(func(i *fakeIssuer) int { return i.feeds }); n != 1 {
			t.Errorf("%d lists fetched", n)
		}
		// Rolled back: the client refuses an older list.
		w.issuer.set(func(i *fakeIssuer) { i.feed.Revoked, i.feed.Number = nil, 1 })
		time.Sleep(5*time.Minute + time.Second)
		if err := dial(); err == nil || !strings.Contains(err.Error(), "older than one it answered before") {
			t.Errorf("rolled back: %v", err)
		}
		// Old on arrival: one of the two clocks is wrong.
		w.issuer.set(func(i *fakeIssuer) {
			i.feed.Number = 3
			i.feed.ThisUpdate = time.Now().Add(-6 * time.Minute)
		})
		if err := dial(); err == nil || !strings.Contains(err.Error(), "clock") {
			t.Errorf("old on arrival: %v", err)
		}
		w.issuer.set(func(i *fakeIssuer) { i.feed.ThisUpdate = time.Time{} })
		if err := dial(); err != nil {
			t.Errorf("fresh: %v", err)
		}
	})
}

// TestEdge uses edge://: the engine's TLS inside a proxy's own TLS.
func TestEdge(t *testing.T) {
	t.Parallel()
	w := newWorld(t, loopback{})
	edge := clienttest.New(t, "edge.example.com")
	cert := edge.Issue(t, clienttest.Leaf{ID: "/x/y/z", DNS: []string{"localhost"}, Usage: x509.ExtKeyUsageServerAuth})
	var hello *tls.ClientHelloInfo
	w.sidecar.set(func(s *fakeSidecar) {
		s.accept = func(_ int, c net.Conn) bool {
			outer := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*cert}, GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
				s.mu.Lock()
				defer s.mu.Unlock()
				hello = h
				return nil, nil
			}})
			if outer.Handshake() == nil {
				s.handle(outer, c)
			}
			return false
		}
	})
	_, port, _ := net.SplitHostPort(w.sidecar.addr)
	w.issuer.set(func(i *fakeIssuer) { i.engines[0].Endpoint = "edge://localhost:" + port })
	c := w.client(func(c *Config) { c.EdgeRoots = edge.Roots() })
	conn, err := c.DialContext(t.Context(), "tcp", testEngine)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	echo(t, conn, "hello")
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(conn); err != nil || len(rest) != 0 {
		t.Errorf("after the half-close: %q, %v", rest, err)
	}
	w.sidecar.set(func(*fakeSidecar) {
		if hello.ServerName != "localhost" || len(hello.SupportedProtos) != 0 {
			t.Errorf("outer hello: name %q, protocols %q", hello.ServerName, hello.SupportedProtos)
		}
	})
	// An edge with another name.
	other := w.client()
	_, err = other.DialContext(t.Context(), "tcp", testEngine)
	untrustedEngine(t, err)
}

// TLSConfig is for programs that dial by themselves. It makes the same checks.
func TestTLSConfig(t *testing.T) {
	t.Parallel()
	w := newWorld(t, loopback{})
	c := w.client()
	for _, protos := range [][]string{nil, {"h2"}} {
		config := c.TLSConfig()
		config.NextProtos = protos
		conn, err := tls.Dial("tcp", w.sidecar.addr, config)
		if err != nil {
			t.Fatal(err)
		}
		echo(t, conn, "hello")
		if got := conn.ConnectionState().NegotiatedProtocol; got != strings.Join(protos, "") {
			t.Errorf("negotiated %q", got)
		}
		_ = conn.Close()
	}
	w.sidecar.set(func(*fakeSidecar) {
		engineCert(func(l *clienttest.Leaf) { l.ID, l.Engines = "/engine/other/fly/1", []string{"other"} })(w)
	})
	if conn, err := tls.Dial("tcp", w.sidecar.addr, c.TLSConfig()); err == nil {
		_ = conn.Close()
		t.Error("believed another engine")
	}
	w.issuer.set(func(i *fakeIssuer) {
		second := i.engines[0]
		second.Name = "second"
		i.engines = append(i.engines, second)
	})
	if conn, err := tls.Dial("tcp", w.sidecar.addr, w.client().TLSConfig()); err == nil {
		_ = conn.Close()
		t.Error("guessed one of two engines")
	}
}

func TestParseEndpoint(t *testing.T) {
	t.Parallel()
	for s, ok := range map[string]bool{
		"tcp://example-engine.fly.dev:8080": true, "edge://example-engine.fly.dev:443": true, "tcp://[::1]:1": true,
		"": false, "example:1": false, "tcp://host": false, "tcp://:1": false, "unix:///x": false, "https://h:1": false,
		"tcp://u@h:1": false, "tcp://h:1/x": false, "tcp://h:1?x": false, "tcp://h:1?": false, "tcp://h:1#x": false,
	} {
		if _, err := parseEndpoint(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}
