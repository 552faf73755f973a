package sidecar_test

import (
	"bufio"
	"crypto/tls"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// controlConn is the client's side of a control connection.
type controlConn struct {
	tb    testing.TB
	conn  *tls.Conn
	lines *bufio.Scanner
}

// control opens a control connection, which must be admitted.
func (w *world) control(cert *tls.Certificate) *controlConn {
	w.tb.Helper()
	conn, err := w.dial(cert, wire.ALPNControl)
	if err != nil {
		w.tb.Fatal(err)
	}
	if reason := w.verdict(conn); reason != "" {
		w.tb.Fatalf("control connection refused: %s", reason)
	}
	return &controlConn{tb: w.tb, conn: conn, lines: bufio.NewScanner(conn)}
}

func (c *controlConn) send(m wire.Control) {
	c.tb.Helper()
	line, err := m.Line()
	if err != nil {
		c.tb.Fatal(err)
	}
	if _, err := c.conn.Write(line); err != nil {
		c.tb.Fatal(err)
	}
}

func (c *controlConn) next() wire.Control {
	c.tb.Helper()
	if !c.lines.Scan() {
		c.tb.Fatalf("control connection ended: %v", c.lines.Err())
	}
	m, err := wire.ParseControl(c.lines.Bytes())
	if err != nil {
		c.tb.Fatal(err)
	}
	return m
}

// hold sends a hold for relays and returns the names of those that are held.
func (c *controlConn) hold(conns ...*tls.Conn) []string {
	c.tb.Helper()
	var names []string
	for _, conn := range conns {
		names = append(names, nameOf(c.tb, conn))
	}
	c.send(wire.Control{Hold: names})
	return c.next().Held
}

// until makes a certificate expire at end.
func until(end time.Time) func(*clienttest.Leaf) {
	return func(l *clienttest.Leaf) { l.Run, l.NotAfter = "77/1/5", end }
}

// TestThief: the owner's renewal does not extend a relay under a stolen
// certificate (ATTACKS 61).
func TestThief(t *testing.T) {
	t.Parallel()
	w := start(t)
	end := time.Now().Add(4 * time.Second).Truncate(time.Second)
	stolen := w.clientCert(until(end))
	owner, thief := w.admitted(stolen), w.admitted(stolen)
	first := w.control(stolen)
	if held := first.hold(owner); len(held) != 1 {
		t.Fatalf("held %v", held)
	}
	renewed := w.clientCert(nil)
	second := w.control(renewed)
	// The owner knows only its own relay's name.
	if held := second.hold(owner); !slices.Equal(held, []string{nameOf(t, owner)}) {
		t.Fatalf("held %v", held)
	}
	w.cutOff(thief)
	if late := time.Since(end); late < -10*time.Millisecond || late > 2*time.Second {
		t.Fatalf("thief's relay ended %v after NotAfter", late)
	}
	w.echoes(owner)
	w.refusedByTLS(stolen, wire.ALPNRelay, "expired certificate")
}

// TestHoldOfOthers: a client holds only relays of its own SPIFFE ID and run
// (ATTACKS 62).
func TestHoldOfOthers(t *testing.T) {
	t.Parallel()
	w := start(t)
	mine := w.admitted(w.clientCert(nil))
	unnamed := w.admitted(w.clientCert(func(l *clienttest.Leaf) { l.Run = "" }))
	for name, change := range map[string]func(*clienttest.Leaf){
		"another run":      func(l *clienttest.Leaf) { l.Run = "77/2/5" },
		"another identity": func(l *clienttest.Leaf) { l.ID = "/github/1/3" },
		"an empty run":     func(l *clienttest.Leaf) { l.Run = "" },
	} {
		if held := w.control(w.clientCert(change)).hold(mine, unnamed); len(held) != 0 {
			t.Errorf("%s: held %v", name, held)
		}
	}
	unknown := w.control(w.clientCert(nil))
	unknown.send(wire.Control{Hold: []string{strings.Repeat("ab", 32)}})
	if held := unknown.next().Held; len(held) != 0 {
		t.Errorf("an unknown name: held %v", held)
	}
	if held := unknown.hold(mine, unnamed); !slices.Equal(held, []string{nameOf(t, mine)}) {
		t.Errorf("its own: held %v", held)
	}
}

// TestFirstSerialRevoked: a renewed relay is cut when its first certificate is
// revoked (ATTACKS 63).
func TestFirstSerialRevoked(t *testing.T) {
	t.Parallel()
	w := start(t)
	first := w.clientCert(until(time.Now().Add(2 * time.Second)))
	relay, other := w.admitted(first), w.admitted(w.clientCert(nil))
	control := w.control(w.clientCert(nil))
	if held := control.hold(relay); len(held) != 1 {
		t.Fatalf("held %v", held)
	}
	eventually(t, "first certificate over", func() bool { return time.Now().After(first.Leaf.NotAfter.Add(time.Second)) })
	w.echoes(relay) // the renewal keeps the relay alive
	w.issuer.revoke(first.Leaf)
	if got, want := control.next(), (wire.Control{Cut: nameOf(t, relay), Reason: wire.ReasonRevoked}); got.Cut != want.Cut || got.Reason != want.Reason {
		t.Fatalf("notice %+v, want %+v", got, want)
	}
	w.cutOff(relay)
	w.echoes(other)
}

// TestNoticeBeforeCut: when a relay ends, the reason has already arrived on
// the control connection.
func TestNoticeBeforeCut(t *testing.T) {
	t.Parallel()
	w := start(t)
	for range 20 {
		cert := w.clientCert(nil)
		relay, control := w.admitted(cert), w.control(cert)
		if held := control.hold(relay); len(held) != 1 {
			t.Fatalf("held %v", held)
		}
		told := make(chan time.Time, 1)
		go func() {
			if control.lines.Scan() {
				told <- time.Now()
			}
			close(told)
		}()
		w.issuer.revoke(cert.Leaf)
		w.cutOff(relay)
		ended := time.Now()
		at, ok := <-told
		if !ok || at.After(ended) {
			t.Fatalf("notice %v after the cut", at.Sub(ended))
		}
		// The control connection also has the revoked certificate.
		if control.lines.Scan() || control.lines.Err() != nil {
			t.Fatalf("control connection goes on: %v", control.lines.Err())
		}
	}
}

// TestClientHangsUpFirst: a session ends with the cut's reason, even when its
// client closes after the notice and before the cut.
func TestClientHangsUpFirst(t *testing.T) {
	t.Parallel()
	w := start(t)
	for range 20 {
		cert := w.clientCert(nil)
		serial := mtls.Serial(cert.Leaf.SerialNumber)
		relay, control := w.admitted(cert), w.control(cert)
		if held := control.hold(relay); len(held) != 1 {
			t.Fatalf("held %v", held)
		}
		w.issuer.revoke(cert.Leaf)
		control.next()
		if err := relay.NetConn().Close(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "end told", func() bool { return w.issuer.told(serial)[wire.SessionClose].ID != "" })
		if got := w.issuer.told(serial)[wire.SessionClose].Reason; got != wire.ReasonRevoked {
			t.Fatalf("the session ended by %q", got)
		}
	}
}

func TestControlRefusals(t *testing.T) {
	t.Parallel()
	w := start(t)
	revoked := w.clientCert(nil)
	w.issuer.revoke(revoked.Leaf)
	eventually(t, "feed", func() bool { _, b := w.get("/metrics"); return contains(b, "feed_number 2") })
	for cert, want := range map[string]string{"wrong": wire.ReasonWrongEngine, "revoked": wire.ReasonRevoked} {
		c := revoked
		if cert == "wrong" {
			c = w.clientCert(func(l *clienttest.Leaf) { l.Engines = []string{"other"} })
		}
		conn, err := w.dial(c, wire.ALPNControl)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.verdict(conn); got != want {
			t.Errorf("%s: verdict %q, want %q", cert, got, want)
		}
		if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%s: after the refusal: %v", cert, err)
		}
	}
	w.control(w.clientCert(nil))
}

func TestPingAndGarbage(t *testing.T) {
	t.Parallel()
	w := start(t)
	cert := w.clientCert(nil)
	relay, control := w.admitted(cert), w.control(cert)
	if held := control.hold(relay); len(held) != 1 {
		t.Fatalf("held %v", held)
	}
	control.send(wire.Control{Ping: 7})
	if got := control.next(); got.Pong != 7 {
		t.Fatalf("answer to ping: %+v", got)
	}
	for _, line := range []string{"{}\n", "not json\n", `{"ping":1,"hold":[]}` + "\n", `{"hold":["x"]}` + "\n", strings.Repeat("x", wire.MaxControlLine+1)} {
		bad := w.control(cert)
		go io.WriteString(bad.conn, line)
		if bad.lines.Scan() {
			t.Errorf("%.20q was answered with %s", line, bad.lines.Text())
		}
	}
	control.send(wire.Control{Ping: 8})
	if got := control.next(); got.Pong != 8 {
		t.Fatalf("answer to ping: %+v", got)
	}
	w.echoes(relay)
}
