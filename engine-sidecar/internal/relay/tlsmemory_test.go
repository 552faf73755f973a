package relay

import (
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"
)

// TestKept: this Go's tls.Conn has the fields that forgetHandshake and
// freeBuffer clear, and a connection works after that.
func TestKept(t *testing.T) {
	t.Parallel()
	if !kept.known {
		t.Fatal("crypto/tls has changed: idle relays keep their buffers and certificates. See tlsmemory.go")
	}
	conf := config(t)
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	sent := random(t, 100<<10)
	go func() {
		tcp, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			return
		}
		client := tls.Client(tcp, &tls.Config{InsecureSkipVerify: true, Certificates: conf.Certificates}) // the server is under test
		for range 2 {
			if _, err := client.Write(sent); err != nil {
				return
			}
		}
	}()
	tcp, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	_ = tcp.SetDeadline(time.Now().Add(20 * time.Second))
	below, err := NewConn(tcp)
	if err != nil {
		t.Fatal(err)
	}
	conf.ClientAuth = tls.RequireAnyClientCert
	server := tls.Server(below, conf)
	if err := server.Handshake(); err != nil {
		t.Fatal(err)
	}
	if len(server.ConnectionState().PeerCertificates) != 1 {
		t.Fatal("the client showed no certificate")
	}
	forgetHandshake(server)
	if len(server.ConnectionState().PeerCertificates) != 0 {
		t.Fatal("the certificate is kept")
	}
	for range 2 {
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(server, got); err != nil {
			t.Fatal(err)
		}
		if string(got) != string(sent) {
			t.Fatal("other bytes than were sent")
		}
		if before := rawInput(server); before.Len() != 0 || before.Cap() <= keptMost {
			t.Fatalf("crypto/tls holds %d bytes in %d", before.Len(), before.Cap())
		}
		freeBuffer(rawInput(server))
		if n := rawInput(server).Cap(); n != 0 {
			t.Fatalf("a buffer of %d bytes is kept", n)
		}
	}
}
