// Package mtls makes mayfly's mutual TLS configurations. No other package makes
// them: both ends of every connection between a job and an engine use
// ServerConfig or ClientConfig.
//
// Feed is the revocation data of both ends: the verified content of
// GET /v1/crl/wait.
//
// The package imports the standard library, go-spiffe's spiffeid and ca/identity.
// It knows only the names of the protocols that it negotiates, opens no connection
// and reads no file.
package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"sync/atomic"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/ca/identity"
)

// Application protocols that a server accepts, and the exporter that names a
// relay. Package wire has the same constants; a test in package client checks that
// they are equal.
const (
	alpnRelay   = "mayfly/1"
	alpnControl = "mayfly-control/1"
	alpnHTTP2   = "h2"

	exporterLabel  = "EXPORTER-mayfly-relay"
	exporterLength = 32
)

// Peer is the other end of a handshake. Its certificate's chain, extended key
// usage and trust domain are verified.
type Peer struct {
	// Claims is the identity in the certificate.
	Claims      identity.Identity
	Certificate *x509.Certificate
	// Chain is the verified chain, leaf first, root last.
	Chain []*x509.Certificate
	// ALPN is the negotiated protocol; empty if the client offered none.
	ALPN string
}

// Serial returns the serial number of the peer's certificate, in the API's format.
func (p Peer) Serial() string { return Serial(p.Certificate.SerialNumber) }

// Authorizer decides on a peer. Its error ends the handshake. The peer gets only
// the alert bad_certificate, so the owner of the Authorizer logs the reason. It
// runs for every handshake, because sessions are never resumed.
type Authorizer func(Peer) error

// Source provides the certificate and the roots of one end. A server calls both
// methods at every handshake, so a Source may rotate. It is safe for concurrent
// use.
type Source interface {
	// Certificate returns the chain and key to present, leaf first, without
	// the root.
	Certificate() (*tls.Certificate, error)
	// Roots returns the roots that peers must chain to. Nil admits no peer.
	Roots() *x509.CertPool
}

// Serial returns a serial number in the API's format: 32 lower-case hex digits.
func Serial(n *big.Int) string { return fmt.Sprintf("%032x", n) }

// ServerConfig returns the configuration of an engine's listener. It requires
// TLS 1.3 and a client certificate, verifies the certificate for clientAuth against
// src's roots, compares the trust domain, and then calls auth. It negotiates
// mayfly/1, mayfly-control/1, h2 or no protocol.
//
// A nil auth refuses every peer.
func ServerConfig(src Source, td spiffeid.TrustDomain, auth Authorizer) *tls.Config {
	c := base(td, x509.ExtKeyUsageClientAuth, auth)
	c.NextProtos = []string{alpnRelay, alpnControl, alpnHTTP2}
	c.ClientAuth = tls.RequireAndVerifyClientCert
	c.ClientCAs = x509.NewCertPool() // GetConfigForClient sets the real ones
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return certificate(src)
	}
	c.GetConfigForClient = followRoots(c, src)
	return c
}

// ClientConfig returns the configuration of a connection to an engine. It requires
// TLS 1.3, verifies the server for serverAuth and serverName against src's roots,
// compares the trust domain, and then calls auth. It reads src's roots once, and
// src's certificate at every handshake.
//
// A nil auth refuses every peer. alpn may be empty.
func ClientConfig(src Source, td spiffeid.TrustDomain, serverName string, alpn []string, auth Authorizer) *tls.Config {
	c := base(td, x509.ExtKeyUsageServerAuth, auth)
	c.ServerName = serverName
	c.NextProtos = alpn
	c.RootCAs = src.Roots()
	if c.RootCAs == nil {
		c.RootCAs = x509.NewCertPool() // nil would mean the system's roots
	}
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return certificate(src)
	}
	return c
}

// RelayName returns the name of a relay on the control connection: the lower-case
// hex of the TLS exporter value, which only the connection's two ends know.
func RelayName(cs tls.ConnectionState) (string, error) {
	b, err := cs.ExportKeyingMaterial(exporterLabel, nil, exporterLength)
	if err != nil {
		return "", fmt.Errorf("name relay: %w", err)
	}
	return hex.EncodeToString(b), nil
}

// base returns the configuration that both ends share. It disables tickets: a
// resumed handshake verifies no chain, so it would survive a revocation.
func base(td spiffeid.TrustDomain, usage x509.ExtKeyUsage, auth Authorizer) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		MaxVersion:             tls.VersionTLS13,
		CurvePreferences:       []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256},
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			peer, err := verify(cs, td, usage)
			if err != nil {
				return err
			}
			if auth == nil {
				return errors.New("mtls: no authorizer")
			}
			return auth(peer)
		},
	}
}

// verify checks a peer after crypto/tls has verified its chain, with usage, against
// the roots. A mayfly leaf has one extended key usage and no other.
func verify(cs tls.ConnectionState, td spiffeid.TrustDomain, usage x509.ExtKeyUsage) (Peer, error) {
	if len(cs.VerifiedChains) == 0 || len(cs.VerifiedChains[0]) == 0 {
		return Peer{}, errors.New("mtls: peer has no verified chain")
	}
	chain := cs.VerifiedChains[0]
	leaf := chain[0]
	if len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != usage || len(leaf.UnknownExtKeyUsage) != 0 {
		return Peer{}, errors.New("mtls: peer's certificate is for another use")
	}
	if leaf.IsCA {
		return Peer{}, errors.New("mtls: peer's certificate is an authority's")
	}
	claims, err := identity.FromCertificate(leaf, td)
	if err != nil {
		return Peer{}, fmt.Errorf("mtls: peer's identity: %w", err)
	}
	return Peer{Claims: claims, Certificate: leaf, Chain: chain, ALPN: cs.NegotiatedProtocol}, nil
}

func certificate(src Source) (*tls.Certificate, error) {
	cert, err := src.Certificate()
	if err != nil {
		return nil, err
	}
	if cert == nil || len(cert.Certificate) == 0 {
		return nil, errors.New("mtls: no certificate")
	}
	return cert, nil
}

// followRoots returns the configuration for each handshake with the source's
// current roots. It makes another one only when the roots change.
func followRoots(c *tls.Config, src Source) func(*tls.ClientHelloInfo) (*tls.Config, error) {
	var last atomic.Pointer[tls.Config]
	return func(*tls.ClientHelloInfo) (*tls.Config, error) {
		roots := src.Roots()
		if roots == nil {
			return nil, errors.New("mtls: no roots") // nil would mean the system's
		}
		if l := last.Load(); l != nil && l.ClientCAs == roots {
			return l, nil
		}
		next := c.Clone()
		next.GetConfigForClient = nil
		next.ClientCAs = roots
		last.Store(next)
		return next, nil
	}
}
