package sidecar_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// refusedByTLS checks that the handshake, or the first read after it, ends
// with an alert that contains want.
func (w *world) refusedByTLS(cert *tls.Certificate, alpn, want string) {
	w.tb.Helper()
	var offers []string
	if alpn != "" {
		offers = []string{alpn}
	}
	conn, err := w.dial(cert, offers...)
	if err == nil {
		// In TLS 1.3 the client finishes before the server has checked its
		// certificate.
		_, err = conn.Read(make([]byte, 1))
	}
	if err == nil || !strings.Contains(err.Error(), want) {
		w.tb.Fatalf("alpn %q: %v, want an alert %q\n%s", alpn, err, want, w.log)
	}
}

var everyALPN = []string{wire.ALPNRelay, wire.ALPNControl, "h2", ""}

func TestRefusedByAlert(t *testing.T) { // ATTACKS 38
	t.Parallel()
	w := start(t)
	other := clienttest.New(t, trustDomain)
	foreign := clienttest.New(t, "ci.example.org")
	foreign.Root, foreign.Intermediates = w.issuer.ca.Root, w.issuer.ca.Intermediates
	for _, tc := range []struct {
		name, alert string
		cert        *tls.Certificate
	}{
		{"server certificate as a client's", "bad certificate", w.clientCert(func(l *clienttest.Leaf) {
			l.Usage, l.ID, l.DNS = x509.ExtKeyUsageServerAuth, "/engine/default/fly/22/m1", []string{serverName}
		})},
		{"both uses", "bad certificate", w.clientCert(func(l *clienttest.Leaf) {
			l.Template = func(c *x509.Certificate) {
				c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
			}
		})},
		{"another root", "unknown certificate authority", other.Issue(t, clienttest.Leaf{Run: "1/1/1"})},
		{"another trust domain", "bad certificate", foreign.Issue(t, clienttest.Leaf{Run: "1/1/1"})},
		{"expired", "expired certificate", w.clientCert(func(l *clienttest.Leaf) {
			l.NotBefore, l.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		})},
		{"no grant", "bad certificate", w.clientCert(func(l *clienttest.Leaf) {
			l.Template = func(c *x509.Certificate) { c.ExtraExtensions = nil }
		})},
	} {
		for _, alpn := range everyALPN {
			w.refusedByTLS(tc.cert, alpn, tc.alert)
		}
	}
	w.admitted(w.clientCert(nil))
}

func TestNoCertificate(t *testing.T) {
	t.Parallel()
	w := start(t)
	conn, err := tls.Dial("tcp", w.addr, &tls.Config{RootCAs: w.issuer.ca.Roots(), ServerName: serverName})
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	if err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Fatalf("without a certificate: %v", err)
	}
}

func TestPlainTCPAndOldTLS(t *testing.T) { // ATTACKS 47
	t.Parallel()
	w := start(t)
	plain, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, err := io.WriteString(plain, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	_ = plain.SetReadDeadline(time.Now().Add(10 * time.Second))
	answer, err := io.ReadAll(plain)
	if len(answer) > 64 || errors.Is(err, io.EOF) {
		t.Fatalf("plain TCP got %d bytes, %v", len(answer), err)
	}
	cert := w.clientCert(nil)
	old := &tls.Config{
		RootCAs: w.issuer.ca.Roots(), ServerName: serverName, Certificates: []tls.Certificate{*cert},
		MaxVersion: tls.VersionTLS12,
	}
	if _, err := tls.Dial("tcp", w.addr, old); err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Fatalf("TLS 1.2: %v", err)
	}
	old.MaxVersion = tls.VersionTLS13
	conn, err := tls.Dial("tcp", w.addr, old)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	w.echoes(conn) // without ALPN there is no verdict
	if got := conn.ConnectionState().CurveID; got != tls.X25519MLKEM768 {
		t.Fatalf("key exchange %v", got)
	}
}

// TestAnyTLSClient: clients without a mayfly protocol are refused with an
// alert, and the log has the reason.
func TestAnyTLSClient(t *testing.T) {
	t.Parallel()
	w := start(t)
	good, wrong := w.clientCert(nil), w.clientCert(func(l *clienttest.Leaf) { l.Engines = []string{"other"} })
	for _, alpn := range []string{"h2", ""} {
		var offers []string
		if alpn != "" {
			offers = []string{alpn}
		}
		conn, err := w.dial(good, offers...)
		if err != nil {
			t.Fatal(err)
		}
		if got := conn.ConnectionState().NegotiatedProtocol; got != alpn {
			t.Fatalf("negotiated %q, want %q", got, alpn)
		}
		w.echoes(conn)
		w.refusedByTLS(wrong, alpn, "bad certificate")
		eventually(t, "reason in the log", func() bool {
			return w.log.has("client refused", "reason=wrong_engine", `alpn="`+alpn+`"`) ||
				w.log.has("client refused", "reason=wrong_engine", "alpn="+alpn+"\n")
		})
	}
	w.issuer.revoke(good.Leaf)
	eventually(t, "revoked", func() bool { return w.log.has("relay ended", "reason=revoked") })
	w.refusedByTLS(good, "h2", "bad certificate")
	w.refusedByTLS(good, "", "bad certificate")
}

func TestResumptionAfterRevoke(t *testing.T) { // ATTACKS 40
	t.Parallel()
	w := start(t)
	cert := w.clientCert(nil)
	conf := &tls.Config{
		RootCAs: w.issuer.ca.Roots(), ServerName: serverName, Certificates: []tls.Certificate{*cert},
		ClientSessionCache: tls.NewLRUClientSessionCache(8),
	}
	dial := func() (*tls.Conn, error) {
		conn, err := tls.Dial("tcp", w.addr, conf)
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { conn.Close() })
		return conn, ping(conn)
	}
	first, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	second, err := dial() // the allowed case: another full handshake
	if err != nil {
		t.Fatal(err)
	}
	if second.ConnectionState().DidResume {
		t.Fatal("resumed: that handshake verified no chain")
	}
	w.issuer.revoke(cert.Leaf)
	w.cutOff(first)
	if _, err := dial(); err == nil {
		t.Fatal("admitted after the revocation")
	}
}

func TestPerRunLimit(t *testing.T) {
	t.Parallel()
	w := setUp(t)
	w.echo()
	w.cfg.Limits.ConnectionsPerRun = 2
	w.run()
	cert := w.clientCert(nil)
	first := w.admitted(cert)
	w.admitted(cert)
	w.refusedWith(cert, wire.ReasonLimit)
	w.control(cert) // never refused for a limit
	w.admitted(w.clientCert(func(l *clienttest.Leaf) { l.Run = "78/1/5" }))
	first.Close()
	eventually(t, "room", func() bool { return w.log.has("relay ended", "run=77/1/5") })
	w.admitted(cert)
}
