package revocation

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/big"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/wire"
)

const trustDomain = "ci.example.com"

// harness is a Checker with a CA. events are the reported events.
type harness struct {
	tb testing.TB
	ca *clienttest.CA
	*Checker

	mu     sync.Mutex
	events []string
}

func newHarness(tb testing.TB, source Source) *harness {
	tb.Helper()
	h := &harness{tb: tb, ca: clienttest.New(tb, trustDomain)}
	h.Checker = New(Options{
		Source: source, Roots: h.ca.RootCertificates, MaxStaleness: 5 * time.Minute,
		Logger: slog.New(slog.DiscardHandler),
		Report: func(e string) { h.mu.Lock(); defer h.mu.Unlock(); h.events = append(h.events, e) },
	})
	return h
}

func (h *harness) reported(event string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Contains(h.events, event)
}

func (h *harness) offer(f clienttest.Feed) bool {
	h.tb.Helper()
	news, err := h.Update(h.ca.Feed(h.tb, f))
	if err != nil {
		h.tb.Fatal(err)
	}
	return news
}

func (h *harness) chain(change func(*clienttest.Leaf)) []*x509.Certificate {
	h.tb.Helper()
	l := clienttest.Leaf{NotAfter: time.Now().Add(48 * time.Hour)}
	if change != nil {
		change(&l)
	}
	return []*x509.Certificate{
		h.ca.Issue(h.tb, l).Leaf, h.ca.Intermediates[l.Intermediate].Certificate, h.ca.Root.Certificate,
	}
}

func (h *harness) want(chain []*x509.Certificate, reason string) {
	h.tb.Helper()
	if got, err := h.Check(chain); got != reason || (err == nil) != (reason == "") {
		h.tb.Fatalf("Check: %q, %v; want %q", got, err, reason)
	}
}

func TestNoFeedIsStale(t *testing.T) {
	t.Parallel()
	h := newHarness(t, nil)
	h.want(h.chain(nil), wire.ReasonFeedStale)
	h.offer(clienttest.Feed{})
	h.want(h.chain(nil), "")
}

// TestAge: a wall clock that was set back, or a monotonic clock that stopped,
// does not make a feed younger (ATTACKS 64).
func TestAge(t *testing.T) {
	t.Parallel()
	published := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		name    string
		arrived time.Duration // after publication, by the wall clock
		wall    time.Duration // now, after publication, by the wall clock
		elapsed time.Duration // since arrival, by the monotonic clock
		want    time.Duration
	}{
		{"plain", time.Second, 11 * time.Second, 10 * time.Second, 11 * time.Second},
		{"clock set back an hour", time.Second, time.Second - time.Hour, 10 * time.Minute, 10*time.Minute + time.Second},
		{"clock set back before arrival", -time.Hour, -time.Hour + 10*time.Minute, 10 * time.Minute, 10 * time.Minute},
		{"suspended", time.Second, time.Hour, 2 * time.Second, time.Hour},
		{"late arrival", 4 * time.Minute, 6 * time.Minute, 2 * time.Minute, 6 * time.Minute},
	} {
		a := newArrival(published, published.Add(tc.arrived))
		if got := a.ageAt(published.Add(tc.wall), tc.elapsed); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// script is a Source that answers with a function, and counts the calls.
type script struct {
	mu    sync.Mutex
	calls int
	f     func(ctx context.Context, after int64) ([]byte, error)
}

func (s *script) WaitCRL(ctx context.Context, after int64) ([]byte, error) {
	s.mu.Lock()
	s.calls++
	f := s.f
	s.mu.Unlock()
	return f(ctx, after)
}

func (s *script) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

// TestEndlessNothing: endless 204s, or the same feed every time, do not keep a
// feed fresh. The Checker does not request them in a busy loop (ATTACKS 64).
func TestEndlessNothing(t *testing.T) {
	for name, same := range map[string]bool{"204": false, "the same feed": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{}
				h := newHarness(t, s)
				first := h.ca.Feed(t, clienttest.Feed{NextUpdate: time.Now().Add(time.Hour)})
				s.f = func(_ context.Context, after int64) ([]byte, error) {
					if after == 0 || same {
						return first, nil
					}
					return nil, nil
				}
				ctx, cancel := context.WithCancel(t.Context())
				go h.Run(ctx)
				synctest.Wait()
				<-h.Fresh()
				chain := h.chain(nil)
				h.want(chain, "")
				time.Sleep(5*time.Minute - time.Second)
				h.want(chain, "")
				time.Sleep(2 * time.Second)
				h.want(chain, wire.ReasonFeedStale)
				if !h.Stale() {
					t.Fatal("not stale")
				}
				if n := s.count(); n > 310 {
					t.Fatalf("%d calls in five minutes", n)
				}
				cancel()
				synctest.Wait()
			})
		})
	}
}

// TestOutage: the Checker retries an unreachable issuer at growing intervals,
// and recovers.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{f: func(context.Context, int64) ([]byte, error) { return nil, errors.New("no route") }}
		h := newHarness(t, s)
		ctx, cancel := context.WithCancel(t.Context())
		go h.Run(ctx)
		time.Sleep(time.Minute)
		if n := s.count(); n < 10 || n > 60 {
			t.Fatalf("%d calls in a minute", n)
		}
		if !h.reported(EventUnreachable) {
			t.Fatal("not reported")
		}
		s.mu.Lock()
		s.f = func(ctx context.Context, after int64) ([]byte, error) {
			if after > 0 {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return h.ca.Feed(t, clienttest.Feed{}), nil
		}
		s.mu.Unlock()
		time.Sleep(10 * time.Second)
		h.want(h.chain(nil), "")
		cancel()
		synctest.Wait()
	})
}

// TestStaysOut: a revoked certificate stays revoked (ATTACKS 42, 65).
func TestStaysOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, nil)
		out, fine := h.chain(nil), h.chain(nil)
		h.offer(clienttest.Feed{Number: 10, Revoked: []*big.Int{out[0].SerialNumber}})
		h.want(out, wire.ReasonRevoked)
		h.want(fine, "")

		if h.offer(clienttest.Feed{Number: 9}) || !h.reported(EventRolledBack) || h.Number() != 10 {
			t.Fatal("a lower number was news")
		}
		h.want(out, wire.ReasonRevoked)
		h.events = nil
		if !h.offer(clienttest.Feed{Number: 11}) || !h.reported(EventRolledBack) {
			t.Fatal("a missing serial was not reported")
		}
		h.want(out, wire.ReasonRevoked)
		h.want(fine, "")

		// After 24 h the issuer may drop the entry. The Checker drops it an hour
		// later.
		time.Sleep(24*time.Hour + time.Minute)
		h.events = nil
		h.offer(clienttest.Feed{Number: 12})
		if h.reported(EventRolledBack) {
			t.Fatal("reported an entry that was let go in time")
		}
		h.want(out, wire.ReasonRevoked)
		time.Sleep(time.Hour)
		h.offer(clienttest.Feed{Number: 13})
		h.want(out, "")
	})
}

// TestOlderFeedStillRevokes: a certificate in a verified feed is revoked, even
// if the feed is older.
func TestOlderFeedStillRevokes(t *testing.T) {
	t.Parallel()
	h := newHarness(t, nil)
	chain := h.chain(nil)
	h.offer(clienttest.Feed{Number: 10})
	h.offer(clienttest.Feed{Number: 9, Revoked: []*big.Int{chain[0].SerialNumber}})
	h.want(chain, wire.ReasonRevoked)
}

func TestFloor(t *testing.T) {
	t.Parallel()
	h := newHarness(t, nil)
	now := time.Now().Truncate(time.Second)
	// Issued is NotBefore + 60 s. A certificate issued at the floor itself is
	// valid.
	at := func(issued time.Time) func(*clienttest.Leaf) {
		return func(l *clienttest.Leaf) { l.NotBefore = issued.Add(-time.Minute) }
	}
	before, exact := h.chain(at(now.Add(-time.Second))), h.chain(at(now))
	h.offer(clienttest.Feed{Number: 1, Floor: now})
	h.want(before, wire.ReasonRevoked)
	h.want(exact, "")
	h.offer(clienttest.Feed{Number: 2, Floor: now.Add(-time.Hour)})
	if !h.reported(EventRolledBack) {
		t.Fatal("an earlier floor was not reported")
	}
	h.want(before, wire.ReasonRevoked)
	h.want(exact, "")
}

func TestForgedAndUncovered(t *testing.T) {
	t.Parallel()
	h := newHarness(t, nil)
	h.offer(clienttest.Feed{Number: 1})
	fine := h.chain(nil)
	forger := clienttest.New(t, trustDomain)
	if _, err := h.Update(forger.Feed(t, clienttest.Feed{Number: 99})); err == nil || !h.reported(EventInvalid) {
		t.Fatalf("forged: %v", err)
	}
	h.want(fine, "")
	// A chain under an intermediate that is not in the feed is undecided.
	second := h.ca.AddIntermediate(t)
	newer := h.chain(func(l *clienttest.Leaf) { l.Intermediate = second })
	h.want(newer, wire.ReasonFeedStale)
	h.offer(clienttest.Feed{Number: 2})
	h.want(newer, "")
	h.offer(clienttest.Feed{Number: 3, Compromised: []int{second}})
	h.want(newer, wire.ReasonRevoked)
	h.want(fine, "")
	h.offer(clienttest.Feed{Number: 4}) // it stays compromised
	h.want(newer, wire.ReasonRevoked)
}

// TestCompromisedAndLeftOut: serials that disappear with the CRL of a
// compromised intermediate are not a rollback. Serials of another intermediate
// are.
func TestCompromisedAndLeftOut(t *testing.T) {
	t.Parallel()
	h := newHarness(t, nil)
	second := h.ca.AddIntermediate(t)
	below := func(l *clienttest.Leaf) { l.Intermediate = second }
	named, unnamed, fine := h.chain(below), h.chain(below), h.chain(nil)
	of := func(intermediate int, serial *big.Int) func(int, *x509.RevocationList) {
		return func(i int, list *x509.RevocationList) {
			if i == intermediate {
				list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
					x509.RevocationListEntry{SerialNumber: serial, RevocationTime: time.Now()})
			}
		}
	}
	h.offer(clienttest.Feed{Number: 1, List: of(second, named[0].SerialNumber)})
	h.want(unnamed, "")
	h.offer(clienttest.Feed{Number: 2, Compromised: []int{second}, Absent: []int{second}})
	if h.reported(EventRolledBack) {
		t.Fatal("reported what its intermediate took along")
	}
	h.want(named, wire.ReasonRevoked)
	h.want(unnamed, wire.ReasonRevoked)
	h.want(fine, "")
	first := h.chain(nil)
	h.offer(clienttest.Feed{Number: 3, Compromised: []int{second}, Absent: []int{second}, List: of(0, first[0].SerialNumber)})
	h.offer(clienttest.Feed{Number: 4, Compromised: []int{second}, Absent: []int{second}})
	if !h.reported(EventRolledBack) {
		t.Fatal("a missing serial of another intermediate was not reported")
	}
	h.want(first, wire.ReasonRevoked)
}

func TestClockSkew(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, tc := range map[string]struct {
		update time.Time
		skew   bool
	}{
		"ahead":            {now.Add(2 * time.Minute), true},
		"a little ahead":   {now.Add(30 * time.Second), false},
		"stale on arrival": {now.Add(-6 * time.Minute), true},
		"a little old":     {now.Add(-time.Minute), false},
	} {
		h := newHarness(t, nil)
		h.offer(clienttest.Feed{ThisUpdate: tc.update})
		if h.reported(EventClockSkew) != tc.skew {
			t.Errorf("%s: reported %v", name, !tc.skew)
		}
		reason, _ := h.Check(h.chain(nil))
		if h.Stale() != tc.skew {
			t.Errorf("%s: stale %v", name, !tc.skew)
		}
		if (reason == wire.ReasonFeedStale) != tc.skew {
			t.Errorf("%s: %q", name, reason)
		}
		select {
		case <-h.Fresh():
			if tc.skew {
				t.Errorf("%s: counts as fresh", name)
			}
		default:
			if !tc.skew {
				t.Errorf("%s: does not count as fresh", name)
			}
		}
	}
}

// FuzzOffer: after any answer of the issuer, revoked certificates stay revoked
// and the number never decreases.
func FuzzOffer(f *testing.F) {
	h := newHarness(f, nil)
	chain := h.chain(nil)
	first := h.ca.Feed(f, clienttest.Feed{Number: 5, Revoked: []*big.Int{chain[0].SerialNumber}})
	f.Add(first)
	f.Add(h.ca.Feed(f, clienttest.Feed{Number: 6}))
	f.Add(h.ca.Feed(f, clienttest.Feed{Number: 4, Compromised: []int{0}}))
	f.Add([]byte("-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := New(h.o)
		if _, err := c.Update(first); err != nil {
			t.Fatal(err)
		}
		_, _ = c.Update(data)
		if c.Number() < 5 {
			t.Fatalf("number fell to %d", c.Number())
		}
		if !c.Revoked(CertificateOf(chain)) {
			t.Fatal("let back in")
		}
	})
}
