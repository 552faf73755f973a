package sidecar_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
)

// Content and message types (RFC 8446 sections 4 and 5.1).
const (
	recordAlert     = 21
	recordHandshake = 22
	recordData      = 23
	keyUpdate       = 24
	extEarlyData    = 42
)

// rawClient is an authenticated client that writes its own records after a
// crypto/tls handshake. crypto/tls still reads for it.
type rawClient struct {
	tb   testing.TB
	conn *tls.Conn
	tcp  net.Conn

	secret []byte // client_application_traffic_secret_N (RFC 8446 section 7.1)
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

// raw connects without a verdict, like any TLS client.
func (w *world) raw(cert *tls.Certificate) *rawClient {
	w.tb.Helper()
	conf := w.clientConfig(cert)
	var secrets bytes.Buffer
	conf.KeyLogWriter = &secrets
	tcp, err := net.Dial("tcp", w.addr)
	if err != nil {
		w.tb.Fatal(err)
	}
	w.tb.Cleanup(func() { tcp.Close() })
	_ = tcp.SetDeadline(time.Now().Add(60 * time.Second))
	c := &rawClient{tb: w.tb, conn: tls.Client(tcp, conf), tcp: tcp}
	if err := c.conn.Handshake(); err != nil {
		w.tb.Fatal(err)
	}
	for line := range strings.Lines(secrets.String()) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "CLIENT_TRAFFIC_SECRET_0" {
			if c.secret, err = hex.DecodeString(f[2]); err != nil {
				w.tb.Fatal(err)
			}
		}
	}
	c.rekey()
	return c
}

// expand is HKDF-Expand-Label with an empty context (RFC 8446 section 7.1).
func (c *rawClient) expand(label string, n int) []byte {
	c.tb.Helper()
	label = "tls13 " + label
	info := append(binary.BigEndian.AppendUint16(nil, uint16(n)), byte(len(label)))
	out, err := hkdf.Expand(sha256.New, c.secret, string(info)+label+"\x00", n)
	if err != nil {
		c.tb.Fatal(err)
	}
	return out
}

// rekey derives key and iv from the secret (RFC 8446 section 7.3).
func (c *rawClient) rekey() {
	c.tb.Helper()
	var err error
	switch suite := c.conn.ConnectionState().CipherSuite; suite {
	case tls.TLS_AES_128_GCM_SHA256:
		var block cipher.Block
		if block, err = aes.NewCipher(c.expand("key", 16)); err == nil {
			c.aead, err = cipher.NewGCM(block)
		}
	case tls.TLS_CHACHA20_POLY1305_SHA256:
		c.aead, err = chacha20poly1305.New(c.expand("key", chacha20poly1305.KeySize))
	default:
		c.tb.Fatalf("suite %s", tls.CipherSuiteName(suite))
	}
	if err != nil {
		c.tb.Fatal(err)
	}
	c.iv, c.seq = c.expand("iv", c.aead.NonceSize()), 0
}

// seal returns one record (RFC 8446 section 5.2).
func (c *rawClient) seal(typ byte, content []byte) []byte {
	inner := append(bytes.Clone(content), typ)
	n := len(inner) + c.aead.Overhead()
	header := []byte{recordData, 3, 3, byte(n >> 8), byte(n)}
	nonce := bytes.Clone(c.iv)
	for i := range 8 {
		nonce[len(nonce)-1-i] ^= byte(c.seq >> (8 * i))
	}
	c.seq++
	return append(header, c.aead.Seal(nil, nonce, inner, header)...)
}

// update returns a KeyUpdate and switches to the next keys (RFC 8446 section
// 4.6.3). With answer, the other side must also change its keys.
func (c *rawClient) update(answer bool) []byte {
	c.tb.Helper()
	message := []byte{keyUpdate, 0, 0, 1, 0}
	if answer {
		message[4] = 1
	}
	record := c.seal(recordHandshake, message)
	c.secret = c.expand("traffic upd", sha256.Size)
	c.rekey()
	return record
}

// end returns close_notify.
func (c *rawClient) end() []byte { return c.seal(recordAlert, []byte{1, 0}) }

// repeat joins n records.
func repeat(n int, record func() []byte) []byte {
	var all []byte
	for range n {
		all = append(all, record()...)
	}
	return all
}

// TestHostileRecords: the sidecar disconnects an authenticated client that
// breaks TLS, or causes work without data. Other relays are not affected.
func TestHostileRecords(t *testing.T) {
	t.Parallel()
	w := start(t)
	cert := w.clientCert(nil)
	working := w.admitted(cert)
	hello := w.hello(cert)
	for _, tc := range []struct {
		name string
		send func(c *rawClient) []byte
		log  string
	}{
		{"KeyUpdates for ever", func(c *rawClient) []byte { return repeat(100, func() []byte { return c.update(false) }) }, "too many non-advancing records"},
		{"KeyUpdates that want an answer", func(c *rawClient) []byte { return repeat(100, func() []byte { return c.update(true) }) }, "too many non-advancing records"},
		{"empty records", func(c *rawClient) []byte { return repeat(100, func() []byte { return c.seal(recordData, nil) }) }, "too many ignored records"},
		{"renegotiation", func(c *rawClient) []byte { return c.seal(recordHandshake, hello[5:]) }, "unexpected handshake message"},
		{"a handshake message of 16 MB", func(c *rawClient) []byte { return c.seal(recordHandshake, []byte{keyUpdate, 0xff, 0xff, 0xff}) }, "exceeds maximum"},
		{"data inside a handshake message", func(c *rawClient) []byte {
			return append(c.seal(recordHandshake, []byte{keyUpdate, 0}), c.seal(recordData, []byte("x"))...)
		}, "unexpected message"},
		{"a header of more than a record", func(*rawClient) []byte { return []byte{recordData, 3, 3, 0x41, 0x01, 0} }, "oversized record"},
		{"a record of more than 16 KB", func(c *rawClient) []byte { return c.seal(recordData, make([]byte, 1<<14+1)) }, "record overflow"},
		{"a record under another key", func(c *rawClient) []byte { c.update(false); return c.seal(recordData, []byte("x")) }, "bad record MAC"},
		{"a record sent twice", func(c *rawClient) []byte { one := c.seal(recordData, []byte("x")); return append(one, one...) }, "bad record MAC"},
	} {
		before := len(w.log.String())
		c := w.raw(cert)
		_, _ = c.tcp.Write(tc.send(c)) // the sidecar may disconnect in the middle
		if _, err := io.Copy(io.Discard, c.conn); err == nil {
			t.Errorf("%s: a clean end", tc.name)
		}
		eventually(t, tc.name+": the relay's end", func() bool {
			_, b := w.get("/metrics")
			return contains(b, "mayfly_sidecar_relays 1\n") && contains(w.log.String()[before:], "relay ended")
		})
		if log := w.log.String()[before:]; !contains(log, tc.log) {
			t.Errorf("%s: the log does not say %q:\n%s", tc.name, tc.log, log)
		}
		w.echoes(working)
	}
}

// TestOddRecords: unusual but valid records lose no byte: the smallest and the
// largest records, padding, and new keys as often as there is data.
func TestOddRecords(t *testing.T) {
	t.Parallel()
	w := setUp(t).run()
	probe, err := w.engine.Accept()
	if err != nil {
		t.Fatal(err)
	}
	probe.Close()
	const records = 3000
	for name, send := range map[string]func(c *rawClient, data []byte) []byte{
		"a byte in each":         func(c *rawClient, b []byte) []byte { return c.seal(recordData, b) },
		"a key for each":         func(c *rawClient, b []byte) []byte { return append(c.update(false), c.seal(recordData, b)...) },
		"and an answer for each": func(c *rawClient, b []byte) []byte { return append(c.update(true), c.seal(recordData, b)...) },
		"16 KB in one":           func(c *rawClient, b []byte) []byte { return c.seal(recordData, bytes.Repeat(b, 1<<14)[:1<<14]) },
		"padding around each": func(c *rawClient, b []byte) []byte {
			return c.seal(0, append(bytes.Clone(b), append([]byte{recordData}, make([]byte, 99)...)...))
		},
		"up to 16 empty ones too": func(c *rawClient, b []byte) []byte {
			return append(repeat(16, func() []byte { return c.seal(recordData, nil) }), c.seal(recordData, b)...)
		},
	} {
		c := w.raw(w.clientCert(nil))
		engine, err := w.engine.Accept()
		if err != nil {
			t.Fatal(err)
		}
		n := records
		if strings.HasPrefix(name, "16 KB") {
			n = 100
		}
		var out, want bytes.Buffer
		for i := range n {
			b := []byte{byte(i) | 1} // never a padding byte
			out.Write(send(c, b))
			if n == 100 {
				b = bytes.Repeat(b, 1<<14)
			}
			want.Write(b)
		}
		out.Write(c.end())
		sent := make(chan error, 1)
		go func() { _, err := out.WriteTo(c.tcp); sent <- err }()
		go func() { _, _ = io.Copy(io.Discard, c.tcp) }() // the answers to new keys
		if err := readAll(engine, want.Bytes()); err != nil {
			t.Errorf("%s: the engine: %v\n%s", name, err, w.log)
		}
		engine.Close()
		if err := <-sent; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	ended := fmt.Sprintf("mayfly_sidecar_relay_ends_total{reason=%q} 6\n", "closed")
	eventually(t, ended, func() bool { _, b := w.get("/metrics"); return contains(b, ended) })
}

// firstWrite records the first write: the record of a ClientHello.
type firstWrite struct {
	net.Conn
	once  sync.Once
	first []byte
}

func (f *firstWrite) Write(p []byte) (int, error) {
	f.once.Do(func() { f.first = bytes.Clone(p) })
	return f.Conn.Write(p)
}

// hello returns the record of a client's ClientHello.
func (w *world) hello(cert *tls.Certificate) []byte {
	w.tb.Helper()
	tcp, err := net.Dial("tcp", w.addr)
	if err != nil {
		w.tb.Fatal(err)
	}
	defer tcp.Close()
	f := &firstWrite{Conn: tcp}
	if err := tls.Client(f, w.clientConfig(cert)).Handshake(); err != nil {
		w.tb.Fatal(err)
	}
	return f.first
}

// withExtension adds an empty extension to a ClientHello's record (RFC 8446
// section 4.1.2).
func withExtension(hello []byte, id uint16) []byte {
	out := binary.BigEndian.AppendUint16(bytes.Clone(hello), id)
	out = append(out, 0, 0)
	grow := func(at int) { binary.BigEndian.PutUint16(out[at:], binary.BigEndian.Uint16(out[at:])+4) }
	grow(3) // the record
	grow(7) // the low bytes of the message's length
	at := 5 + 4 + 2 + 32
	at += 1 + int(out[at])                           // session id
	at += 2 + int(binary.BigEndian.Uint16(out[at:])) // suites
	at += 1 + int(out[at])                           // compression
	grow(at)
	return out
}

// TestEarlyData: a client that sends data before it is authenticated gets an
// alert, and the engine gets nothing. The server also issues no ticket for
// early data: see TestNoTicketForOpenSSL.
func TestEarlyData(t *testing.T) {
	t.Parallel()
	w := start(t)
	hello := w.hello(w.clientCert(nil))
	early := append(withExtension(hello, extEarlyData), recordData, 3, 3, 0, 20)
	early = append(early, make([]byte, 20)...)
	for name, tc := range map[string]struct {
		send []byte
		want byte // type of the first record back
	}{
		"with early data": {early, recordAlert},
		"without":         {hello, recordHandshake},
	} {
		tcp, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer tcp.Close()
		_ = tcp.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := tcp.Write(tc.send); err != nil {
			t.Fatal(err)
		}
		var back [7]byte
		if _, err := io.ReadFull(tcp, back[:]); err != nil || back[0] != tc.want {
			t.Errorf("%s: %x, %v, want a record of type %d", name, back, err, tc.want)
		}
		if tc.want == recordAlert && back[6] != 110 {
			t.Errorf("%s: alert %d, want unsupported_extension", name, back[6])
		}
	}
	eventually(t, "the reason in the log", func() bool { return w.log.has("unexpected early data") })
	if _, b := w.get("/metrics"); !contains(b, "mayfly_sidecar_relays 0\n") {
		t.Error("a relay for early data")
	}
}

// splitting writes a ClientHello in records of one byte each.
type splitting struct {
	net.Conn
	once sync.Once
}

func (s *splitting) Write(p []byte) (n int, err error) {
	split := false
	s.once.Do(func() { split = true })
	if !split {
		return s.Conn.Write(p)
	}
	_, err = s.Conn.Write(pieces(p))
	return len(p), err
}

// pieces splits the record p into records of one byte each.
func pieces(p []byte) []byte {
	var out []byte
	for _, b := range p[5:] {
		out = append(out, p[0], p[1], p[2], 0, 1, b)
	}
	return out
}

// TestTricklingHello: a ClientHello in a thousand records is accepted, but
// only within the handshake timeout.
func TestTricklingHello(t *testing.T) {
	t.Parallel()
	w := setUp(t)
	w.echo()
	w.cfg.Limits.HandshakeTimeout = 3 * time.Second
	w.run()
	cert := w.clientCert(nil)
	tcp, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	_ = tcp.SetDeadline(time.Now().Add(30 * time.Second))
	w.echoes(tls.Client(&splitting{Conn: tcp}, w.clientConfig(cert)))

	slow, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	all := pieces(w.hello(cert))
	sent := 0
	for ; sent < len(all); sent += 6 {
		if _, err := slow.Write(all[sent : sent+6]); err != nil {
			break
		}
		time.Sleep(20 * time.Millisecond) // the pauses are the test
	}
	if sent == len(all) {
		t.Errorf("a hello of %d records was waited for", len(all)/6)
	}
	w.admitted(cert)
}

// TestKeyUpdateOfOpenSSL: another implementation changes its keys, and
// requests that the sidecar changes its own.
func TestKeyUpdateOfOpenSSL(t *testing.T) {
	t.Parallel()
	needOpenSSL(t)
	w := setUp(t)
	w.answerOnce()
	w.run()
	cmd := w.sClientCommand(w.clientCert(nil))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out := &lines{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		said := strings.Count(out.String(), "KEYUPDATE")
		if _, err := io.WriteString(in, "K\n"); err != nil { // requests an answer
			t.Fatal(err)
		}
		eventually(t, "s_client to say so", func() bool { return strings.Count(out.String(), "KEYUPDATE") > said })
	}
	if _, err := io.WriteString(in, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil && !isExit(err) {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "engine heard hello") {
		t.Fatalf("no answer under the new keys:\n%s\n%s", out, w.log)
	}
}

func isExit(err error) bool { _, ok := err.(*exec.ExitError); return ok } // its exit code is not reliable
