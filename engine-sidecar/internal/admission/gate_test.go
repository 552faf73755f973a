package admission

import (
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/revocation"
)

// feed is a Checker with configurable results.
type feed struct {
	mu      sync.Mutex
	revoked map[string]bool
	stale   bool
}

func (f *feed) Check(chain []*x509.Certificate) (string, error) {
	switch {
	case f.Revoked(revocation.CertificateOf(chain)):
		return wire.ReasonRevoked, errors.New("revoked")
	case f.stale:
		return wire.ReasonFeedStale, errors.New("stale")
	}
	return "", nil
}

func (f *feed) Revoked(c revocation.Certificate) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.revoked[c.Serial]
}

func (f *feed) revoke(serial int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revoked[mtls.Serial(big.NewInt(serial))] = true
}

// conn is a Cutter and a Notifier that records its calls.
type conn struct {
	mu    sync.Mutex
	log   []string
	ended bool
}

func (c *conn) note(s string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.log = append(c.log, s)
}

func (c *conn) Cut(reason string) { c.note("cut " + reason) }
func (c *conn) End()              { c.mu.Lock(); defer c.mu.Unlock(); c.ended = true }
func (c *conn) Notify(m wire.Control, sent func()) {
	c.note("told " + m.Cut[:1] + " " + m.Reason)
	sent()
}

func (c *conn) want(t *testing.T, log ...string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.log, log) {
		t.Fatalf("log %q, want %q", c.log, log)
	}
}

func gate(f *feed) *Gate {
	f.revoked = map[string]bool{}
	return NewGate(Options{Engine: "default", Checker: f, MaxAge: 24 * time.Hour, MaxRelays: 4, MaxPerRun: 3})
}

// peer returns a peer with a serial and the given remaining lifetime.
func peer(serial int64, left time.Duration, run string) mtls.Peer {
	now := time.Now()
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: now.Add(-time.Minute), NotAfter: now.Add(left), Raw: []byte{1},
	}
	return mtls.Peer{
		Certificate: cert, Chain: []*x509.Certificate{cert, cert, cert}, ALPN: wire.ALPNRelay,
		Claims: identity.Identity{
			ID:    spiffeid.RequireFromString("spiffe://ci.example.com/github/1/2"),
			Grant: identity.Scope{Engines: []string{"other", "default"}, Run: run},
		},
	}
}

func admit(t *testing.T, g *Gate, p mtls.Peer, name string, c Cutter) *AdmittedRelay {
	t.Helper()
	l, refusal := g.Admit(p, name, c)
	if refusal != nil {
		t.Fatal(refusal)
	}
	return l
}

func control(t *testing.T, g *Gate, p mtls.Peer, n Notifier) *Control {
	t.Helper()
	c, refusal := g.OpenControl(p, n)
	if refusal != nil {
		t.Fatal(refusal)
	}
	return c
}

func TestJudge(t *testing.T) {
	t.Parallel()
	f := &feed{}
	g := gate(f)
	f.revoke(9)
	other := peer(1, time.Hour, "r")
	other.Claims.Grant.Engines = []string{"defaul", "default2", "DEFAULT"}
	for name, tc := range map[string]struct {
		peer  mtls.Peer
		stale bool
		want  string
		ctl   string // for a control connection
	}{
		"fine":            {peer(1, time.Hour, "r"), false, "", ""},
		"other engine":    {other, false, wire.ReasonWrongEngine, wire.ReasonWrongEngine},
		"revoked":         {peer(9, time.Hour, "r"), false, wire.ReasonRevoked, wire.ReasonRevoked},
		"revoked, stale":  {peer(9, time.Hour, "r"), true, wire.ReasonRevoked, wire.ReasonRevoked},
		"expired":         {peer(1, -time.Second, "r"), false, wire.ReasonExpired, wire.ReasonExpired},
		"stale":           {peer(1, time.Hour, "r"), true, wire.ReasonFeedStale, ""},
		"stale, no run":   {peer(1, time.Hour, ""), true, wire.ReasonFeedStale, ""},
		"fine, and empty": {peer(1, time.Hour, ""), false, "", ""},
	} {
		f.stale = tc.stale
		for alpn, want := range map[string]string{wire.ALPNRelay: tc.want, "h2": tc.want, "": tc.want, wire.ALPNControl: tc.ctl} {
			tc.peer.ALPN = alpn
			got := ""
			if r := g.Judge(tc.peer); r != nil {
				got = r.Reason
			}
			if got != want {
				t.Errorf("%s, alpn %q: %q, want %q", name, alpn, got, want)
			}
		}
	}
	f.stale = false
	g.Pause()
	if r := g.Judge(peer(1, time.Hour, "r")); r == nil || r.Reason != wire.ReasonDraining {
		t.Errorf("shut: %v", r)
	}
	g.Resume()
	if r := g.Judge(peer(1, time.Hour, "r")); r != nil {
		t.Errorf("open again: %v", r)
	}
	g.Drain()
	if r := g.Judge(peer(1, time.Hour, "r")); r == nil || r.Reason != wire.ReasonDraining {
		t.Errorf("draining: %v", r)
	}
	control(t, g, peer(1, time.Hour, "r"), &conn{}).Close()
}

func TestLimits(t *testing.T) {
	t.Parallel()
	g := gate(&feed{})
	var lives []*AdmittedRelay
	for i := range 3 {
		lives = append(lives, admit(t, g, peer(1, time.Hour, "a"), fmt.Sprint("a", i), &conn{}))
	}
	if _, r := g.Admit(peer(2, time.Hour, "a"), "a3", &conn{}); r == nil || r.Reason != wire.ReasonLimit {
		t.Fatalf("a fourth of one run: %v", r)
	}
	admit(t, g, peer(2, time.Hour, "b"), "b0", &conn{})
	if _, r := g.Admit(peer(2, time.Hour, "c"), "c0", &conn{}); r == nil || r.Reason != wire.ReasonLimit {
		t.Fatalf("a fifth in all: %v", r)
	}
	lives[0].Done()
	if _, r := g.Admit(peer(2, time.Hour, "b"), "b0", &conn{}); r == nil {
		t.Fatal("a name twice")
	}
	admit(t, g, peer(1, time.Hour, "a"), "a4", &conn{})
}

func TestEndsAtNotAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(&feed{})
		mine, thief, first, second := &conn{}, &conn{}, &conn{}, &conn{}
		old := peer(1, time.Hour, "r")
		l1, l2 := admit(t, g, old, "m", mine), admit(t, g, old, "t", thief)
		c1 := control(t, g, old, first)
		if held := c1.Hold([]string{"m"}); !slices.Equal(held, []string{"m"}) {
			t.Fatal(held)
		}
		alive := func(c *Control, d time.Duration) {
			for range int(d / wire.ControlPingEvery) {
				time.Sleep(wire.ControlPingEvery)
				c.Touch()
			}
		}
		alive(c1, 30*time.Minute)
		renewed := peer(2, time.Hour, "r")
		c2 := control(t, g, renewed, second)
		if held := c2.Hold([]string{"m"}); len(held) != 1 {
			t.Fatal(held)
		}
		c1.Close() // its silence no longer matters
		alive(c2, 29*time.Minute)
		thief.want(t)
		alive(c2, 2*time.Minute)
		thief.want(t, "cut expired") // ATTACKS 61
		mine.want(t)
		alive(c2, 30*time.Minute)
		second.want(t, "told m expired")
		mine.want(t, "cut expired")
		l1.Done()
		l2.Done()
		c2.Close()
	})
}

func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(&feed{})
		relay, loose, ctl := &conn{}, &conn{}, &conn{}
		p := peer(1, time.Hour, "r")
		l1, l2 := admit(t, g, p, "a", relay), admit(t, g, p, "b", loose)
		c := control(t, g, p, ctl)
		c.Hold([]string{"a"})
		time.Sleep(15 * time.Second)
		c.Touch()
		time.Sleep(19 * time.Second)
		relay.want(t)
		time.Sleep(2 * time.Second)
		relay.want(t, "cut silence")
		ctl.want(t, "told a silence")
		loose.want(t) // without a control connection: no heartbeat
		if !ctl.ended {
			t.Fatal("the silent control connection goes on")
		}
		l1.Done()
		l2.Done()
		c.Close()
	})
}

// TestResetAndHoldAgain: a reset of the control connection has no effect when
// the next one comes in time.
func TestResetAndHoldAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, in := range []time.Duration{10 * time.Second, 0} {
			g := gate(&feed{})
			relay := &conn{}
			p := peer(1, time.Hour, "r")
			l := admit(t, g, p, "a", relay)
			first := control(t, g, p, &conn{})
			first.Hold([]string{"a"})
			first.Close()
			if in > 0 {
				time.Sleep(in)
				next := control(t, g, p, &conn{})
				if held := next.Hold([]string{"a"}); len(held) != 1 {
					t.Fatal(held)
				}
				time.Sleep(15 * time.Second)
				relay.want(t)
				next.Close()
			}
			time.Sleep(wire.ControlSilence + time.Second)
			relay.want(t, "cut silence")
			l.Done()
		}
	})
}

func TestMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(&feed{})
		relay := &conn{}
		l := admit(t, g, peer(0, time.Hour, "r"), "a", relay)
		var c *Control
		for i := range 24 * 3 {
			next := control(t, g, peer(int64(i+1), time.Hour, "r"), &conn{})
			if held := next.Hold([]string{"a"}); len(held) != 1 {
				t.Fatalf("renewal %d: %v", i, held)
			}
			if c != nil {
				c.Close()
			}
			c = next
			for range 120 - 2 {
				time.Sleep(10 * time.Second)
				c.Touch()
			}
			relay.want(t)
		}
		for range 24 * 6 {
			time.Sleep(10 * time.Second)
			c.Touch()
		}
		relay.want(t)
		for range 24 * 6 {
			time.Sleep(10 * time.Second)
			c.Touch()
			if held := control(t, g, peer(999, time.Hour, "r"), &conn{}).Hold([]string{"a"}); len(held) == 0 {
				break
			}
		}
		relay.want(t, "cut "+ReasonMaxAge)
		l.Done()
	})
}

// TestAnySerial: a relay is cut when any certificate that it ever depended on
// is revoked (ATTACKS 63).
func TestAnySerial(t *testing.T) {
	t.Parallel()
	for _, revoked := range []int64{1, 2, 3} {
		f := &feed{}
		g := gate(f)
		relay, other := &conn{}, &conn{}
		admit(t, g, peer(1, time.Hour, "r"), "a", relay)
		admit(t, g, peer(4, time.Hour, "r"), "b", other)
		for _, serial := range []int64{2, 3} {
			control(t, g, peer(serial, time.Hour, "r"), &conn{}).Hold([]string{"a"})
		}
		g.Sweep()
		relay.want(t)
		f.revoke(revoked)
		g.Sweep()
		g.Sweep()
		relay.want(t, "cut revoked")
		other.want(t)
	}
}

// TestRevokedHoldsNothing: a control connection with a revoked certificate
// cannot hold, and ends.
func TestRevokedHoldsNothing(t *testing.T) {
	t.Parallel()
	f := &feed{}
	g := gate(f)
	admit(t, g, peer(1, time.Hour, "r"), "a", &conn{})
	ctl := &conn{}
	c := control(t, g, peer(2, time.Hour, "r"), ctl)
	f.revoke(2)
	if held := c.Hold([]string{"a"}); len(held) != 0 {
		t.Fatalf("held %v", held)
	}
	g.Sweep()
	if !ctl.ended {
		t.Fatal("goes on")
	}
}

// openControls opens n control connections that hold nothing.
func openControls(t *testing.T, g *Gate, n int, p mtls.Peer) []*conn {
	t.Helper()
	all := make([]*conn, n)
	for i := range all {
		all[i] = &conn{}
		control(t, g, p, all[i])
		time.Sleep(time.Millisecond) // of the fake clock, so that one is the oldest
	}
	return all
}

// TestTooManyControls: one free connection too many ends the oldest free one
// of the same run.
func TestTooManyControls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(&feed{})
		other := openControls(t, g, 1, peer(9, time.Hour, "other"))
		all := openControls(t, g, maxFreeControls+1, peer(1, time.Hour, "r"))
		if !all[0].ended || all[1].ended || all[maxFreeControls].ended || other[0].ended {
			t.Error("not the oldest one of the run ended")
		}
		if got := g.Counts().Controls; got != maxFreeControls+1 {
			t.Errorf("%d control connections", got)
		}
	})
}

// TestThiefOfControls: a thief with the certificate of a run cannot end a
// control connection that holds the owner's relay, or keep the owner from
// opening one.
func TestThiefOfControls(t *testing.T) {
	for name, relays := range map[string]int{"with nothing to hold": 0, "with relays of its own": 2} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := gate(&feed{})
				stolen, relay := peer(1, 30*time.Minute, "r"), &conn{}
				admit(t, g, stolen, "mine", relay)
				holding := func(name string) *conn {
					t.Helper()
					n := &conn{}
					if held := control(t, g, stolen, n).Hold([]string{name}); len(held) != 1 {
						t.Fatalf("holds %v", held)
					}
					return n
				}
				first := holding("mine")
				for i := range relays {
					thiefs := fmt.Sprint("thief's ", i)
					admit(t, g, stolen, thiefs, &conn{})
					holding(thiefs)
				}
				openControls(t, g, 3*maxFreeControls, stolen)
				if first.ended {
					t.Error("the owner's connection ended")
				}
				// A reset that the sidecar has not noticed yet.
				second := holding("mine")
				openControls(t, g, 3*maxFreeControls, stolen)
				// A renewed connection is free until it holds a relay, but must not end.
				third := openControls(t, g, 1, peer(2, time.Hour, "r"))[0]
				openControls(t, g, 3*maxFreeControls, stolen)
				if second.ended || third.ended {
					t.Errorf("ended: the one after a reset %v, the renewed one %v", second.ended, third.ended)
				}
				relay.want(t)
				if got := g.Counts().Controls; got > maxFreeControls+1+relays {
					t.Errorf("%d control connections", got)
				}
			})
		})
	}
}

func TestEmpty(t *testing.T) {
	t.Parallel()
	g := gate(&feed{})
	<-g.Empty()
	l := admit(t, g, peer(1, time.Hour, "r"), "a", &conn{})
	empty := g.Empty()
	select {
	case <-empty:
		t.Fatal("empty with a relay")
	default:
	}
	l.Done()
	<-empty
	if c := g.Counts(); !c.HadRelay || c.IdleSince.IsZero() || c.Relays != 0 {
		t.Fatalf("%+v", c)
	}
}
