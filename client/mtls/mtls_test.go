package mtls_test

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
	"github.com/mayfly-ca/mayfly/client/mtls"
)

const (
	trustDomain = "ci.example.com"
	serverName  = "engine.example.com"
)

func admit(mtls.Peer) error { return nil }

// ends has the configurations of both ends of a handshake, which a test may spoil.
type ends struct {
	ca             *clienttest.CA
	server, client *tls.Config
}

func newEnds(t *testing.T, server, client clienttest.Leaf) *ends {
	t.Helper()
	ca := clienttest.New(t, trustDomain)
	e := &ends{ca: ca}
	e.server = mtls.ServerConfig(clienttest.Source{Cert: ca.Issue(t, server), Pool: ca.Roots()}, ca.TrustDomain, admit)
	e.client = mtls.ClientConfig(clienttest.Source{Cert: ca.Issue(t, client), Pool: ca.Roots()}, ca.TrustDomain, serverName, []string{"mayfly/1"}, admit)
	return e
}

func serverLeaf() clienttest.Leaf {
	return clienttest.Leaf{ID: "/engine/default/fly/1", DNS: []string{serverName}, Usage: x509.ExtKeyUsageServerAuth}
}

// outcome is the result of a handshake at each end. One byte is sent each way,
// because a TLS 1.3 client learns of its refusal at its first read.
type outcome struct {
	client, server error
	state          tls.ConnectionState
	names          [2]string
}

func (e *ends) handshake(t *testing.T) outcome {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var out outcome
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := ln.Accept()
		if err != nil {
			out.server = err
			return
		}
		defer conn.Close()
		s := tls.Server(conn, e.server)
		if out.server = s.Handshake(); out.server != nil {
			return
		}
		out.names[1], _ = mtls.RelayName(s.ConnectionState())
		_, out.server = s.Write([]byte("x"))
	}()
	conn, err := tls.Dial("tcp", ln.Addr().String(), e.client)
	if err == nil {
		defer conn.Close()
		out.state = conn.ConnectionState()
		out.names[0], _ = mtls.RelayName(out.state)
		_, err = io.ReadFull(conn, make([]byte, 1))
	}
	out.client = err
	<-done
	return out
}

func TestHandshake(t *testing.T) {
	t.Parallel()
	other := clienttest.New(t, "ci.other.example")
	sub := clienttest.New(t, "sub."+trustDomain)
	now := time.Now()
	tests := []struct {
		name           string
		server, client clienttest.Leaf
		spoil          func(*testing.T, *ends)
		// the end that refuses, and its error; empty means success
		refuses, says string
	}{
		{name: "admitted"},
		{name: "client certificate as a server's", server: clienttest.Leaf{DNS: []string{serverName}}, refuses: "client", says: "incompatible key usage"},
		{name: "server certificate as a client's", client: serverLeaf(), refuses: "server", says: "incompatible key usage"},
		{name: "certificate for both uses, of a server", server: both(serverLeaf()), refuses: "client", says: "for another use"},
		{name: "certificate for both uses, of a client", client: both(clienttest.Leaf{}), refuses: "server", says: "for another use"},
		{name: "expired client", client: clienttest.Leaf{NotAfter: now.Add(-time.Second)}, refuses: "server", says: "expired"},
		{name: "expired server", server: expired(serverLeaf()), refuses: "client", says: "expired"},
		{name: "client not yet valid", client: clienttest.Leaf{NotBefore: now.Add(time.Minute)}, refuses: "server", says: "not yet valid"},
		{name: "wrong name", server: named(serverLeaf(), "other.example.com"), refuses: "client", says: "not " + serverName},
		{name: "client of another root", spoil: func(t *testing.T, e *ends) {
			e.client = mtls.ClientConfig(clienttest.Source{Cert: other.Issue(t, clienttest.Leaf{}), Pool: e.ca.Roots()}, e.ca.TrustDomain, serverName, []string{"mayfly/1"}, admit)
		}, refuses: "server", says: "unknown authority"},
		{name: "client of a trust domain below ours", spoil: func(t *testing.T, e *ends) {
			e.client = mtls.ClientConfig(clienttest.Source{Cert: sub.Issue(t, clienttest.Leaf{}), Pool: e.ca.Roots()}, e.ca.TrustDomain, serverName, []string{"mayfly/1"}, admit)
			both := x509.NewCertPool()
			both.AddCert(e.ca.Root.Certificate)
			both.AddCert(sub.Root.Certificate)
			e.server = mtls.ServerConfig(clienttest.Source{Cert: e.ca.Issue(t, serverLeaf()), Pool: both}, e.ca.TrustDomain, admit)
		}, refuses: "server", says: "trust domain"},
		{name: "no client certificate", spoil: func(t *testing.T, e *ends) {
			e.client = &tls.Config{RootCAs: e.ca.Roots(), ServerName: serverName}
		}, refuses: "server", says: "didn't provide a certificate"},
		{name: "TLS 1.2", spoil: func(_ *testing.T, e *ends) {
			e.client.MinVersion, e.client.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		}, refuses: "server", says: "unsupported versions"},
		{name: "foreign protocol", spoil: func(_ *testing.T, e *ends) {
			e.client.NextProtos = []string{"mayfly/2"}
		}, refuses: "server", says: "unsupported application protocols"},
		{name: "authorizer of the server", spoil: func(t *testing.T, e *ends) {
			e.server = mtls.ServerConfig(clienttest.Source{Cert: e.ca.Issue(t, serverLeaf()), Pool: e.ca.Roots()}, e.ca.TrustDomain,
				func(p mtls.Peer) error { return errors.New("no entry for " + p.Claims.ID.Path()) })
		}, refuses: "server", says: "no entry for /github/1/2"},
		{name: "authorizer of the client", spoil: func(t *testing.T, e *ends) {
			e.client = mtls.ClientConfig(clienttest.Source{Cert: e.ca.Issue(t, clienttest.Leaf{}), Pool: e.ca.Roots()}, e.ca.TrustDomain, serverName, nil,
				func(p mtls.Peer) error { return errors.New("no trust in " + p.Claims.ID.Path()) })
		}, refuses: "client", says: "no trust in /engine/default/fly/1"},
		{name: "no authorizer of the server", spoil: func(t *testing.T, e *ends) {
			e.server = mtls.ServerConfig(clienttest.Source{Cert: e.ca.Issue(t, serverLeaf()), Pool: e.ca.Roots()}, e.ca.TrustDomain, nil)
		}, refuses: "server", says: "no authorizer"},
		{name: "no roots of the server", spoil: func(t *testing.T, e *ends) {
			e.server = mtls.ServerConfig(clienttest.Source{Cert: e.ca.Issue(t, serverLeaf())}, e.ca.TrustDomain, admit)
		}, refuses: "server", says: "no roots"},
		{name: "no roots of the client", spoil: func(t *testing.T, e *ends) {
			e.client = mtls.ClientConfig(clienttest.Source{Cert: e.ca.Issue(t, clienttest.Leaf{})}, e.ca.TrustDomain, serverName, nil, admit)
		}, refuses: "client", says: "unknown authority"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.server.DNS == nil {
				tt.server = serverLeaf()
			}
			e := newEnds(t, tt.server, tt.client)
			if tt.spoil != nil {
				tt.spoil(t, e)
			}
			out := e.handshake(t)
			said := map[string]error{"client": out.client, "server": out.server}[tt.refuses]
			switch {
			case tt.refuses == "" && (out.client != nil || out.server != nil):
				t.Fatalf("client %v, server %v", out.client, out.server)
			case tt.refuses != "" && (out.client == nil || out.server == nil):
				t.Fatalf("admitted: client %v, server %v", out.client, out.server)
			case tt.refuses != "" && !strings.Contains(said.Error(), tt.says):
				t.Fatalf("%s said %q, want %q in it", tt.refuses, said, tt.says)
			}
		})
	}
}

func both(l clienttest.Leaf) clienttest.Leaf {
	l.Template = func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	}
	return l
}

func expired(l clienttest.Leaf) clienttest.Leaf {
	l.NotBefore, l.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Second)
	return l
}

func named(l clienttest.Leaf, name string) clienttest.Leaf {
	l.DNS = []string{name}
	return l
}

// Both ends compute the same name of a connection, and two connections never share
// one. The handshake is TLS 1.3 with the hybrid key exchange and is never resumed.
func TestConnection(t *testing.T) {
	t.Parallel()
	e := newEnds(t, serverLeaf(), clienttest.Leaf{})
	e.client.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	seen := map[string]bool{}
	for range 3 {
		out := e.handshake(t)
		if out.client != nil || out.server != nil {
			t.Fatalf("client %v, server %v", out.client, out.server)
		}
		if out.names[0] != out.names[1] || len(out.names[0]) != 64 || seen[out.names[0]] {
			t.Errorf("relay names %q", out.names)
		}
		seen[out.names[0]] = true
		s := out.state
		if s.Version != tls.VersionTLS13 || s.CurveID != tls.X25519MLKEM768 || s.DidResume || s.NegotiatedProtocol != "mayfly/1" {
			t.Errorf("version %x, curve %v, resumed %v, protocol %q", s.Version, s.CurveID, s.DidResume, s.NegotiatedProtocol)
		}
	}
}

// A server uses its source's current roots and certificate without a new configuration.
func TestServerFollowsSource(t *testing.T) {
	t.Parallel()
	e := newEnds(t, serverLeaf(), clienttest.Leaf{})
	src := &clienttest.Source{Cert: e.ca.Issue(t, serverLeaf()), Pool: x509.NewCertPool()}
	e.server = mtls.ServerConfig(src, e.ca.TrustDomain, admit)
	if out := e.handshake(t); out.server == nil {
		t.Fatal("admitted a client under no root")
	}
	src.Pool = e.ca.Roots()
	next := e.ca.Issue(t, serverLeaf())
	src.Cert = next
	out := e.handshake(t)
	if out.client != nil || out.server != nil {
		t.Fatalf("client %v, server %v", out.client, out.server)
	}
	if got := out.state.PeerCertificates[0].SerialNumber; got.Cmp(next.Leaf.SerialNumber) != 0 {
		t.Error("server did not present its new certificate")
	}
}
