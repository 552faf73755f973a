package relay

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// config creates a server's configuration with a temporary certificate.
func config(tb testing.TB) *tls.Config {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "relay/test"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	return &tls.Config{
		Certificates:           []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
	}
}

// pair is a relay under test: client <-> relay <-> engine.
type pair struct {
	client    *tls.Conn
	clientTCP *net.TCPConn
	engine    *net.UnixConn
	relay     *Relay
	ended     chan end
}

type end struct {
	reason string
	err    error
}

type world struct {
	tb   testing.TB
	conf *tls.Config
	tcp  *net.TCPListener
	unix *net.UnixListener
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { tcp.Close() })
	unix, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(tb.TempDir(), "engine.sock"), Net: "unix"})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { unix.Close() })
	return &world{tb: tb, conf: config(tb), tcp: tcp, unix: unix}
}

func (w *world) open() *pair {
	w.tb.Helper()
	p := &pair{ended: make(chan end, 1)}
	ready := make(chan error, 1)
	go func() { ready <- w.serve(p) }()
	tcp, err := net.DialTCP("tcp", nil, w.tcp.Addr().(*net.TCPAddr))
	if err != nil {
		w.tb.Fatal(err)
	}
	p.clientTCP = tcp
	p.client = tls.Client(tcp, &tls.Config{InsecureSkipVerify: true}) // the relay, not the certificate, is under test
	if err := p.client.Handshake(); err != nil {
		w.tb.Fatal(err)
	}
	if err := <-ready; err != nil {
		w.tb.Fatal(err)
	}
	w.tb.Cleanup(func() { tcp.Close(); p.engine.Close(); p.relay.Cut("test over") })
	return p
}

func (w *world) serve(p *pair) error {
	tcp, err := w.tcp.AcceptTCP()
	if err != nil {
		return err
	}
	below, err := NewConn(tcp)
	if err != nil {
		return err
	}
	server := tls.Server(below, w.conf)
	if err := server.Handshake(); err != nil {
		return err
	}
	near, err := net.DialUnix("unix", nil, w.unix.Addr().(*net.UnixAddr))
	if err != nil {
		return err
	}
	if p.engine, err = w.unix.AcceptUnix(); err != nil {
		return err
	}
	p.relay = New(server, below, near)
	go func() {
		var e end
		e.reason, e.err = p.relay.Run()
		p.ended <- e
	}()
	return nil
}

func (p *pair) wantEnd(t *testing.T, reason string) {
	t.Helper()
	select {
	case e := <-p.ended:
		if e.reason != reason {
			t.Fatalf("relay ended %q (%v), want %q", e.reason, e.err, reason)
		}
		if reason == Closed && e.err != nil {
			t.Fatalf("relay closed with an error: %v", e.err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("relay did not end")
	}
}

func random(tb testing.TB, n int) []byte {
	tb.Helper()
	b := make([]byte, n)
	rand.Read(b)
	return b
}

const repetitions = 80

func TestClientHalfCloseLongAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	question, answer := random(t, 300<<10), random(t, 3<<20)
	for range repetitions {
		p := w.open()
		go func() {
			p.client.Write(question)
			p.client.CloseWrite()
		}()
		go func() {
			got, _ := io.ReadAll(p.engine) // returns only after the client's half-close
			if !bytes.Equal(got, question) {
				t.Errorf("engine read %d bytes, want %d", len(got), len(question))
			}
			p.engine.Write(answer)
			p.engine.Close()
		}()
		got, err := io.ReadAll(p.client)
		if err != nil || !bytes.Equal(got, answer) {
			t.Fatalf("client read %d bytes (%v), want %d", len(got), err, len(answer))
		}
		p.client.Close()
		p.wantEnd(t, Closed)
	}
}

func TestEngineHalfCloseClientSendsOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first, rest := random(t, 100<<10), random(t, 1<<20)
	for range repetitions {
		p := w.open()
		read := make(chan []byte, 1)
		go func() {
			p.engine.Write(first)
			p.engine.CloseWrite()
			got, _ := io.ReadAll(p.engine)
			p.engine.Close()
			read <- got
		}()
		got, err := io.ReadAll(p.client)
		if err != nil || !bytes.Equal(got, first) {
			t.Fatalf("client read %d bytes (%v), want %d", len(got), err, len(first))
		}
		if _, err := p.client.Write(rest); err != nil {
			t.Fatal(err)
		}
		p.client.CloseWrite()
		if got := <-read; !bytes.Equal(got, rest) {
			t.Fatalf("engine read %d bytes, want %d", len(got), len(rest))
		}
		p.wantEnd(t, Closed)
	}
}

func TestEngineCloseSlowReader(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	answer := random(t, 2<<20) // more than all socket buffers
	for range repetitions {
		p := w.open()
		go func() {
			p.engine.Write(answer)
			p.engine.Close()
		}()
		// The client keeps sending, but the engine never reads that.
		p.client.Write(answer[:1000])
		var got []byte
		buf := make([]byte, 256<<10)
		for {
			n, err := p.client.Read(buf)
			got = append(got, buf[:n]...)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("after %d bytes: %v", len(got), err)
			}
			time.Sleep(50 * time.Microsecond) // the reader must be slow for this test
		}
		if !bytes.Equal(got, answer) {
			t.Fatalf("client read %d bytes, want %d", len(got), len(answer))
		}
		p.client.Close()
		select {
		case <-p.ended:
		case <-time.After(20 * time.Second):
			t.Fatal("relay did not end")
		}
	}
}

// TestCloseNotifyBehindFullBuffers: a reader pauses for longer than the five
// seconds that crypto/tls gives close_notify. It still gets a clean end.
func TestCloseNotifyBehindFullBuffers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.open()
	answer := random(t, 16<<20)
	written := make(chan error, 1)
	go func() {
		_, err := p.engine.Write(answer)
		p.engine.Close()
		written <- err
	}()
	time.Sleep(6 * time.Second) // must be longer than crypto/tls waits
	got, err := io.ReadAll(p.client)
	if err != nil || !bytes.Equal(got, answer) {
		t.Fatalf("client read %d bytes (%v), want %d", len(got), err, len(answer))
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	p.client.Close()
	p.wantEnd(t, Closed)
}

func TestTruncatedIsNotACleanEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	half := random(t, 300<<10)
	for range repetitions {
		p := w.open()
		go func() {
			p.client.Write(half)
			p.clientTCP.CloseWrite() // FIN without close_notify
		}()
		// The received bytes arrive, but not as a complete request: the engine's
		// connection is closed in both directions, so the engine cannot answer.
		got, err := io.ReadAll(p.engine)
		if err != nil || !bytes.Equal(got, half) {
			t.Fatalf("engine read %d bytes (%v), want %d", len(got), err, len(half))
		}
		p.wantEnd(t, Truncated)
		if _, err := p.engine.Write([]byte("answer")); !errors.Is(err, syscall.EPIPE) {
			t.Fatalf("engine write: %v, want EPIPE", err)
		}
		if in, out := p.relay.Bytes(); in != int64(len(half)) || out != 0 {
			t.Fatalf("counted %d in, %d out, want %d and 0", in, out, len(half))
		}
	}
}

func TestEngineLostIsNotACleanEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.open()
	answer := random(t, 100<<10)
	p.client.Write([]byte("never read"))
	// The engine can see the bytes once they are in its queue.
	raw, err := p.engine.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Read(func(fd uintptr) bool {
		_, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK)
		return err == nil
	})
	p.engine.Write(answer)
	p.engine.Close() // with unread bytes, so this is a reset
	got, _ := io.ReadAll(p.client)
	if !bytes.Equal(got, answer) {
		t.Fatalf("client read %d bytes, want %d", len(got), len(answer))
	}
	p.clientTCP.Close()
	p.wantEnd(t, EngineLost)
}

func TestCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.open()
	p.client.Write([]byte("x"))
	p.relay.Cut("revoked")
	p.relay.Cut("second")
	p.wantEnd(t, "revoked")
	if _, err := p.client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("client read: %v, want a reset", err)
	}
}

func TestEchoCountsBytes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.open()
	go func() { io.Copy(p.engine, p.engine); p.engine.CloseWrite() }()
	data := random(t, 5<<20)
	go func() {
		for rest := data; len(rest) > 0; {
			n := min(len(rest), 7777)
			p.client.Write(rest[:n])
			rest = rest[n:]
		}
		p.client.CloseWrite()
	}()
	got, err := io.ReadAll(p.client)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("client read %d bytes (%v), want %d", len(got), err, len(data))
	}
	p.client.Close()
	p.wantEnd(t, Closed)
	if in, out := p.relay.Bytes(); in != int64(len(data)) || out != in {
		t.Fatalf("counted %d in, %d out, want %d", in, out, len(data))
	}
}

// TestPausedReader: a client that stops reading for longer than the bound on
// lost peers loses nothing. The engine may still write, have ended, or have
// its last bytes in the kernel.
func TestPausedReader(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, size := range []int{1 << 20, 32 << 20} {
		for _, bounded := range []bool{true, false} {
			p := w.open()
			answer := random(t, size)
			if err := p.relay.conn.KeepAlive(time.Second); err != nil {
				t.Fatal(err)
			}
			if !bounded { // without the timer, the kernel's bound alone may cut the client
				p.relay.conn.peerTimeout.mu.Lock()
				p.relay.conn.peerTimeout.timeout = 0
				p.relay.conn.peerTimeout.mu.Unlock()
			}
			p.clientTCP.SetReadBuffer(64 << 10)
			go func() {
				p.engine.Write(answer)
				p.engine.Close()
			}()
			time.Sleep(4 * time.Second) // the pause under test
			got, err := io.ReadAll(p.client)
			whole := err == nil && bytes.Equal(got, answer)
			if bounded && !whole {
				t.Fatalf("of %d bytes the client read %d (%v)", size, len(got), err)
			}
			if !bounded && whole && size > 16<<20 {
				t.Log("this kernel's TCP_USER_TIMEOUT spares slow readers by itself")
			}
			p.client.Close()
		}
	}
}
