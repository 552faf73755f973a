package sidecar_test

import (
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// TestLostFlow: a router drops the sidecar's connection to the issuer. The
// sidecar then sees a revocation within 15 s, and reports sessions again.
func TestLostFlow(t *testing.T) {
	t.Parallel()
	w := setUp(t)
	w.echo()
	path := clienttest.NewPath(t, w.issuer.srv.Listener.Addr().String())
	w.cfg.Issuer = "http://" + path.Addr
	w.run()
	cert := w.clientCert(nil)
	conn, stays := w.admitted(cert), w.admitted(w.clientCert(nil))
	eventually(t, "the sessions to be reported", func() bool { return w.issuer.told(mtls.Serial(cert.Leaf.SerialNumber))[wire.SessionOpen].ID != "" })
	path.Lose()
	w.issuer.revoke(cert.Leaf)
	if took := w.cutOff(conn); took > 15*time.Second {
		t.Errorf("cut after %v, want at most 15s", took)
	}
	w.echoes(stays)
	eventually(t, "the end to be reported", func() bool {
		return w.issuer.told(mtls.Serial(cert.Leaf.SerialNumber))[wire.SessionClose].Reason == wire.ReasonRevoked
	})
}
