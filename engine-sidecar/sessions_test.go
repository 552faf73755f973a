package sidecar_test

import (
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// told returns what was reported of a serial, by kind.
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
	if w.issuer.reportTo[0] == "" {
		t.Fatal("reported without a token")
	}
}

// TestSessionsWhileIssuerIsAway: relays do not wait, and all is told later.
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

// TestLastSessions: a stop tells the issuer before it ends.
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
