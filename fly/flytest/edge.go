package flytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"time"
)

// edge is the TLS end of a shared address. It finds the app by its name (SNI).
type edge struct {
	hostname    string
	certificate tls.Certificate
	roots       []byte // PEM
}

// newEdge uses the given certificate, or makes a CA and a certificate from it.
func newEdge(hostname string, given *tls.Certificate) (*edge, error) {
	e := &edge{hostname: hostname}
	if given != nil {
		e.certificate = *given
		return e, nil
	}
	rootKey, root, err := sign(&x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "edge CA"},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("edge CA: %w", err)
	}
	key, leaf, err := sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: hostname}, DNSNames: []string{hostname},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, root, rootKey)
	if err != nil {
		return nil, fmt.Errorf("edge certificate: %w", err)
	}
	e.certificate = tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	e.roots = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})
	return e, nil
}

// sign makes a key and its certificate. Without a parent, the certificate is
// self-signed.
func sign(template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*ecdsa.PrivateKey, *x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if parent == nil {
		parent, signer = template, key
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().AddDate(0, 3, 0)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return key, cert, err
}

// config returns the edge's TLS configuration for one port. It refuses a client
// that does not name the app.
func (e *edge) config(o *TLSOptions) *tls.Config {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if !strings.EqualFold(hello.ServerName, e.hostname) {
				return nil, fmt.Errorf("no app has the name %q", hello.ServerName)
			}
			return &e.certificate, nil
		},
	}
	if o != nil {
		cfg.NextProtos = o.ALPN
	}
	return cfg
}
