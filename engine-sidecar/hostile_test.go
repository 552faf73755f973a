package sidecar_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
	sidecar "github.com/mayfly-ca/mayfly/engine-sidecar"
)

// TestLongHandshake: an unauthenticated client cannot make the sidecar verify
// hundreds of certificates. A chain with a few extra certificates is accepted.
func TestLongHandshake(t *testing.T) {
	t.Parallel()
	w := start(t)
	good := w.clientCert(nil)
	chain := func(more int) *tls.Certificate {
		c := *good
		c.Certificate = slices.Clone(good.Certificate)
		for range more {
			c.Certificate = append(c.Certificate, good.Certificate[1])
		}
		return &c
	}
	if size := 100 * len(good.Certificate[1]); size < 33<<10 {
		t.Fatalf("%d bytes are too few to show anything", size)
	}
	conn, err := w.dial(chain(100), "h2")
	if err == nil {
		err = ping(conn)
	}
	if err == nil {
		t.Fatal("a hundred certificates were read")
	}
	eventually(t, "the reason in the log", func() bool { return w.log.has("handshake is longer than any client's") })
	w.admitted(chain(4))
}

// TestALPNConfusion: with any ALPN offer a client gets one kind of connection,
// and is refused as that kind.
func TestALPNConfusion(t *testing.T) {
	t.Parallel()
	w := start(t)
	good, wrong := w.clientCert(nil), w.clientCert(func(l *clienttest.Leaf) { l.Engines = []string{"other"} })
	for _, tc := range []struct {
		offers []string
		want   string // negotiated
	}{
		{[]string{wire.ALPNControl, wire.ALPNRelay}, wire.ALPNRelay},
		{[]string{"h2", wire.ALPNRelay}, wire.ALPNRelay},
		{[]string{"h2", wire.ALPNControl}, wire.ALPNControl},
		{[]string{"http/1.1", "h2"}, "h2"},
		{[]string{"http/1.1"}, ""}, // crypto/tls treats it as no ALPN when the server supports h2
	} {
		conn, err := w.dial(good, tc.offers...)
		if err != nil {
			t.Fatal(err)
		}
		if got := conn.ConnectionState().NegotiatedProtocol; got != tc.want {
			t.Errorf("%q: negotiated %q, want %q", tc.offers, got, tc.want)
		}
		refused, err := w.dial(wrong, tc.offers...)
		if tc.want == "h2" || tc.want == "" {
			if err == nil {
				err = ping(refused)
			}
			if err == nil || !strings.Contains(err.Error(), "bad certificate") {
				t.Errorf("%q: %v, want an alert", tc.offers, err)
			}
			w.echoes(conn)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := w.verdict(refused); got != wire.ReasonWrongEngine {
			t.Errorf("%q: verdict %q", tc.offers, got)
		}
		if got := w.verdict(conn); got != "" {
			t.Errorf("%q: verdict %q", tc.offers, got)
		}
		if tc.want == wire.ALPNRelay {
			w.echoes(conn)
		}
	}
	for _, alone := range []string{"MAYFLY/1", "mayfly/2", "mayfly-control/1 "} {
		if _, err := w.dial(good, alone); err == nil || !strings.Contains(err.Error(), "no application protocol") {
			t.Errorf("%q: %v", alone, err)
		}
	}
}

// TestLogInjection: a certificate's text is one value in the log, with any
// content.
func TestLogInjection(t *testing.T) {
	t.Parallel()
	w := start(t)
	evil := "77/1/5\ntime=2026-01-01T00:00:00Z level=ERROR msg=\"forged line\"\r\x1b[2J\"}"
	w.admitted(w.clientCert(func(l *clienttest.Leaf) { l.Run = evil })).Close()
	w.refusedWith(w.clientCert(func(l *clienttest.Leaf) { l.Run, l.Engines = evil, []string{"x\nforged line"} }), wire.ReasonWrongEngine)
	eventually(t, "the end in the log", func() bool { return w.log.has("relay ended", "forged line") })
	for line := range strings.Lines(w.log.String()) {
		if !strings.HasPrefix(line, "time=") || strings.ContainsAny(line, "\x1b\r") || strings.Contains(line, "time=2026-01-01") && !strings.Contains(line, `\ntime=2026-01-01`) {
			t.Errorf("a line of the log is the client's own: %q", line)
		}
	}
}

// TestControlFlood: lines over a control connection's rate are read later.
// Other clients are not delayed.
func TestControlFlood(t *testing.T) {
	t.Parallel()
	w := start(t)
	cert := w.clientCert(nil)
	relay, flood := w.admitted(cert), w.control(cert)
	name := nameOf(t, relay)
	same := make([]string, wire.MaxHoldNames) // the longest possible line, of one name
	for i := range same {
		same[i] = name
	}
	const lines = 1100
	sent := make(chan error, 1)
	go func() {
		hold, err := wire.Control{Hold: same}.Line()
		if err == nil {
			_, err = flood.conn.Write(bytes.Repeat(hold, 50))
		}
		for n := uint64(1); err == nil && n <= lines; n++ {
			var ping []byte
			if ping, err = (wire.Control{Ping: n}).Line(); err == nil {
				_, err = flood.conn.Write(ping)
			}
		}
		sent <- err
	}()
	other := w.clientCert(func(l *clienttest.Leaf) { l.Run = "78/1/5" })
	for range 20 {
		w.admitted(other).Close()
	}
	for range 50 {
		if held := flood.next().Held; len(held) != len(same) {
			t.Fatalf("held %d of %d", len(held), len(same))
		}
	}
	for n := uint64(1); n <= lines; n++ {
		if got := flood.next().Pong; got != n {
			t.Fatalf("answer %d to ping %d", got, n)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	w.echoes(relay)
}

// TestManyControls: a control connection beyond the limit ends a free one of
// the same run. It never ends one that holds a relay, or one of another run.
func TestManyControls(t *testing.T) {
	t.Parallel()
	w := start(t)
	other, cert := w.control(w.clientCert(func(l *clienttest.Leaf) { l.Run = "78/1/5" })), w.clientCert(nil)
	relay, owner, free := w.admitted(cert), w.control(cert), w.control(cert)
	if held := owner.hold(relay); len(held) != 1 {
		t.Fatalf("held %v", held)
	}
	for range 80 {
		w.control(cert)
	}
	if free.lines.Scan() || free.lines.Err() != nil {
		t.Fatalf("the oldest free one goes on: %q, %v", free.lines.Text(), free.lines.Err())
	}
	for whose, c := range map[string]*controlConn{"another run's": other, "the owner's": owner} {
		c.send(wire.Control{Ping: 1})
		if got := c.next(); got.Pong != 1 {
			t.Errorf("%s: %+v", whose, got)
		}
	}
	if held := w.control(cert).hold(relay); len(held) != 1 { // after a reset
		t.Errorf("held %v", held)
	}
	w.echoes(relay)
	if _, body := w.get("/metrics"); !contains(body, "mayfly_sidecar_control_connections 66\n") {
		t.Error("more control connections than one run may have")
	}
}

// TestNamesOfAnOtherConnection: after a reset, a client can hold the same
// names again. The name of a relay that has ended is never held.
func TestNamesOfAnOtherConnection(t *testing.T) {
	t.Parallel()
	w := start(t)
	cert := w.clientCert(nil)
	lives, over := w.admitted(cert), w.admitted(cert)
	first := w.control(cert)
	if held := first.hold(lives, over); len(held) != 2 {
		t.Fatalf("held %v", held)
	}
	over.Close()
	first.conn.Close()
	eventually(t, "one relay left", func() bool { _, b := w.get("/metrics"); return contains(b, "mayfly_sidecar_relays 1\n") })
	if held := w.control(cert).hold(lives, over); !slices.Equal(held, []string{nameOf(t, lives)}) {
		t.Fatalf("held %v", held)
	}
	again := w.admitted(cert)
	if nameOf(t, again) == nameOf(t, over) || nameOf(t, again) == nameOf(t, lives) {
		t.Fatal("two connections with one name")
	}
}

// TestStrangersInTheLog: a flood of the port does not fill the disk.
func TestStrangersInTheLog(t *testing.T) {
	t.Parallel()
	w := start(t)
	const flood = 300
	for range flood {
		c, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.Copy(io.Discard, c)
		c.Close()
	}
	failed := regexp.MustCompile(`handshakes_total\{result="failed"\} (\d+)`)
	eventually(t, "all to be counted", func() bool {
		_, b := w.get("/metrics")
		m := failed.FindStringSubmatch(b)
		if m == nil {
			return false
		}
		n, _ := strconv.Atoi(m[1])
		return n >= flood
	})
	if n := strings.Count(w.log.String(), "msg=handshake"); n == 0 || n > 250 {
		t.Errorf("%d lines of %d", n, flood)
	}
	w.admitted(w.clientCert(nil))
}

// TestStatusFlood: a build step that floods the status listener delays other
// callers for a limited time, and does not affect relays.
func TestStatusFlood(t *testing.T) {
	t.Parallel()
	w := start(t)
	for range 100 {
		c, err := net.Dial("tcp", w.status)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	w.admitted(w.clientCert(nil))
	if code, _ := w.get("/readyz"); code != http.StatusOK { // waits for the header timeout of the flood
		t.Fatalf("readyz: %d", code)
	}
}

// TestStatusSaysNothingSecret: the status shows no certificates and no
// identities of jobs.
func TestStatusSaysNothingSecret(t *testing.T) {
	t.Parallel()
	w := start(t)
	cert := w.clientCert(nil)
	w.admitted(cert)
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		code, body := w.get(path)
		if code != http.StatusOK {
			t.Errorf("%s: %d", path, code)
		}
		for _, secret := range []string{"77/1/5", mtls.Serial(cert.Leaf.SerialNumber), "spiffe://", "PRIVATE", "e30."} {
			if strings.Contains(body, secret) {
				t.Errorf("%s tells %q", path, secret)
			}
		}
	}
	for _, path := range []string{"/", "/debug/pprof/", "/metrics/../config"} {
		if code, _ := w.get(path); code != http.StatusNotFound {
			t.Errorf("%s: %d", path, code)
		}
	}
}

// TestMalformedReports: reports that the issuer cannot parse are dropped, and
// do not block others.
func TestMalformedReports(t *testing.T) {
	t.Parallel()
	w := setUp(t)
	w.echo()
	w.issuer.set(func() { w.issuer.misreads = func(wire.SessionReport) bool { return true } })
	w.run()
	w.admitted(w.clientCert(nil)).Close()
	eventually(t, "the drop in the log", func() bool { return w.log.has("session report dropped") })
	w.issuer.set(func() { w.issuer.misreads = nil })
	cert := w.clientCert(nil)
	w.admitted(cert).Close()
	eventually(t, "the next to be told", func() bool {
		return w.issuer.told(mtls.Serial(cert.Leaf.SerialNumber))[wire.SessionClose].ID != ""
	})
}

// TestProxyHeaders: a header in any allowed form sets the client's address.
// Any other header is refused.
func TestProxyHeaders(t *testing.T) { // ATTACKS 67
	t.Parallel()
	w := setUp(t)
	w.echo()
	w.cfg.ProxyProtocol = sidecar.ProxyRequired
	w.run()
	cert := w.clientCert(nil)
	v2 := func(command, family byte, rest []byte) []byte {
		head := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), command, family, byte(len(rest)>>8), byte(len(rest)))
		return append(head, rest...)
	}
	inet := []byte{203, 0, 113, 9, 10, 0, 0, 1, 0x12, 0x67, 0x1f, 0x90}
	padded := append(slices.Clone(inet), 0x04, 0x0b, 0xb8) // PP2_TYPE_NOOP of 3,000 bytes
	padded = append(padded, make([]byte, 3000)...)
	for name, tc := range map[string]struct {
		header []byte
		remote string // "" is refused
	}{
		"TCP over IPv4":          {v2(0x21, 0x11, inet), "203.0.113.9:4711"},
		"with a long vector":     {v2(0x21, 0x11, padded), "203.0.113.9:4711"},
		"with one cut short":     {v2(0x21, 0x11, append(slices.Clone(inet), 0x04, 0xff, 0xff, 0)), "203.0.113.9:4711"},
		"LOCAL, the proxy's own": {v2(0x20, 0x00, nil), "127.0.0.1:"},
		"UDP":                    {v2(0x21, 0x12, inet), ""},
		"a unix socket":          {v2(0x21, 0x31, make([]byte, 216)), ""},
		"addresses cut short":    {v2(0x21, 0x11, inet[:8]), ""},
		"PROXY without a family": {v2(0x21, 0x00, nil), ""},
		"another version":        {v2(0x31, 0x11, inet), ""},
		"another command":        {v2(0x2f, 0x11, inet), ""},
		"longer than any":        {v2(0x21, 0x11, append(slices.Clone(inet), make([]byte, 5000)...)), ""},
		"twice":                  {append(v2(0x21, 0x11, inet), v2(0x21, 0x11, inet)...), ""},
	} {
		before := len(w.log.String())
		conn, err := w.viaProxy(tc.header, cert)
		if tc.remote == "" {
			if err == nil {
				t.Errorf("%s: admitted", name)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if reason := w.verdict(conn); reason != "" {
			t.Errorf("%s: %s", name, reason)
		}
		w.echoes(conn)
		if log := w.log.String()[before:]; !strings.Contains(log, "remote="+tc.remote) {
			t.Errorf("%s: the log has another address:\n%s", name, log)
		}
	}
}

// TestNoTicketForOpenSSL: the server offers no resumption and no early data.
func TestNoTicketForOpenSSL(t *testing.T) { // ATTACKS 40
	t.Parallel()
	needOpenSSL(t)
	w := setUp(t)
	w.answerOnce()
	w.run()
	cert := w.clientCert(nil)
	file := filepath.Join(t.TempDir(), "session")
	if out := w.sClient(cert, "hello\n", "-sess_out", file); !strings.Contains(out, "engine heard hello") {
		t.Fatalf("no answer:\n%s", out)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the sidecar gave a session to resume")
	}
}
