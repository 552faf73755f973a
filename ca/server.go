package ca

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/grant"
	"github.com/mayfly-ca/mayfly/ca/internal/guard"
	"github.com/mayfly-ca/mayfly/ca/internal/keys"
	"github.com/mayfly-ca/mayfly/ca/store"
)

// ServerCertificate makes a key and a certificate for the issuer's own HTTPS
// listener, valid for a day. An event is durable before the certificate is signed.
// Names must be within the intermediate's constraints; IP addresses must be
// loopback. The certificate has no SPIFFE ID, so it is neither an engine's nor a
// client's.
func (a *Authority) ServerCertificate(ctx context.Context, dnsNames []string, ips []net.IP) (*tls.Certificate, error) {
	cert, err := a.serverCertificate(ctx, dnsNames, ips)
	if err != nil {
		return nil, fmt.Errorf("server certificate: %w", err)
	}
	return cert, nil
}

func (a *Authority) serverCertificate(ctx context.Context, dnsNames []string, ips []net.IP) (*tls.Certificate, error) {
	if len(dnsNames)+len(ips) == 0 {
		return nil, errors.New("no name")
	}
	for _, name := range dnsNames {
		if !grant.ValidHostName(name) || !a.constraints.PermitsDNS(name) {
			return nil, fmt.Errorf("DNS name %q is outside of the intermediate's name constraints (init --issuer-url)", name)
		}
	}
	for _, ip := range ips {
		if !ip.IsLoopback() || !a.constraints.Loopback {
			return nil, fmt.Errorf("IP address %v is outside of the intermediate's name constraints (init --issuer-url)", ip)
		}
	}
	key, err := keys.Generate()
	if err != nil {
		return nil, err
	}
	template, err := a.current.baseTemplate(key.Public(), x509.ExtKeyUsageServerAuth, time.Now())
	if err != nil {
		return nil, err
	}
	template.Subject = pkix.Name{CommonName: "mayfly/issuer"}
	template.DNSNames, template.IPAddresses = dnsNames, ips
	template.NotAfter = grant.NotAfter(template.NotBefore, guard.ServerTTL, a.current.cert)
	want := guard.Server{Serial: guard.Serial(template), DNSNames: dnsNames, IPAddresses: ips, PublicKey: key.Public()}
	record := func(leaf *x509.Certificate) error {
		names := append([]string(nil), dnsNames...)
		for _, ip := range ips {
			names = append(names, ip.String())
		}
		return a.store.Append(ctx, store.Event{
			Time: time.Now().UTC(), Type: store.EventIssued, By: "issuer", Serial: guard.Serial(leaf),
			Reason: "certificate of the issuer's own listener", Detail: map[string]string{"names": strings.Join(names, " ")},
		})
	}
	leaf, err := keys.Leaf(ctx, template, a.current.cert, a.current.guard.ServerSigner(want, record))
	if err != nil {
		return nil, err
	}
	// The chain includes the root for clients that know only its hash,
	// --trust-anchor.
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw, a.current.cert.Raw, a.Root().Raw}, PrivateKey: key, Leaf: leaf}, nil
}
