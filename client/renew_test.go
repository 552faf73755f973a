package client

import (
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// recorder records the events of a client.
type recorder struct {
	mu     sync.Mutex
	events []Event
}

func (r *recorder) hear(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

func (r *recorder) kinds(of EventKind) []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.events), func(e Event) bool { return e.Kind != of })
}

func dialed(t *testing.T, c *Client) net.Conn {
	t.Helper()
	conn, err := c.DialContext(t.Context(), "tcp", testEngine)
	if err != nil {
		t.Fatal(err)
	}
	echo(t, conn, "hello")
	return conn
}

// A build takes three hours with certificates of one hour. Its connection stays open
// through the renewals, each with a fresh token and a new key.
func TestLongJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &memory{})
		var r recorder
		c := w.client(func(c *Config) { c.Progress = r.hear })
		conn := dialed(t, c)
		first := c.Credential()
		for range 3 * 6 {
			time.Sleep(10 * time.Minute)
			echo(t, conn, "still here")
		}
		time.Sleep(5 * time.Minute) // past the renewal at 3 h
		w.sidecar.waitHeldBy(t, c.Info().Serial)
		if n := len(r.kinds(EventRenewed)); n != 6 {
			t.Errorf("%d renewals in 3 h", n)
		}
		if got := w.source.count(); got != len(r.kinds(EventRenewed))+1 {
			t.Errorf("%d tokens", got)
		}
		if tokens := slices.Compact(slices.Sorted(slices.Values(w.issuer.tokens))); len(tokens) != len(w.issuer.tokens) {
			t.Error("a token was used twice")
		}
		if c.Credential().key.Equal(first.key) || c.Credential().Serial() == first.Serial() {
			t.Error("the key was not renewed")
		}
		if n := w.sidecar.get(func(s *fakeSidecar) int { return len(s.links) }); n != 1 {
			t.Errorf("%d control connections are open", n)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
}

// If renewal fails, the relay ends at NotAfter with that reason. A new dial tries to
// mint and returns why that fails.
func TestRenewalStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &memory{})
		var r recorder
		c := w.client(func(c *Config) { c.Progress = r.hear })
		conn := dialed(t, c)
		end := c.Info().NotAfter
		w.issuer.set(func(i *fakeIssuer) {
			i.answer = func(_ int, w http.ResponseWriter, _ *http.Request) bool {
				problem(w, wire.ProblemBlocked, "run 7 is blocked until tomorrow")
				return true
			}
		})
		_, err := io.ReadAll(conn)
		if late := time.Since(end); late < 0 || late > time.Second {
			t.Errorf("ended %v after NotAfter", late)
		}
		cut := as[*CutError](t, err)
		if cut.Reason != wire.ReasonExpired || !cut.NotAfter.Equal(end) || cut.Renewal == nil || !cut.Final() {
			t.Errorf("%+v", cut)
		}
		for _, says := range []string{"expired", cut.Serial, "renewing the certificate fails", "run 7 is blocked"} {
			if !strings.Contains(err.Error(), says) {
				t.Errorf("%q does not say %q", err, says)
			}
		}
		if _, err := conn.Write([]byte("x")); as[*CutError](t, err) != cut {
			t.Error("a write has another reason")
		}
		if len(r.kinds(EventRenewFailed)) < 10 || len(r.kinds(EventCut)) != 1 {
			t.Errorf("%d failed renewals, %d cuts told", len(r.kinds(EventRenewFailed)), len(r.kinds(EventCut)))
		}
		_ = conn.Close()
		_, err = c.DialContext(t.Context(), "tcp", testEngine)
		if p := as[*wire.Problem](t, err); p.Name() != wire.ProblemBlocked {
			t.Errorf("%+v", p)
		}
		// The block is removed: the client recovers without help.
		w.issuer.set(func(i *fakeIssuer) { i.answer = nil })
		conn = dialed(t, c)
		_ = conn.Close()
	})
}

// If the issuer is down at half of the lifetime and back before the end, nothing
// breaks.
func TestRenewalHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &memory{}
		w := newWorld(t, n)
		c := w.client()
		conn := dialed(t, c)
		time.Sleep(25 * time.Minute)
		w.issuer.set(func(i *fakeIssuer) {
			i.answer = func(_ int, w http.ResponseWriter, _ *http.Request) bool {
				problem(w, wire.ProblemUnavailable, "the store is down")
				return true
			}
		})
		time.Sleep(25 * time.Minute)
		echo(t, conn, "still here")
		w.issuer.set(func(i *fakeIssuer) { i.answer = nil })
		time.Sleep(25 * time.Minute)
		echo(t, conn, "still here")
		if c.Stats().Renewals == 0 {
			t.Error("not renewed")
		}
		_ = conn.Close()
	})
}

// A sidecar that falls silent is detected after 20 s, although an engine's connection
// may carry no data for minutes.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &memory{})
		c := w.client()
		conn := dialed(t, c)
		time.Sleep(10 * time.Minute)
		echo(t, conn, "after ten minutes of nothing")
		w.sidecar.set(func(s *fakeSidecar) { s.frozen, s.deaf = true, true })
		start := time.Now()
		_, err := conn.Read(make([]byte, 1))
		if cut := as[*CutError](t, err); cut.Reason != ReasonSilence || cut.Final() {
			t.Errorf("%+v", cut)
		}
		if took := time.Since(start); took < 10*time.Second || took > 21*time.Second {
			t.Errorf("cut after %v", took)
		}
		_ = conn.Close()
	})
}

// A relay that no control connection ever held is not cut for silence.
func TestNeverHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &memory{})
		w.sidecar.set(func(s *fakeSidecar) { s.deaf = true })
		c := w.client()
		conn := dialed(t, c)
		time.Sleep(20 * time.Minute)
		echo(t, conn, "still here")
		// The relay ends at the NotAfter of the certificate that it was dialed with. The
		// reader gets that reason, although the sidecar did not send it.
		_, err := io.ReadAll(conn)
		if cut := as[*CutError](t, err); cut.Reason != wire.ReasonExpired {
			t.Errorf("%+v", cut)
		}
		_ = conn.Close()
	})
}

// After a control connection breaks, another one holds the relays.
func TestControlReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &memory{})
		c := w.client()
		one, two := dialed(t, c), dialed(t, c)
		w.sidecar.waitHeldBy(t, c.Info().Serial)
		for range 3 {
			w.sidecar.resetControl()
			time.Sleep(15 * time.Second)
			echo(t, one, "one")
			echo(t, two, "two")
		}
		if n := w.sidecar.get(func(s *fakeSidecar) int { return s.opened }); n != 4 {
			t.Errorf("%d control connections", n)
		}
		if n := w.sidecar.get(func(s *fakeSidecar) int { return s.holds }); n != 8 {
			t.Errorf("%d holds", n)
		}
		_ = one.Close()
		_ = two.Close()
		synctest.Wait()
		if n := w.sidecar.get(func(s *fakeSidecar) int { return len(s.links) }); n != 0 {
			t.Errorf("%d control connections without a relay", n)
		}
	})
}

// If a control connection is reset while the issuer is down, the build continues,
// whatever the age of the revocation list. An engine that the last list revokes is
// refused, and so is a new dial.
func TestControlResetWithoutIssuer(t *testing.T) {
	for _, revoked := range []bool{false, true} {
		t.Run(fmt.Sprintf("engine revoked: %v", revoked), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, &memory{})
				w.issuer.set(func(i *fakeIssuer) { i.ttl = 4 * time.Hour }) // no renewal
				c := w.client()
				conn := dialed(t, c)
				w.sidecar.waitHeldBy(t, c.Info().Serial)
				if revoked {
					w.issuer.set(func(i *fakeIssuer) {
						i.feed.Number, i.feed.Revoked = 2, []*big.Int{w.sidecar.cert.Leaf.SerialNumber}
					})
					feed, err := mtls.ParseFeed(w.ca.Feed(t, w.issuer.feed), w.ca.RootCertificates())
					if err != nil {
						t.Fatal(err)
					}
					c.adopt(receivedFeed{feed, time.Now()})
				}
				w.issuer.set(func(i *fakeIssuer) { i.away = true })
				time.Sleep(maxFeedAge + time.Minute)
				w.sidecar.resetControl()
				time.Sleep(2 * time.Minute)
				if revoked {
					_, err := conn.Read(make([]byte, 1))
					if cut := as[*CutError](t, err); cut.Reason != ReasonSilence {
						t.Errorf("%+v", cut)
					}
				} else {
					echo(t, conn, "still here")
					w.sidecar.waitHeldBy(t, c.Info().Serial)
				}
				if _, err := c.DialContext(t.Context(), "tcp", testEngine); err == nil {
					t.Error("a new dial was admitted without a fresh list")
				}
				_ = conn.Close()
			})
		})
	}
}

// After a renewal, the old control connection stays until the next one holds the
// relays, because a sidecar without room may end the next one early.
func TestControlHandover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &memory{})
		c := w.client()
		conn := dialed(t, c)
		first := c.Info().Serial
		w.sidecar.waitHeldBy(t, first)
		w.sidecar.set(func(s *fakeSidecar) { s.crowded = true })
		time.Sleep(40 * time.Minute)
		if n := w.sidecar.get(func(s *fakeSidecar) int { return s.opened }); n < 3 || c.Info().Serial == first {
			t.Fatalf("%d control connections opened: no renewal, or only one try", n)
		}
		if n := w.sidecar.get(func(s *fakeSidecar) int { return len(s.links) }); n != 1 {
			t.Errorf("%d control connections live, want the old one", n)
		}
		echo(t, conn, "still here")
		w.sidecar.set(func(s *fakeSidecar) { s.crowded = false })
		time.Sleep(10 * time.Second)
		w.sidecar.waitHeldBy(t, c.Info().Serial)
		if n := w.sidecar.get(func(s *fakeSidecar) int { return len(s.links) }); n != 1 {
			t.Errorf("%d control connections live, want the next one", n)
		}
	})
}

// A reader gets the reason that the sidecar sends before it cuts.
func TestCutReason(t *testing.T) {
	for _, reason := range []string{wire.ReasonRevoked, wire.ReasonFeedStale, wire.ReasonDraining, wire.ReasonLimit, wire.ReasonEngineExited, "moon_phase"} {
		t.Run(reason, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, &memory{})
				c := w.client()
				conn := dialed(t, c)
				w.sidecar.waitHeldBy(t, c.Info().Serial)
				w.sidecar.cutAll(reason)
				_, err := conn.Read(make([]byte, 1))
				cut := as[*CutError](t, err)
				if cut.Reason != reason || cut.Engine != testEngine || cut.Final() == wire.Retryable(reason) {
					t.Errorf("%+v", cut)
				}
				_ = conn.Close()
			})
		})
	}
	t.Run("without a word", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, &memory{})
			c := w.client()
			conn := dialed(t, c)
			w.sidecar.reset()
			_, err := conn.Read(make([]byte, 1))
			if cut := as[*CutError](t, err); cut.Reason != ReasonLost || cut.Err == nil || errors.Is(err, io.EOF) {
				t.Errorf("%+v", cut)
			}
			_ = conn.Close()
		})
	})
}

// A machine that slept past its certificate's end mints at the next dial, once for
// all dials.
func TestDialMints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &memory{})
		c := w.client()
		// As after a suspend: the certificate has expired and no timer has fired.
		synctest.Wait() // until renewLoop has started its timer
		over := *c.Credential()
		over.Response.NotAfter = time.Now().Add(-time.Minute)
		over.Response.RenewAfter = over.Response.NotAfter.Add(-30 * time.Minute)
		c.cred.Store(&over)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				conn, err := c.DialContext(t.Context(), "tcp", testEngine)
				if err != nil {
					t.Error(err)
					return
				}
				_ = conn.Close()
			})
		}
		wg.Wait()
		if n := w.issuer.get(func(i *fakeIssuer) int { return i.posts }); n != 2 {
			t.Errorf("%d certificates", n)
		}
	})
}
