package sidecar_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// told returns the reports for a serial, by kind.
func (f *fakeIssuer) told(serial string) map[string]wire.SessionReport {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]wire.SessionReport{}
	for _, r := range f.reports {
		if r.Serial == serial {
			out[r.Kind] = r
		}
	}
	return out
}

func TestSessions(t *testing.T) {
	t.Parallel()
	w := start(t)
	cert := w.clientCert(nil)
	serial := mtls.Serial(cert.Leaf.SerialNumber)
	conn := w.admitted(cert)
	eventually(t, "opening told", func() bool { return w.issuer.told(serial)[wire.SessionOpen].ID != "" })
	conn.Close()
	eventually(t, "end told", func() bool { return w.issuer.told(serial)[wire.SessionClose].ID != "" })
	told := w.issuer.told(serial)
	opened, closed := told[wire.SessionOpen], told[wire.SessionClose]
	if opened.ID != closed.ID || len(opened.ID) != 32 || opened.Run != "77/1/5" || opened.RemoteAddr == "" {
		t.Fatalf("open %+v, close %+v", opened, closed)
	}
	if closed.BytesIn != 4 || closed.BytesOut != 4 || closed.Reason != "closed" {
		t.Fatalf("close %+v", closed)
	}
	w.issuer.mu.Lock()
	defer w.issuer.mu.Unlock()
	if w.issuer.reportCalls[0].token == "" {
		t.Fatal("reported without a token")
	}
}

// TestSessionsWhileIssuerIsAway: relays do not wait, and all sessions are
// reported later.
func TestSessionsWhileIssuerIsAway(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.issuer.set(func() { w.issuer.down = true })
	serials := map[string]bool{}
	began := time.Now()
	for range 120 { // more than one request holds
		cert := w.clientCert(nil)
		conn := w.admitted(cert)
		conn.Close()
		serials[mtls.Serial(cert.Leaf.SerialNumber)] = true
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Fatalf("120 relays took %v", took)
	}
	w.issuer.set(func() { w.issuer.down = false })
	eventually(t, "all told", func() bool {
		for serial := range serials {
			told := w.issuer.told(serial)
			if told[wire.SessionOpen].ID == "" || told[wire.SessionClose].ID != told[wire.SessionOpen].ID {
				return false
			}
		}
		return true
	})
}

// toldAll reports whether the given number of sessions of a serial were
// reported, from open to close.
func (f *fakeIssuer) toldAll(serial string, sessions int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	opened, closed := map[string]bool{}, 0
	for _, r := range f.reports {
		switch {
		case r.Serial != serial:
		case r.Kind == wire.SessionOpen:
			opened[r.ID] = true
		case r.Kind == wire.SessionClose && opened[r.ID]:
			closed++
		}
	}
	return closed >= sessions
}

// TestLongReports: each request fits the issuer's limit of a body, so no
// report is lost.
func TestLongReports(t *testing.T) {
	t.Parallel()
	w := start(t)
	const relays = 30 // of 25 KB each in a report
	w.issuer.set(func() { w.issuer.down = true })
	cert := w.clientCert(func(l *clienttest.Leaf) { l.Run = strings.Repeat("<", identity.MaxValue) }) // six bytes each in JSON
	serial := mtls.Serial(cert.Leaf.SerialNumber)
	for range relays {
		w.admitted(cert).Close()
	}
	eventually(t, "the ends", func() bool { _, b := w.get("/metrics"); return contains(b, "mayfly_sidecar_relays 0\n") })
	w.issuer.set(func() { w.issuer.down = false })
	eventually(t, "all told", func() bool { return w.issuer.toldAll(serial, relays) })
	w.issuer.mu.Lock()
	defer w.issuer.mu.Unlock()
	most := 0
	for _, call := range w.issuer.reportCalls {
		if call.status != http.StatusOK {
			t.Errorf("a request was answered with %d", call.status)
		}
		most = max(most, call.reports)
	}
	if most < 4 {
		t.Errorf("%d reports at most in one request: not batched", most)
	}
}

// TestUnreadableReport: only the report that the issuer cannot parse is
// dropped. The reports around it arrive.
func TestUnreadableReport(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.issuer.set(func() { w.issuer.down = true })
	var serials []string
	for range 21 {
		cert := w.clientCert(nil)
		w.admitted(cert).Close()
		serials = append(serials, mtls.Serial(cert.Leaf.SerialNumber))
	}
	eventually(t, "the ends", func() bool { _, b := w.get("/metrics"); return contains(b, "mayfly_sidecar_relays 0\n") })
	unreadable := map[string]bool{serials[0]: true, serials[10]: true}
	w.issuer.set(func() {
		w.issuer.misreads = func(r wire.SessionReport) bool { return unreadable[r.Serial] }
		w.issuer.down = false
	})
	for _, serial := range serials {
		if !unreadable[serial] {
			eventually(t, "one around it told", func() bool { return w.issuer.toldAll(serial, 1) })
		}
	}
	if n := strings.Count(w.log.String(), "session report dropped"); n != len(unreadable) {
		t.Errorf("%d dropped, want %d", n, len(unreadable))
	}
}

// TestLastSessions: the sidecar reports its sessions before it stops.
func TestLastSessions(t *testing.T) {
	t.Parallel()
	w := start(t)
	cert := w.clientCert(nil)
	w.admitted(cert)
	w.stop()
	w.wantEnd(0, "")
	if told := w.issuer.told(mtls.Serial(cert.Leaf.SerialNumber)); told[wire.SessionClose].Reason != wire.ReasonDraining {
		t.Fatalf("told %+v", told)
	}
}
