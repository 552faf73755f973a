package sidecar_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
	sidecar "github.com/mayfly-ca/mayfly/engine-sidecar"
)

// TestHandshakeFlood: silent connections and endless ClientHellos do not
// affect working relays, and new clients still connect (ATTACKS 43).
func TestHandshakeFlood(t *testing.T) {
	t.Parallel()
	w := setUp(t)
	w.echo()
	w.cfg.Limits.Handshakes = 32
	w.cfg.Limits.HandshakeTimeout = 30 * time.Second
	w.run()
	cert := w.clientCert(nil)
	working := w.admitted(cert)
	var flood []net.Conn
	defer func() {
		for _, c := range flood {
			c.Close()
		}
	}()
	for i := range 200 {
		c, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		flood = append(flood, c)
		if i%2 == 0 {
			_, _ = c.Write([]byte{22, 3, 1, 2, 0, 1}) // a ClientHello that never ends
		}
		if i%20 == 0 {
			w.echoes(working)
			w.admitted(cert).Close()
		}
	}
	eventually(t, "the oldest to go", func() bool {
		_ = flood[0].SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		_, err := flood[0].Read(make([]byte, 1))
		var timeout net.Error
		return err != nil && !(errors.As(err, &timeout) && timeout.Timeout())
	})
	w.echoes(working)
	w.admitted(cert)
}

// TestHandshakeRate: handshakes over the rate are refused before any
// signature.
func TestHandshakeRate(t *testing.T) {
	t.Parallel()
	w := setUp(t)
	w.echo()
	w.cfg.Limits.HandshakeRate = 5 // a burst of ten
	w.run()
	cert := w.clientCert(nil)
	working := w.admitted(cert)
	refused := 0
	for range 30 {
		conn, err := w.dial(cert, "h2")
		if err != nil {
			refused++
			continue
		}
		conn.Close()
	}
	if refused == 0 {
		t.Fatal("30 handshakes at once at a rate of 5")
	}
	w.echoes(working)
	if _, body := w.get("/metrics"); !contains(body, `handshakes_total{result="limited"}`) {
		t.Fatal("not counted")
	}
	eventually(t, "admitted later", func() bool {
		conn, err := w.dial(cert, "h2")
		return err == nil && ping(conn) == nil
	})
}

// TestHandshakeDeadline: a silent client is disconnected in time.
func TestHandshakeDeadline(t *testing.T) {
	t.Parallel()
	w := setUp(t)
	w.echo()
	w.cfg.Limits.HandshakeTimeout = 300 * time.Millisecond
	w.run()
	c, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadAll(c); errors.Is(err, errTimeout(err)) {
		t.Fatalf("still there: %v", err)
	}
}

// errTimeout returns err if it is a timeout.
func errTimeout(err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return err
	}
	return net.ErrClosed
}

// viaProxy dials with a header in front of TLS.
func (w *world) viaProxy(header []byte, cert *tls.Certificate) (*tls.Conn, error) {
	w.tb.Helper()
	tcp, err := net.Dial("tcp", w.addr)
	if err != nil {
		return nil, err
	}
	w.tb.Cleanup(func() { tcp.Close() })
	_ = tcp.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := tcp.Write(header); err != nil {
		return nil, err
	}
	td := spiffeid.RequireTrustDomainFromString(trustDomain)
	conn := tls.Client(tcp, mtls.ClientConfig(clienttest.Source{Cert: cert, Pool: w.issuer.ca.Roots()}, td, serverName,
		[]string{wire.ALPNRelay}, func(mtls.Peer) error { return nil }))
	return conn, conn.Handshake()
}

func header(tb testing.TB, version byte, from string) []byte {
	tb.Helper()
	src, err := net.ResolveTCPAddr("tcp", from)
	if err != nil {
		tb.Fatal(err)
	}
	dst := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 8080}
	b, err := proxyproto.HeaderProxyFromAddrs(version, src, dst).Format()
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// TestProxyProtocol: a valid header sets the client's address, and a connection
// without one is refused (ATTACKS 67).
func TestProxyProtocol(t *testing.T) {
	t.Parallel()
	w := setUp(t)
	w.echo()
	w.cfg.ProxyProtocol, w.cfg.TrustedProxies = sidecar.ProxyRequired, []string{"127.0.0.0/8"}
	w.run()
	cert := w.clientCert(nil)
	conn, err := w.viaProxy(header(t, 2, "203.0.113.9:4711"), cert)
	if err != nil {
		t.Fatal(err)
	}
	if reason := w.verdict(conn); reason != "" {
		t.Fatal(reason)
	}
	w.echoes(conn)
	if !w.log.has("relay opened", "remote=203.0.113.9:4711") {
		t.Fatalf("log:\n%s", w.log)
	}
	huge := header(t, 2, "203.0.113.9:4711")
	huge[14], huge[15] = 0xff, 0xff
	for name, head := range map[string][]byte{
		"missing":        nil,
		"version 1":      header(t, 1, "203.0.113.9:4711"),
		"of 64 KiB":      append(huge, make([]byte, 1<<16)...),
		"of no protocol": bytes.Repeat([]byte{0}, 16),
	} {
		if _, err := w.viaProxy(head, cert); err == nil {
			t.Errorf("header %s: admitted", name)
		}
	}
}

func TestProxyUntrusted(t *testing.T) { // ATTACKS 67
	t.Parallel()
	for peer, want := range map[string]bool{"10.0.0.0/8": false, "127.0.0.1": true} {
		w := setUp(t)
		w.echo()
		w.cfg.ProxyProtocol, w.cfg.TrustedProxies = sidecar.ProxyRequired, []string{peer}
		w.run()
		if _, err := w.viaProxy(header(t, 2, "203.0.113.9:4711"), w.clientCert(nil)); (err == nil) != want {
			t.Errorf("trusted_proxies %s: %v", peer, err)
		}
	}
	// Without proxy_protocol, a header is invalid TLS.
	w := start(t)
	if _, err := w.viaProxy(header(t, 2, "203.0.113.9:4711"), w.clientCert(nil)); err == nil {
		t.Error("a header was taken where none is expected")
	}
	w.admitted(w.clientCert(nil))
}

// TestPerAddress: one address cannot occupy all pending connections.
func TestPerAddress(t *testing.T) {
	t.Parallel()
	w := setUp(t)
	w.echo()
	w.cfg.ProxyProtocol = sidecar.ProxyRequired
	w.cfg.Limits.HandshakesPerAddress = 4
	w.run()
	for range 8 {
		c, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write(header(t, 2, "203.0.113.9:4711")); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "four half open", func() bool {
		_, b := w.get("/metrics")
		return contains(b, "mayfly_sidecar_half_open 4\n")
	})
	cert := w.clientCert(nil)
	if _, err := w.viaProxy(header(t, 2, "203.0.113.9:4712"), cert); err == nil {
		t.Fatal("a fifth of the same address")
	}
	if _, err := w.viaProxy(header(t, 2, "203.0.113.10:4712"), cert); err != nil {
		t.Fatalf("another address: %v", err)
	}
}

// TestPerAddressRate: one address cannot use all handshakes of a second.
func TestPerAddressRate(t *testing.T) {
	t.Parallel()
	w := setUp(t)
	w.echo()
	w.cfg.ProxyProtocol = sidecar.ProxyRequired
	w.cfg.Limits.HandshakeRate = 20 // five of one address, after ten
	w.run()
	cert := w.clientCert(nil)
	refused := 0
	for i := range 60 {
		if _, err := w.viaProxy(header(t, 2, "203.0.113.9:4711"), cert); err != nil {
			refused++
		}
		if i%20 == 19 {
			if _, err := w.viaProxy(header(t, 2, "203.0.113.10:4711"), cert); err != nil {
				t.Errorf("another address: %v", err)
			}
		}
	}
	if refused == 0 {
		t.Error("60 handshakes at once of one address")
	}
}
