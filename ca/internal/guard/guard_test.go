package guard_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/ca/grant"
	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/ca/internal/guard"
)

const crlURL = "https://issuer.example.com/v1/crl/00"

var td = spiffeid.RequireTrustDomainFromString("ci.example.com")

// counter is a key that counts its signatures, and can make false ones.
type counter struct {
	crypto.Signer
	n     int
	fault bool
}

func (c *counter) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	c.n++
	sig, err := c.Signer.Sign(random, digest, opts)
	if c.fault && err == nil {
		sig[len(sig)-1] ^= 1
	}
	return sig, err
}

// books is a record in memory.
type books struct {
	recorded []*x509.Certificate
	err      error
}

func (b *books) record(leaf *x509.Certificate) error {
	if b.err != nil {
		return b.err
	}
	b.recorded = append(b.recorded, leaf)
	return nil
}

// bench is a guard with what a test needs to make a leaf by hand.
type bench struct {
	*guard.Guard
	issuer *x509.Certificate
	key    *counter
	leaf   *ecdsa.PrivateKey
	grant  grant.Grant
	books  *books
}

func newBench(t *testing.T) *bench {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "intermediate"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1, 2, 3, 4},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{key: &counter{Signer: key}, leaf: newKey(t), books: &books{}}
	if b.issuer, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	if b.Guard, err = guard.New(guard.Options{Issuer: b.issuer, Key: b.key, TrustDomain: td, CRL: crlURL}); err != nil {
		t.Fatal(err)
	}
	b.grant, err = grant.New(grant.Params{
		Profile: grant.Client, TTL: time.Hour, Provider: "github",
		Identity: identity.Identity{
			ID:         spiffeid.RequireFromString("spiffe://ci.example.com/github/1/2"),
			CommonName: "github/a/b",
			Grant:      identity.Scope{Engines: []string{"default"}, Rule: "r"},
		},
		Token: grant.Token{Issuer: "https://token.example.com", ID: "1", SingleUse: true, IssuedAt: time.Now().Truncate(time.Second)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// template returns a leaf that the guard accepts.
func (b *bench) template(t *testing.T) *x509.Certificate {
	t.Helper()
	serial := make([]byte, 16)
	if _, err := rand.Read(serial); err != nil {
		t.Fatal(err)
	}
	serial[0] |= 1
	notBefore := time.Now().UTC().Truncate(time.Second).Add(-time.Minute)
	c := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), NotBefore: notBefore, NotAfter: notBefore.Add(61 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, SubjectKeyId: []byte{5, 6, 7}, CRLDistributionPoints: []string{crlURL},
	}
	if err := identity.Embed(b.grant.Params().Identity, c); err != nil {
		t.Fatal(err)
	}
	return c
}

func (b *bench) describe(c *x509.Certificate) guard.Leaf {
	return guard.Leaf{Serial: guard.Serial(c), Grant: b.grant, PublicKey: b.leaf.Public()}
}

// sign signs c with s, for the bench's key.
func (b *bench) sign(c *x509.Certificate, s crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, c, b.issuer, b.leaf.Public(), s)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// signLeaf signs c as the leaf that a describes.
func (b *bench) signLeaf(c *x509.Certificate, a guard.Leaf) (*x509.Certificate, error) {
	return b.sign(c, b.LeafSigner(a, b.books.record))
}

func TestLeafIsRecordedAndSigned(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c := b.template(t)
	leaf, err := b.signLeaf(c, b.describe(c))
	if err != nil {
		t.Fatal(err)
	}
	if err := leaf.CheckSignatureFrom(b.issuer); err != nil {
		t.Error(err)
	}
	if len(b.books.recorded) != 1 || !bytes.Equal(b.books.recorded[0].RawTBSCertificate, leaf.RawTBSCertificate) {
		t.Error("what was signed is not what was recorded")
	}
}

// A certificate that differs from its description is neither recorded nor signed.
func TestLeafRefuses(t *testing.T) {
	t.Parallel()
	other := newKey(t)
	for name, change := range map[string]func(b *bench, c *x509.Certificate, a *guard.Leaf){
		"another serial": func(_ *bench, c *x509.Certificate, _ *guard.Leaf) {
			c.SerialNumber = new(big.Int).Lsh(big.NewInt(3), 120)
		},
		"serial too short": func(_ *bench, c *x509.Certificate, a *guard.Leaf) {
			c.SerialNumber = big.NewInt(9)
			a.Serial = guard.Serial(c)
		},
		"another key": func(_ *bench, _ *x509.Certificate, a *guard.Leaf) { a.PublicKey = other.Public() },
		"zero grant":  func(_ *bench, _ *x509.Certificate, a *guard.Leaf) { a.Grant = grant.Grant{} },
		"CA flag":     func(_ *bench, c *x509.Certificate, _ *guard.Leaf) { c.IsCA = true },
		"certSign":    func(_ *bench, c *x509.Certificate, _ *guard.Leaf) { c.KeyUsage |= x509.KeyUsageCertSign },
		"serverAuth too": func(_ *bench, c *x509.Certificate, _ *guard.Leaf) {
			c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		},
		"any usage": func(_ *bench, c *x509.Certificate, _ *guard.Leaf) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
		},
		"no usage":       func(_ *bench, c *x509.Certificate, _ *guard.Leaf) { c.ExtKeyUsage = nil },
		"a DNS name":     func(_ *bench, c *x509.Certificate, _ *guard.Leaf) { c.DNSNames = []string{"example-engine.fly.dev"} },
		"an IP name":     func(_ *bench, c *x509.Certificate, _ *guard.Leaf) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} },
		"an e-mail name": func(_ *bench, c *x509.Certificate, _ *guard.Leaf) { c.EmailAddresses = []string{"a@invalid"} },
		"another SPIFFE ID": func(_ *bench, c *x509.Certificate, _ *guard.Leaf) {
			c.URIs = []*url.URL{{Scheme: "spiffe", Host: td.Name(), Path: "/github/1/3"}}
		},
		"another common name": func(_ *bench, c *x509.Certificate, _ *guard.Leaf) { c.Subject.CommonName = "github/a/c" },
		"two common names": func(_ *bench, c *x509.Certificate, _ *guard.Leaf) {
			c.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: []int{2, 5, 4, 3}, Value: "root"}, {Type: []int{2, 5, 4, 3}, Value: c.Subject.CommonName}}
		},
		"an organisation": func(_ *bench, c *x509.Certificate, _ *guard.Leaf) {
			c.Subject.Organization = []string{"system:masters"}
		},
		"no grant extension": func(_ *bench, c *x509.Certificate, _ *guard.Leaf) { c.ExtraExtensions = nil },
		"strange extension": func(_ *bench, c *x509.Certificate, _ *guard.Leaf) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: []int{1, 2, 3, 4}, Value: []byte{5, 0}})
		},
		"a raw SAN": func(_ *bench, c *x509.Certificate, _ *guard.Leaf) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: []int{2, 5, 29, 17}, Value: []byte{0x30, 3, 0x82, 1, 'a'}})
		},
		"an otherName": func(_ *bench, c *x509.Certificate, _ *guard.Leaf) { // of type 1.2.3, a UTF8String
			addName(c, []byte{0xa0, 9, 6, 2, 0x2a, 3, 0xa0, 3, 0x0c, 1, 'a'})
		},
		"a registeredID": func(_ *bench, c *x509.Certificate, _ *guard.Leaf) { addName(c, []byte{0x88, 2, 0x2a, 3}) },
		"a directoryName": func(_ *bench, c *x509.Certificate, _ *guard.Leaf) {
			addName(c, []byte{0xa4, 14, 0x30, 12, 0x31, 10, 0x30, 8, 6, 3, 0x55, 4, 3, 0x0c, 1, 'a'})
		},
		"an x400Address": func(_ *bench, c *x509.Certificate, _ *guard.Leaf) { addName(c, []byte{0xa3, 2, 0x30, 0}) },
		"critical names": func(_ *bench, c *x509.Certificate, _ *guard.Leaf) {
			addName(c, nil)
			c.ExtraExtensions[len(c.ExtraExtensions)-1].Critical = true
		},
		"name constraints": func(_ *bench, c *x509.Certificate, _ *guard.Leaf) { c.PermittedDNSDomains = []string{"a.example"} },
		"another CRL": func(_ *bench, c *x509.Certificate, _ *guard.Leaf) {
			c.CRLDistributionPoints = []string{"https://evil.example.com"}
		},
		"no CRL":                 func(_ *bench, c *x509.Certificate, _ *guard.Leaf) { c.CRLDistributionPoints = nil },
		"no subject key id":      func(_ *bench, c *x509.Certificate, _ *guard.Leaf) { c.SubjectKeyId = nil },
		"a second longer":        func(_ *bench, c *x509.Certificate, _ *guard.Leaf) { c.NotAfter = c.NotAfter.Add(time.Second) },
		"begins in the future":   func(_ *bench, c *x509.Certificate, _ *guard.Leaf) { shift(c, 2*time.Minute) },
		"begins too long ago":    func(_ *bench, c *x509.Certificate, _ *guard.Leaf) { shift(c, -time.Minute) },
		"outlives intermediate":  func(b *bench, c *x509.Certificate, _ *guard.Leaf) { c.NotAfter = b.issuer.NotAfter.Add(time.Second) },
		"the grant of an engine": func(b *bench, _ *x509.Certificate, a *guard.Leaf) { a.Grant = otherGrant(b) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			c := b.template(t)
			if _, err := b.signLeaf(c, b.describe(c)); err != nil {
				t.Fatalf("unchanged: %v", err)
			}
			signed := b.key.n
			b.books = &books{}
			c = b.template(t)
			a := b.describe(c)
			change(b, c, &a)
			var refused *guard.RefusedError
			if _, err := b.signLeaf(c, a); !errors.As(err, &refused) {
				t.Errorf("got %v, want a refusal", err)
			}
			if len(b.books.recorded) > 0 || b.key.n > signed {
				t.Errorf("%d recorded, %d signed", len(b.books.recorded), b.key.n-signed)
			}
		})
	}
}

// addName replaces c's SAN extension with one that holds its URI and another
// GeneralName in DER.
func addName(c *x509.Certificate, name []byte) {
	uri := c.URIs[0].String()
	san := append([]byte{0x30, byte(2 + len(uri) + len(name)), 0x86, byte(len(uri))}, uri...)
	c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: []int{2, 5, 29, 17}, Value: append(san, name...)})
}

// A leaf with only its own names is signed. So the cases of TestLeafRefuses are
// refused for the names that they add.
func TestLeafWithItsOwnNames(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c := b.template(t)
	addName(c, nil)
	if _, err := b.signLeaf(c, b.describe(c)); err != nil {
		t.Error(err)
	}
}

func shift(c *x509.Certificate, d time.Duration) {
	c.NotBefore, c.NotAfter = c.NotBefore.Add(d), c.NotAfter.Add(d)
}

// otherGrant is a grant for another engine than the bench's.
func otherGrant(b *bench) grant.Grant {
	p := b.grant.Params()
	p.Identity.Grant.Engines = []string{"large"}
	g, err := grant.New(p)
	if err != nil {
		panic(err) // the bench's own, but for the engine
	}
	return g
}

// Attack 36: the store fails, and nothing is signed.
func TestNothingIsSignedWithoutARecord(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c := b.template(t)
	b.books.err = errors.New("disk full")
	if leaf, err := b.signLeaf(c, b.describe(c)); leaf != nil || !errors.Is(err, b.books.err) {
		t.Errorf("got %v, %v", leaf, err)
	}
	if b.key.n != 0 {
		t.Errorf("%d signatures", b.key.n)
	}
	b.books.err = nil
	if _, err := b.signLeaf(c, b.describe(c)); err != nil {
		t.Error(err)
	}
}

// A signer signs once. A refused try also uses it up, so it does not sign the right
// object afterwards.
func TestSignerIsSpent(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	digest := sha256.Sum256([]byte("anything"))
	var refused *guard.RefusedError
	for name, try := range map[string]func(s *guard.Signer) error{
		"bare digest": func(s *guard.Signer) error {
			sig, err := s.Sign(rand.Reader, digest[:], crypto.SHA256)
			if sig != nil || !errors.Is(err, guard.ErrDigest) {
				t.Errorf("a bare digest: %x, %v", sig, err)
			}
			return err
		},
		"arbitrary bytes": func(s *guard.Signer) error {
			sig, err := s.SignMessage(rand.Reader, []byte("arbitrary"), crypto.SHA256)
			if sig != nil || !errors.As(err, &refused) {
				t.Errorf("arbitrary bytes: %x, %v", sig, err)
			}
			return err
		},
		"another hash": func(s *guard.Signer) error {
			c := b.template(t)
			c.SignatureAlgorithm = x509.ECDSAWithSHA512
			leaf, err := b.sign(c, s)
			if leaf != nil || !errors.As(err, &refused) {
				t.Errorf("another hash: %v, %v", leaf, err)
			}
			return err
		},
		"no hash": func(s *guard.Signer) error {
			_, err := s.SignMessage(rand.Reader, []byte("arbitrary"), nil)
			return err
		},
		"a CRL": func(s *guard.Signer) error {
			_, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(guard.CRLLifetime)}, b.issuer, s)
			return err
		},
		"another certificate": func(s *guard.Signer) error {
			_, err := b.sign(b.template(t), s)
			return err
		},
	} {
		c := b.template(t)
		s := b.LeafSigner(b.describe(c), b.books.record)
		if err := try(s); err == nil {
			t.Errorf("%s: signed", name)
		}
		if leaf, err := b.sign(c, s); leaf != nil || !errors.Is(err, guard.ErrSecondSignature) {
			t.Errorf("after %s: %v", name, err)
		}
	}
	if b.key.n != 0 || len(b.books.recorded) != 0 {
		t.Errorf("%d signed, %d recorded", b.key.n, len(b.books.recorded))
	}
	c := b.template(t)
	s := b.LeafSigner(b.describe(c), b.books.record)
	signed := 0
	for range 2 {
		if _, err := b.sign(c, s); err == nil {
			signed++
		}
	}
	if signed != 1 || b.key.n != 1 || len(b.books.recorded) != 1 {
		t.Errorf("used twice: %d certificates, %d signatures, %d records", signed, b.key.n, len(b.books.recorded))
	}
}

// The guard signs the bytes that it checked and recorded, even if the caller
// changes its own copy meanwhile.
func TestSignerKeepsItsOwnBytes(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c := b.template(t)
	first, err := b.signLeaf(c, b.describe(c))
	if err != nil {
		t.Fatal(err)
	}
	tbs := bytes.Clone(first.RawTBSCertificate)
	s := b.LeafSigner(b.describe(c), func(*x509.Certificate) error {
		tbs[len(tbs)-1] ^= 1
		return nil
	})
	sig, err := s.SignMessage(nil, tbs, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.issuer.CheckSignature(x509.ECDSAWithSHA256, first.RawTBSCertificate, sig); err != nil {
		t.Error(err)
	}
	if err := b.issuer.CheckSignature(x509.ECDSAWithSHA256, tbs, sig); err == nil {
		t.Error("signed what was changed after the check")
	}
}

// A retry may have a NotBefore of up to grant.MaxAge before its token's iat, and
// not later than now.
func TestRetry(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		iat, notBefore time.Duration // from now
		retry, ok      bool
	}{
		"old, first issuance": {-10 * time.Minute, -11 * time.Minute, false, false},
		"old, retry":          {-10 * time.Minute, -11 * time.Minute, true, true},
		"90 s before iat":     {-10 * time.Minute, -10*time.Minute - 90*time.Second, true, true},
		"91 s before iat":     {-10 * time.Minute, -10*time.Minute - 91*time.Second, true, false},
		"in the future":       {-10 * time.Minute, 2 * time.Second, true, false},
		"in 200 days":         {-10 * time.Minute, 200 * 24 * time.Hour, true, false},
		"now, retry":          {0, -time.Minute, true, true},
		"now, first issuance": {0, -time.Minute, false, true},
		"its end has passed":  {-70 * time.Minute, -71 * time.Minute, true, false},
	} {
		b := newBench(t)
		now := time.Now().UTC().Truncate(time.Second)
		p := b.grant.Params()
		p.Token.IssuedAt = now.Add(tc.iat)
		var err error
		if b.grant, err = grant.New(p); err != nil {
			t.Fatal(err)
		}
		c := b.template(t)
		shift(c, now.Add(tc.notBefore).Sub(c.NotBefore))
		a := b.describe(c)
		a.Retry = tc.retry
		_, err = b.signLeaf(c, a)
		var refused *guard.RefusedError
		if tc.ok != (err == nil) || !tc.ok && !errors.As(err, &refused) {
			t.Errorf("%s: %v", name, err)
		}
		if signed := b.key.n > 0; signed != tc.ok {
			t.Errorf("%s: the key signed: %v", name, signed)
		}
	}
}

// The guard does not return a faulty signature of its key.
func TestFaultySignatureIsNotGivenOut(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c := b.template(t)
	b.key.fault = true
	if leaf, err := b.signLeaf(c, b.describe(c)); err == nil || leaf != nil {
		t.Errorf("got %v", leaf)
	}
	b.key.fault = false
	if _, err := b.signLeaf(c, b.describe(c)); err != nil {
		t.Error(err)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for name, o := range map[string]guard.Options{
		"nothing":     {},
		"another key": {Issuer: b.issuer, Key: newKey(t), TrustDomain: td, CRL: crlURL},
		"no CRL":      {Issuer: b.issuer, Key: b.key.Signer, TrustDomain: td},
	} {
		if _, err := guard.New(o); err == nil {
			t.Errorf("%s: made a guard", name)
		}
	}
}
