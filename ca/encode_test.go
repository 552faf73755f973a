package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/ca/internal/step"
	"github.com/mayfly-ca/mayfly/ca/issuance"
)

// taker takes the bytes that it is to sign.
type taker struct {
	pub crypto.PublicKey
	tbs []byte
}

var errTaken = errors.New("taken")

func (t *taker) Public() crypto.PublicKey { return t.pub }
func (t *taker) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("a digest")
}

func (t *taker) SignMessage(_ io.Reader, tbs []byte, _ crypto.SignerOpts) ([]byte, error) {
	t.tbs = bytes.Clone(tbs)
	return nil, errTaken
}

// encoders makes an issuer, and returns what encodeLeaf and smallstep's softcas
// make of a template.
func encoders() func(t *testing.T, template *x509.Certificate) (ours, theirs []byte, err error) {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	top := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "intermediate", Organization: []string{"mayfly"}}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	issuer := must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, top, top, &key.PublicKey, key))))
	return func(t *testing.T, template *x509.Certificate) ([]byte, []byte, error) {
		ours, theirs := &taker{pub: &key.PublicKey}, &taker{pub: &key.PublicKey}
		err := encodeLeaf(template, issuer, ours)
		if other := step.Leaf(context.Background(), template, issuer, theirs); errors.Is(err, errTaken) && !errors.Is(other, errTaken) {
			t.Errorf("encodeLeaf takes what step.Leaf does not: %v", other)
		}
		return ours.tbs, theirs.tbs, err
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func leafTemplate(pub crypto.PublicKey, notAfter time.Time) *x509.Certificate {
	spki, id, err := publicKey(pub)
	if err != nil {
		panic(err)
	}
	return &x509.Certificate{
		SerialNumber: must(newSerial()), NotBefore: notAfter.Add(-time.Hour), NotAfter: notAfter,
		Subject: pkix.Name{CommonName: "github/octo/app"}, PublicKey: pub, RawSubjectPublicKeyInfo: spki, SubjectKeyId: id,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: "ci.example.com", Path: "/github/1/2"}},
		CRLDistributionPoints: []string{"https://issuer.example.com/v1/crl/00"},
		ExtraExtensions:       []pkix.Extension{{Id: identity.OIDGrant, Value: []byte{0x30, 0}}},
	}
}

// What encodeLeaf makes is byte for byte what smallstep's softcas makes.
func TestEncodeLeaf(t *testing.T) {
	t.Parallel()
	encode := encoders()
	p256 := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	_, edwards := must2(ed25519.GenerateKey(rand.Reader))
	soon := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	for _, tc := range []struct {
		name string
		key  crypto.Signer
		end  time.Time
		edit func(*x509.Certificate)
	}{
		{name: "client"},
		{name: "server", edit: func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
			c.DNSNames = []string{"engine.example.com", "b.example.com"}
		}},
		{name: "P-384", key: must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))},
		{name: "Ed25519", key: edwards},
		{name: "RSA", key: must(rsa.GenerateKey(rand.Reader, 2048))},
		{name: "no common name", edit: func(c *x509.Certificate) { c.Subject = pkix.Name{} }},
		{name: "common name of UTF-8", edit: func(c *x509.Certificate) { c.Subject.CommonName = "github/øcto/äpp*&_" }},
		{name: "the year 2049", end: time.Date(2049, 12, 31, 23, 59, 59, 0, time.UTC)},
		{name: "from 2049 into 2050", end: time.Date(2050, 1, 1, 0, 30, 0, 0, time.UTC)},
		{name: "another time zone", end: soon.In(time.FixedZone("x", 5*3600))},
		{name: "two distribution points", edit: func(c *x509.Certificate) {
			c.CRLDistributionPoints = append(c.CRLDistributionPoints, "https://b.example.com/crl")
		}},
		{name: "a critical extension", edit: func(c *x509.Certificate) { c.ExtraExtensions[0].Critical = true }},
		{name: "no more extensions", edit: func(c *x509.Certificate) { c.ExtraExtensions = nil }},
		{name: "a long extension", edit: func(c *x509.Certificate) { c.ExtraExtensions[0].Value = bytes.Repeat([]byte("a"), 70000) }},
		{name: "a name that needs escapes", edit: func(c *x509.Certificate) { c.URIs[0].Path = "/github/a b%ü" }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			key, end := crypto.Signer(p256), soon
			if tc.key != nil {
				key = tc.key
			}
			if !tc.end.IsZero() {
				end = tc.end
			}
			c := leafTemplate(key.Public(), end)
			if tc.edit != nil {
				tc.edit(c)
			}
			ours, theirs, err := encode(t, c)
			if !errors.Is(err, errTaken) || !bytes.Equal(ours, theirs) {
				t.Errorf("%v\nours   %x\ntheirs %x", err, ours, theirs)
			}
		})
	}
}

func must2[A, B any](a A, b B, err error) (A, B) {
	if err != nil {
		panic(err)
	}
	return a, b
}

// What a leaf never has is not encoded at all.
func TestEncodeLeafRefuses(t *testing.T) {
	t.Parallel()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	issuer := &x509.Certificate{RawSubject: []byte{0x30, 0}, SubjectKeyId: []byte{1}}
	for name, edit := range map[string]func(*x509.Certificate){
		"a CA":                 func(c *x509.Certificate) { c.IsCA = true },
		"a path length":        func(c *x509.Certificate) { c.MaxPathLen = 1 },
		"another key usage":    func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign },
		"two usages":           func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) },
		"another usage":        func(c *x509.Certificate) { c.ExtKeyUsage[0] = x509.ExtKeyUsageAny },
		"no URI":               func(c *x509.Certificate) { c.URIs = nil },
		"two URIs":             func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) },
		"an IP address":        func(c *x509.Certificate) { c.IPAddresses = []net.IP{{127, 0, 0, 1}} },
		"an e-mail address":    func(c *x509.Certificate) { c.EmailAddresses = []string{"a@example.com"} },
		"a name not of ASCII":  func(c *x509.Certificate) { c.DNSNames = []string{"ü.example.com"} },
		"a CRL not of ASCII":   func(c *x509.Certificate) { c.CRLDistributionPoints[0] += "ü" },
		"no public key":        func(c *x509.Certificate) { c.RawSubjectPublicKeyInfo = nil },
		"no subject key id":    func(c *x509.Certificate) { c.SubjectKeyId = nil },
		"a negative serial":    func(c *x509.Certificate) { c.SerialNumber.Neg(c.SerialNumber) },
		"no basic constraints": func(c *x509.Certificate) { c.BasicConstraintsValid = false },
	} {
		c := leafTemplate(key.Public(), time.Now())
		if err := encodeLeaf(c, issuer, &taker{}); !errors.Is(err, errTaken) {
			t.Fatalf("the twin that is good: %v", err)
		}
		edit(c)
		if err := encodeLeaf(c, issuer, &taker{}); err == nil || errors.Is(err, errTaken) {
			t.Errorf("%s: encoded", name)
		}
	}
	if err := encodeLeaf(leafTemplate(key.Public(), time.Now()), issuer, struct{ crypto.Signer }{key}); err == nil {
		t.Error("a signer of digests was asked")
	}
}

// FuzzEncodeLeaf holds encodeLeaf to softcas for whatever texts a token brings.
func FuzzEncodeLeaf(f *testing.F) {
	f.Add("github/octo/app", "/github/1/2", "engine.example.com", []byte("value"), int64(1<<31), true)
	f.Add("ø*&", "/a b/%", "ü", []byte{}, int64(2524608000), false)
	encode := encoders()
	pub := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)).Public()
	f.Fuzz(func(t *testing.T, name, path, dns string, value []byte, end int64, server bool) {
		if end < 3600 || end > 253402300799 {
			return
		}
		c := leafTemplate(pub, time.Unix(end, 0))
		c.Subject.CommonName, c.URIs[0].Path, c.ExtraExtensions[0].Value = identity.CommonName(name), path, value
		if server {
			c.ExtKeyUsage[0] = x509.ExtKeyUsageServerAuth
			c.DNSNames = []string{dns}
		}
		c.CRLDistributionPoints[0] += strings.ToValidUTF8(dns, "")
		ours, theirs, err := encode(t, c)
		if errors.Is(err, errTaken) && !bytes.Equal(ours, theirs) {
			t.Errorf("ours   %x\ntheirs %x", ours, theirs)
		}
	})
}

// BenchmarkEncodeLeaf measures the to-be-signed bytes of a client's leaf with a
// GitHub run's extensions: as issued, and by softcas, as all else is.
func BenchmarkEncodeLeaf(b *testing.B) {
	pub := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)).Public()
	c := leafTemplate(pub, time.Now().Add(issuance.Backdate))
	for i := range 17 {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: []int{1, 3, 6, 1, 4, 1, 57264, 1, 8 + i}, Value: bytes.Repeat([]byte("v"), 50)})
	}
	issuer := &x509.Certificate{RawSubject: []byte{0x30, 0}, SubjectKeyId: make([]byte, 20), PublicKey: pub}
	b.Run("own", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := encodeLeaf(c, issuer, &taker{pub: pub}); !errors.Is(err, errTaken) {
				b.Fatal(err)
			}
		}
	})
	b.Run("softcas", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := step.Leaf(b.Context(), c, issuer, &taker{pub: pub}); !errors.Is(err, errTaken) {
				b.Fatal(err)
			}
		}
	})
}
