package guard_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/ca/internal/guard"
)

func TestCRL(t *testing.T) {
	t.Parallel()
	now := time.Now().UTC().Truncate(time.Second)
	entries := []x509.RevocationListEntry{{SerialNumber: big.NewInt(77), RevocationTime: now}}
	floor, err := identity.FloorExtension(now)
	if err != nil {
		t.Fatal(err)
	}
	want := guard.CRL{Number: 12, ThisUpdate: now, Floor: now, Entries: entries}
	list := func() *x509.RevocationList {
		return &x509.RevocationList{
			Number: big.NewInt(12), ThisUpdate: now, NextUpdate: now.Add(guard.CRLLifetime),
			RevokedCertificateEntries: entries, ExtraExtensions: []pkix.Extension{floor},
		}
	}
	b := newBench(t)
	sign := func(l *x509.RevocationList) ([]byte, error) {
		return x509.CreateRevocationList(rand.Reader, l, b.issuer, b.CRLSigner(want))
	}
	der, err := sign(list())
	if err != nil {
		t.Fatal(err)
	}
	got, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := got.CheckSignatureFrom(b.issuer); err != nil {
		t.Error(err)
	}
	signed := b.key.n
	for name, change := range map[string]func(l *x509.RevocationList){
		"another number": func(l *x509.RevocationList) { l.Number = big.NewInt(13) },
		"an entry less":  func(l *x509.RevocationList) { l.RevokedCertificateEntries = nil },
		"another entry": func(l *x509.RevocationList) {
			l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(78), RevocationTime: now}}
		},
		"another time": func(l *x509.RevocationList) {
			l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(77), RevocationTime: now.Add(-time.Second)}}
		},
		"an entry removed": func(l *x509.RevocationList) {
			l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(77), RevocationTime: now, ReasonCode: 8}}
		},
		"no floor": func(l *x509.RevocationList) { l.ExtraExtensions = nil },
		"lower floor": func(l *x509.RevocationList) {
			e, err := identity.FloorExtension(now.Add(-time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			l.ExtraExtensions = []pkix.Extension{e}
		},
		"strange extension": func(l *x509.RevocationList) {
			l.ExtraExtensions = append(l.ExtraExtensions, pkix.Extension{Id: []int{1, 2, 3}, Value: []byte{5, 0}})
		},
		"lasts longer": func(l *x509.RevocationList) { l.NextUpdate = l.NextUpdate.Add(time.Second) },
		"begins later": func(l *x509.RevocationList) { l.ThisUpdate = now.Add(time.Minute) },
	} {
		l := list()
		change(l)
		var refused *guard.RefusedError
		if _, err := sign(l); !errors.As(err, &refused) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	c := b.template(t)
	if _, err := b.sign(c, b.CRLSigner(want)); err == nil {
		t.Error("a certificate was signed as a CRL")
	}
	if b.key.n != signed {
		t.Errorf("%d signatures more", b.key.n-signed)
	}
	s := b.CRLSigner(want)
	for n := range 2 {
		if _, err := x509.CreateRevocationList(rand.Reader, list(), b.issuer, s); (err == nil) != (n == 0) {
			t.Errorf("use %d: %v", n+1, err)
		}
	}
	b.key.fault = true
	if der, err := sign(list()); err == nil || der != nil {
		t.Error("a faulty signature was given out")
	}
}

func TestServer(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	template := func() (*x509.Certificate, guard.Server) {
		c := b.template(t)
		c.URIs, c.ExtraExtensions, c.CRLDistributionPoints = nil, nil, []string{crlURL}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		c.DNSNames = []string{"issuer.example.com"}
		return c, guard.Server{Serial: guard.Serial(c), DNSNames: c.DNSNames, PublicKey: b.leaf.Public()}
	}
	recorded := 0
	record := func(*x509.Certificate) error { recorded++; return nil }
	c, a := template()
	leaf, err := b.sign(c, b.ServerSigner(a, record))
	if err != nil {
		t.Fatal(err)
	}
	if recorded != 1 {
		t.Error("not recorded")
	}
	if _, err := identity.FromCertificate(leaf, td); err == nil {
		t.Error("the issuer's certificate is a peer's")
	}
	signed := b.key.n
	for name, change := range map[string]func(c *x509.Certificate, a *guard.Server){
		"a SPIFFE ID": func(c *x509.Certificate, _ *guard.Server) { c.URIs = b.template(t).URIs },
		"a grant":     func(c *x509.Certificate, _ *guard.Server) { c.ExtraExtensions = b.template(t).ExtraExtensions },
		"clientAuth": func(c *x509.Certificate, _ *guard.Server) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		},
		"an otherName": func(c *x509.Certificate, _ *guard.Server) {
			san := append([]byte{0x30, 20 + 11, 0x82, 18}, c.DNSNames[0]...)
			san = append(san, 0xa0, 9, 6, 2, 0x2a, 3, 0xa0, 3, 0x0c, 1, 'a')
			c.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 17}, Value: san}}
		},
		"another name": func(c *x509.Certificate, _ *guard.Server) { c.DNSNames = []string{"example-engine.fly.dev"} },
		"an IP off loopback": func(c *x509.Certificate, a *guard.Server) {
			a.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)}
			c.IPAddresses = a.IPAddresses
		},
		"too long": func(c *x509.Certificate, _ *guard.Server) {
			c.NotAfter = c.NotBefore.Add(guard.ServerTTL + 61*time.Second)
			b.issuer.NotAfter = c.NotAfter
		},
		"CA":     func(c *x509.Certificate, _ *guard.Server) { c.IsCA = true },
		"serial": func(_ *x509.Certificate, a *guard.Server) { a.Serial = "00" },
		"key":    func(_ *x509.Certificate, a *guard.Server) { a.PublicKey = b.issuer.PublicKey },
	} {
		c, a := template()
		change(c, &a)
		var refused *guard.RefusedError
		if _, err := b.sign(c, b.ServerSigner(a, record)); !errors.As(err, &refused) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	c, a = template()
	if _, err := b.sign(c, b.ServerSigner(a, func(*x509.Certificate) error { return errors.New("disk full") })); err == nil {
		t.Error("signed without an event")
	}
	if recorded != 1 || b.key.n != signed {
		t.Errorf("%d recorded, %d signatures more", recorded, b.key.n-signed)
	}
}
