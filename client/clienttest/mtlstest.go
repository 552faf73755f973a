// Package clienttest has helpers for tests of mayfly's connections: a certificate
// authority in memory and, on Linux, a network path that can be lost.
//
// The authority has a root, intermediates, leaves of mayfly's form and their
// revocation feeds. It follows no policy and checks nothing, so that tests can make
// certificates that a real authority would refuse.
package clienttest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/ca/identity"
)

// Authority is a root or an intermediate with its key.
type Authority struct {
	Certificate *x509.Certificate
	Key         crypto.Signer
}

// CA is a root and its intermediates, the first of which signs leaves.
type CA struct {
	TrustDomain   spiffeid.TrustDomain
	Root          Authority
	Intermediates []Authority
}

// New returns a CA with one intermediate.
func New(tb testing.TB, trustDomain string) *CA {
	tb.Helper()
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	check(tb, err)
	ca := &CA{TrustDomain: td}
	ca.Root = authority(tb, "root of "+trustDomain, nil)
	ca.AddIntermediate(tb)
	return ca
}

// AddIntermediate adds another intermediate and returns its index.
func (ca *CA) AddIntermediate(tb testing.TB) int {
	tb.Helper()
	ca.Intermediates = append(ca.Intermediates, authority(tb, "intermediate of "+ca.TrustDomain.Name(), &ca.Root))
	return len(ca.Intermediates) - 1
}

// Roots returns a pool with the root.
func (ca *CA) Roots() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.Root.Certificate)
	return p
}

// RootCertificates returns the trust bundle.
func (ca *CA) RootCertificates() []*x509.Certificate {
	return []*x509.Certificate{ca.Root.Certificate}
}

// Leaf describes a leaf. Zero fields have the defaults in the comments.
type Leaf struct {
	Intermediate int
	ID           string   // path of the SPIFFE ID; default /github/1/2
	Engines      []string // default {"default"}
	Rule         string   // default "rule"
	Run          string
	DNS          []string
	Usage        x509.ExtKeyUsage // default clientAuth
	NotBefore    time.Time        // default a minute ago
	NotAfter     time.Time        // default an hour ahead
	Key          crypto.PublicKey // default: a generated key
	// Template, if not nil, changes the template before it is signed.
	Template func(*x509.Certificate)
}

// Issue makes a leaf with its chain. It includes the private key if l has no key.
func (ca *CA) Issue(tb testing.TB, l Leaf) *tls.Certificate {
	tb.Helper()
	out := &tls.Certificate{}
	if l.Key == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		check(tb, err)
		l.Key, out.PrivateKey = key.Public(), key
	}
	l.defaults()
	id, err := spiffeid.FromPath(ca.TrustDomain, l.ID)
	check(tb, err)
	tmpl := &x509.Certificate{
		SerialNumber: Serial(tb),
		NotBefore:    l.NotBefore.Truncate(time.Second),
		NotAfter:     l.NotAfter.Truncate(time.Second),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{l.Usage},
		DNSNames:     l.DNS, BasicConstraintsValid: true,
	}
	check(tb, identity.Embed(identity.Identity{
		ID: id, CommonName: "test/" + l.Rule,
		Grant: identity.Scope{Engines: l.Engines, Rule: l.Rule, Run: l.Run},
	}, tmpl))
	if l.Template != nil {
		l.Template(tmpl)
	}
	by := ca.Intermediates[l.Intermediate]
	der, err := x509.CreateCertificate(rand.Reader, tmpl, by.Certificate, l.Key, by.Key)
	check(tb, err)
	out.Leaf, err = x509.ParseCertificate(der)
	check(tb, err)
	out.Certificate = [][]byte{der, by.Certificate.Raw}
	return out
}

func (l *Leaf) defaults() {
	now := time.Now()
	if l.ID == "" {
		l.ID = "/github/1/2"
	}
	if l.Engines == nil {
		l.Engines = []string{"default"}
	}
	if l.Rule == "" {
		l.Rule = "rule"
	}
	if l.Usage == 0 {
		l.Usage = x509.ExtKeyUsageClientAuth
	}
	if l.NotBefore.IsZero() {
		l.NotBefore = now.Add(-time.Minute)
	}
	if l.NotAfter.IsZero() {
		l.NotAfter = now.Add(time.Hour)
	}
}

// Source is a fixed mtls.Source.
type Source struct {
	Cert *tls.Certificate
	Pool *x509.CertPool
}

// Certificate implements mtls.Source.
func (s Source) Certificate() (*tls.Certificate, error) { return s.Cert, nil }

// Roots implements mtls.Source.
func (s Source) Roots() *x509.CertPool { return s.Pool }

// Feed describes a revocation feed.
type Feed struct {
	Number     int64     // default 1
	Floor      time.Time // default the year 2000
	ThisUpdate time.Time // default now
	NextUpdate time.Time // default ten minutes after ThisUpdate
	Revoked    []*big.Int
	// Compromised intermediates, by index, are in the root's list.
	Compromised []int
	// Absent intermediates, by index, are omitted with their lists, as the issuer
	// omits a compromised one.
	Absent []int
	// RootNextUpdate is the nextUpdate of the root's list; default a year ahead.
	RootNextUpdate time.Time
	// List, if not nil, changes an intermediate's list before it is signed.
	List func(intermediate int, list *x509.RevocationList)
}

// Feed returns the PEM of GET /v1/crl/wait.
func (ca *CA) Feed(tb testing.TB, f Feed) []byte {
	tb.Helper()
	f.defaults()
	var out bytes.Buffer
	for i, by := range ca.Intermediates {
		if slices.Contains(f.Absent, i) {
			continue
		}
		write(tb, &out, "CERTIFICATE", by.Certificate.Raw)
		write(tb, &out, "X509 CRL", ca.List(tb, i, f))
	}
	write(tb, &out, "X509 CRL", ca.RootList(tb, f))
	return out.Bytes()
}

// List returns the DER of one intermediate's list.
func (ca *CA) List(tb testing.TB, intermediate int, f Feed) []byte {
	tb.Helper()
	f.defaults()
	list := &x509.RevocationList{Number: big.NewInt(f.Number), ThisUpdate: f.ThisUpdate, NextUpdate: f.NextUpdate}
	for _, serial := range f.Revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: serial, RevocationTime: f.ThisUpdate})
	}
	list.ExtraExtensions = append(list.ExtraExtensions, Floor(tb, f.Floor))
	if f.List != nil {
		f.List(intermediate, list)
	}
	return sign(tb, list, ca.Intermediates[intermediate])
}

// RootList returns the DER of the root's list.
func (ca *CA) RootList(tb testing.TB, f Feed) []byte {
	tb.Helper()
	f.defaults()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: f.ThisUpdate, NextUpdate: f.RootNextUpdate}
	for i := range ca.Intermediates {
		if slices.Contains(f.Compromised, i) {
			list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{
				SerialNumber: ca.Intermediates[i].Certificate.SerialNumber, RevocationTime: f.ThisUpdate,
			})
		}
	}
	return sign(tb, list, ca.Root)
}

func (f *Feed) defaults() {
	if f.Number == 0 {
		f.Number = 1
	}
	if f.Floor.IsZero() {
		f.Floor = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	if f.ThisUpdate.IsZero() {
		f.ThisUpdate = time.Now()
	}
	if f.NextUpdate.IsZero() {
		f.NextUpdate = f.ThisUpdate.Add(10 * time.Minute)
	}
	if f.RootNextUpdate.IsZero() {
		f.RootNextUpdate = f.ThisUpdate.AddDate(1, 0, 0)
	}
}

// Floor returns the CRL extension of a floor.
func Floor(tb testing.TB, at time.Time) pkix.Extension {
	tb.Helper()
	der, err := asn1.MarshalWithParams(at.UTC().Truncate(time.Second), "generalized")
	check(tb, err)
	return pkix.Extension{Id: identity.OIDFloor, Value: der}
}

// Serial returns a random serial number of mayfly's form.
func Serial(tb testing.TB) *big.Int {
	tb.Helper()
	var b [16]byte
	_, err := rand.Read(b[:])
	check(tb, err)
	b[0] = b[0]&0x7f | 1
	return new(big.Int).SetBytes(b[:])
}

// authority makes a root, or an intermediate of parent.
func authority(tb testing.TB, name string, parent *Authority) Authority {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(tb, err)
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: Serial(tb), Subject: pkix.Name{CommonName: name},
		NotBefore: now.AddDate(0, 0, -1), NotAfter: now.AddDate(1, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true, MaxPathLen: 1,
	}
	by := Authority{Certificate: tmpl, Key: key}
	if parent != nil {
		by = *parent
		tmpl.MaxPathLen, tmpl.MaxPathLenZero = 0, true
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, by.Certificate, key.Public(), by.Key)
	check(tb, err)
	cert, err := x509.ParseCertificate(der)
	check(tb, err)
	return Authority{Certificate: cert, Key: key}
}

func sign(tb testing.TB, list *x509.RevocationList, by Authority) []byte {
	tb.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, list, by.Certificate, by.Key)
	check(tb, err)
	return der
}

func write(tb testing.TB, out *bytes.Buffer, kind string, der []byte) {
	tb.Helper()
	check(tb, pem.Encode(out, &pem.Block{Type: kind, Bytes: der}))
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
