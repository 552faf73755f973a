package sidecar_test

import (
	"testing"

	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// reported returns the statuses reported so far.
func (f *fakeIssuer) reported() []wire.SidecarStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]wire.SidecarStatus(nil), f.statuses...)
}

// TestStatusReports: the sidecar reports that it listens, that its own
// certificate is revoked, and that it stops.
func TestStatusReports(t *testing.T) {
	t.Parallel()
	w := setUp(t)
	w.cfg.EngineVersion, w.cfg.Program.Version = "registry.dagger.io/engine:v0.21.8@sha256:00", "v1.2.3"
	w.echo()
	w.run()
	eventually(t, "the first status", func() bool { return len(w.issuer.reported()) > 0 })
	got := w.issuer.reported()[0]
	w.issuer.mu.Lock()
	ends := w.issuer.issued[0].NotAfter
	w.issuer.mu.Unlock()
	if got.State != wire.SidecarListening || got.Version != "v1.2.3" || got.EngineVersion != "engine:v0.21.8" || got.EngineSocket != wire.SocketOK ||
		!got.CertificateNotAfter.Equal(ends) || got.FeedAgeSeconds < 0 || got.FeedAgeSeconds > 60 {
		t.Errorf("when it listens: %+v, the certificate ends at %v", got, ends)
	}
	w.issuer.set(func() { w.issuer.denied = true })
	w.issuer.revoke(w.issuer.issued[0])
	eventually(t, "paused", func() bool { return w.issuer.reported()[len(w.issuer.reported())-1].State == wire.SidecarPaused })
	w.issuer.set(func() { w.issuer.denied = false })
	eventually(t, "listening again", func() bool { return w.issuer.reported()[len(w.issuer.reported())-1].State == wire.SidecarListening })
	w.stop()
	w.wantEnd(0, "")
	all := w.issuer.reported()
	if last := all[len(all)-1]; last.State != wire.SidecarStopped || last.EngineSocket != wire.SocketUnreachable {
		t.Errorf("when it stopped: %+v", last)
	}
}

// TestStatusIsNotTaken: an issuer that does not know or refuses the status
// still gets the sessions.
func TestStatusIsNotTaken(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*fakeIssuer){
		"an earlier issuer": func(f *fakeIssuer) { f.earlier = true },
		"refused":           func(f *fakeIssuer) { f.refusal = "version is missing" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := setUp(t)
			change(w.issuer)
			w.echo()
			w.run()
			eventually(t, "the refusal", func() bool { return w.log.has("status is not reported") })
			cert := w.clientCert(nil)
			serial := mtls.Serial(cert.Leaf.SerialNumber)
			w.admitted(cert).Close()
			eventually(t, "the session", func() bool { return w.issuer.told(serial)[wire.SessionClose].ID != "" })
			w.stop()
			w.wantEnd(0, "")
			if w.log.has("sessions are not reported") || w.log.has("session report dropped") {
				t.Errorf("the log says:\n%s", w.log)
			}
		})
	}
}

// TestStatusOfSocket: a missing socket of the engine is reported.
func TestStatusOfSocket(t *testing.T) {
	t.Parallel()
	w := setUp(t)
	w.echo()
	w.run()
	eventually(t, "the first status", func() bool { return len(w.issuer.reported()) > 0 })
	w.engine.Close()
	eventually(t, "not ready", func() bool { _, body := w.get("/readyz"); return contains(body, "does not answer") })
	w.issuer.set(func() { w.issuer.denied = true }) // no other certificate before the sidecar has paused
	w.issuer.revoke(w.issuer.issued[0])             // triggers a status report
	eventually(t, "unreachable", func() bool {
		return w.issuer.reported()[len(w.issuer.reported())-1].EngineSocket == wire.SocketUnreachable
	})
}
