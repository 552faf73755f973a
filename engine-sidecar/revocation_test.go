package sidecar_test

import (
	"crypto/x509"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/wire"
	sidecar "github.com/mayfly-ca/mayfly/engine-sidecar"
)

func TestRevokeCuts(t *testing.T) { // ATTACKS 41
	t.Parallel()
	w := start(t)
	rounds := 20
	if os.Getenv("MAYFLY_TEST_REQUIRE") == "all" {
		rounds = 200
	}
	bystander := w.admitted(w.clientCert(nil))
	var took []time.Duration
	for range rounds {
		cert := w.clientCert(nil)
		conn := w.admitted(cert)
		began := time.Now()
		w.issuer.revoke(cert.Leaf)
		w.cutOff(conn)
		took = append(took, time.Since(began))
		w.refusedWith(cert, wire.ReasonRevoked)
	}
	w.echoes(bystander)
	slices.Sort(took)
	p50, p99, most := took[len(took)/2], took[len(took)*99/100], took[len(took)-1]
	t.Logf("publish -> cut over %d: p50 %v, p99 %v, max %v", rounds, p50, p99, most)
	if p99 > time.Second {
		t.Fatalf("p99 %v, want at most 1s", p99)
	}
}

func TestFloorCuts(t *testing.T) {
	t.Parallel()
	w := start(t)
	old := w.clientCert(func(l *clienttest.Leaf) { l.NotBefore = time.Now().Add(-10 * time.Minute) })
	fresh := w.clientCert(nil)
	conn, stays := w.admitted(old), w.admitted(fresh)
	w.issuer.publish(func(f *clienttest.Feed) { f.Floor = time.Now().Add(-5 * time.Minute) })
	w.cutOff(conn)
	w.refusedWith(old, wire.ReasonRevoked)
	w.echoes(stays)
	w.admitted(fresh)
	// An earlier floor afterwards changes nothing.
	w.issuer.publish(func(f *clienttest.Feed) { f.Floor = time.Now().Add(-time.Hour) })
	eventually(t, "report", func() bool { return w.log.has("feed rolled back", "earlier floor") })
	w.refusedWith(old, wire.ReasonRevoked)
}

// TestCompromisedIntermediate: the root's CRL revokes everything below an
// intermediate, also when the feed no longer contains that intermediate, as
// with the real issuer (ATTACKS 56).
func TestCompromisedIntermediate(t *testing.T) {
	t.Parallel()
	for name, left := range map[string]bool{"in the feed": false, "left out of the feed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := setUp(t)
			w.echo()
			second := w.issuer.ca.AddIntermediate(t)
			w.issuer.publish(func(*clienttest.Feed) {})
			w.run()
			of := func(i int) func(*clienttest.Leaf) { return func(l *clienttest.Leaf) { l.Intermediate = i } }
			bad := w.clientCert(of(second))
			conn, stays := w.admitted(bad), w.admitted(w.clientCert(nil))
			w.issuer.publish(func(f *clienttest.Feed) {
				f.Compromised = []int{second}
				if left {
					f.Absent = f.Compromised
				}
			})
			if took := w.cutOff(conn); took > time.Second {
				t.Errorf("cut after %v, want at most 1s", took)
			}
			w.refusedWith(bad, wire.ReasonRevoked)
			w.refusedByTLS(bad, "h2", "bad certificate")
			w.echoes(stays)
			w.admitted(w.clientCert(nil))
			// An intermediate that is in no list may be newer than this feed.
			unknown := w.issuer.ca.AddIntermediate(t)
			w.refusedWith(w.clientCert(of(unknown)), wire.ReasonFeedStale)
		})
	}
}

// TestOwnIntermediateCompromised: the sidecar asks for another certificate.
func TestOwnIntermediateCompromised(t *testing.T) {
	t.Parallel()
	w := setUp(t)
	w.echo()
	second := w.issuer.ca.AddIntermediate(t)
	w.issuer.publish(func(*clienttest.Feed) {})
	w.issuer.set(func() { w.issuer.intermediate = second })
	w.run()
	conn := w.admitted(w.clientCert(nil))
	w.issuer.set(func() { w.issuer.intermediate = 0 })
	w.issuer.publish(func(f *clienttest.Feed) { f.Compromised, f.Absent = []int{second}, []int{second} })
	w.cutOff(conn)
	eventually(t, "another certificate", func() bool {
		conn, err := w.dial(w.clientCert(nil), wire.ALPNRelay)
		return err == nil && conn.ConnectionState().VerifiedChains[0][1].Equal(w.issuer.ca.Intermediates[0].Certificate)
	})
}

func TestFeedStale(t *testing.T) { // ATTACKS 42, 64
	t.Parallel()
	for _, mode := range []string{sidecar.StaleRefuse, sidecar.StaleCut} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := setUp(t)
			w.echo()
			w.cfg.MaxStaleness = 2 * time.Second
			w.cfg.OnStale = mode
			w.run()
			cert := w.clientCert(nil)
			conn := w.admitted(cert)
			w.issuer.set(func() { w.issuer.frozen = true }) // 204 from now on
			eventually(t, "stale", func() bool { code, _ := w.get("/readyz"); return code == 503 })
			w.refusedWith(cert, wire.ReasonFeedStale)
			w.refusedByTLS(cert, "h2", "bad certificate")
			w.control(cert) // still needs the notices of cuts
			if mode == sidecar.StaleCut {
				w.cutOff(conn)
			} else {
				w.echoes(conn)
			}
			w.issuer.set(func() { w.issuer.frozen = false })
			w.issuer.publish(func(*clienttest.Feed) {})
			eventually(t, "fresh again", func() bool { code, _ := w.get("/readyz"); return code == 200 })
			w.admitted(cert)
			eventually(t, "staleness told", func() bool {
				told := w.issuer.told("")[wire.SessionFeedStale]
				return len(told.ID) == 32 && contains(told.Reason, "no revocation list for 2s")
			})
		})
	}
}

func TestFeedRolledBackAndForged(t *testing.T) { // ATTACKS 42, 65
	t.Parallel()
	w := start(t)
	revoked, fine := w.clientCert(nil), w.clientCert(nil)
	w.issuer.revoke(revoked.Leaf)
	eventually(t, "feed 2", func() bool { _, b := w.get("/metrics"); return contains(b, "mayfly_sidecar_feed_number 2") })
	w.refusedWith(revoked, wire.ReasonRevoked)

	forger := clienttest.New(t, trustDomain) // a CA with the same names and other keys
	w.issuer.set(func() {
		w.issuer.feed.Number = 99
		w.issuer.feedPEM = forger.Feed(t, clienttest.Feed{Number: 99, Revoked: nil})
		close(w.issuer.changed)
		w.issuer.changed = make(chan struct{})
	})
	eventually(t, "forgery reported", func() bool {
		_, b := w.get("/metrics")
		return contains(b, `feed_events_total{event="feed_invalid"}`)
	})
	w.refusedWith(revoked, wire.ReasonRevoked)

	// Signed by our CA, with a lower number, without the serial.
	w.issuer.publish(func(f *clienttest.Feed) { f.Number, f.Revoked = 1, nil })
	eventually(t, "lower number reported", func() bool { return w.log.has("feed rolled back", "lower number") })
	w.refusedWith(revoked, wire.ReasonRevoked)

	// With a higher number, without the serial.
	w.issuer.publish(func(f *clienttest.Feed) { f.Number, f.Revoked = 200, nil })
	eventually(t, "missing serial reported", func() bool { return w.log.has("feed rolled back", "lacks serials") })
	w.refusedWith(revoked, wire.ReasonRevoked)
	w.admitted(fine)
}

func TestOwnCertificateRevoked(t *testing.T) { // ATTACKS 69, from the engine's side
	t.Parallel()
	w := start(t)
	addr := w.addr
	conn := w.admitted(w.clientCert(nil))
	var own *x509.Certificate
	w.issuer.set(func() { own, w.issuer.denied = w.issuer.issued[0], true })
	w.issuer.revoke(own)
	w.cutOff(conn)
	eventually(t, "not listening", func() bool {
		_, err := w.dial(w.clientCert(nil), wire.ALPNRelay)
		return err != nil
	})
	if code, body := w.get("/readyz"); code != 503 || !contains(body, "revoked") {
		t.Fatalf("readyz: %d %s", code, body)
	}
	w.issuer.set(func() { w.issuer.denied = false })
	eventually(t, "listening again", func() bool { code, _ := w.get("/readyz"); return code == 200 })
	if w.addr != addr {
		t.Fatal("listens elsewhere")
	}
	again := w.admitted(w.clientCert(nil))
	if got := again.ConnectionState().PeerCertificates[0]; got.Equal(own) {
		t.Fatal("serves the revoked certificate")
	}
}
