package guard_test

import (
	"bytes"
	"context"
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

	"github.com/mayfly-ca/mayfly/ca/guard"
	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/ca/issuance"
)

const crlURL = "https://issuer.example.com/v1/crl/00"

var td = spiffeid.RequireTrustDomainFromString("ci.example.com")

// counter is a key that counts its signatures.
type counter struct {
	crypto.Signer
	n int
}

func (c *counter) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	c.n++
	return c.Signer.Sign(random, digest, opts)
}

// books is a Recorder in memory.
type books struct {
	recorded []*x509.Certificate
	err      error
	tbs, sig []byte
}

func (b *books) Record(_ context.Context, leaf *x509.Certificate) error {
	if b.err != nil {
		return b.err
	}
	b.recorded = append(b.recorded, leaf)
	return nil
}

func (b *books) Recorded(context.Context) (tbs, sig []byte, err error) { return b.tbs, b.sig, b.err }

// bench is a guard, and what it takes to make a leaf of it by hand.
type bench struct {
	*guard.Guard
	issuer *x509.Certificate
	key    *counter
	leaf   *ecdsa.PrivateKey
	grant  issuance.Grant
	books  *books
}

func newBench(t *testing.T, hide bool) *bench {
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
	var signer crypto.Signer = key
	if hide { // as a KMS hides it
		signer = b.key
	}
	if b.Guard, err = guard.New(guard.Options{Issuer: b.issuer, Key: signer, TrustDomain: td, CRL: crlURL}); err != nil {
		t.Fatal(err)
	}
	b.grant, err = issuance.NewGrant(issuance.Params{
		Profile: issuance.Client, TTL: time.Hour, Provider: "github",
		Identity: identity.Claims{
			ID:         spiffeid.RequireFromString("spiffe://ci.example.com/github/1/2"),
			CommonName: "github/a/b",
			Grant:      identity.Grant{Engines: []string{"default"}, Rule: "r"},
		},
		Token: issuance.Token{Issuer: "https://token.example.com", ID: "1", SingleUse: true},
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

// template is a leaf as the guard wants it.
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

func (b *bench) announce(c *x509.Certificate) guard.Leaf {
	return guard.Leaf{Serial: guard.Serial(c), Grant: b.grant, PublicKey: b.leaf.Public()}
}

// encode is x509.CreateCertificate for the bench's key.
func (b *bench) encode(c *x509.Certificate) guard.Encoder {
	return func(signer crypto.Signer) error {
		_, err := x509.CreateCertificate(rand.Reader, c, b.issuer, b.leaf.Public(), signer)
		return err
	}
}

func TestLeafIsRecordedAndSigned(t *testing.T) {
	t.Parallel()
	for name, hide := range map[string]bool{"software key": false, "kms key": true} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, hide)
			c := b.template(t)
			leaf, err := b.Leaf(t.Context(), b.announce(c), b.books, b.encode(c))
			if err != nil {
				t.Fatal(err)
			}
			if err := leaf.CheckSignatureFrom(b.issuer); err != nil {
				t.Error(err)
			}
			parsed, err := x509.ParseCertificate(leaf.Raw)
			if err != nil || !bytes.Equal(parsed.RawTBSCertificate, leaf.RawTBSCertificate) || !bytes.Equal(parsed.Signature, leaf.Signature) {
				t.Errorf("the certificate is not its own DER: %v", err)
			}
			if len(b.books.recorded) != 1 || !bytes.Equal(b.books.recorded[0].RawTBSCertificate, leaf.RawTBSCertificate) {
				t.Error("what was signed is not what was recorded")
			}
			if b.Deterministic() == hide {
				t.Errorf("deterministic: %v", b.Deterministic())
			}
		})
	}
}

// Whatever differs from what was announced is neither recorded nor signed.
func TestLeafRefuses(t *testing.T) {
	t.Parallel()
	other := newKey(t)
	for name, change := range map[string]func(b *bench, c *x509.Certificate, a *guard.Leaf){
		"serial not announced": func(_ *bench, c *x509.Certificate, _ *guard.Leaf) {
			c.SerialNumber = new(big.Int).Lsh(big.NewInt(3), 120)
		},
		"serial too short": func(_ *bench, c *x509.Certificate, a *guard.Leaf) {
			c.SerialNumber = big.NewInt(9)
			a.Serial = guard.Serial(c)
		},
		"another key": func(_ *bench, _ *x509.Certificate, a *guard.Leaf) { a.PublicKey = other.Public() },
		"zero grant":  func(_ *bench, _ *x509.Certificate, a *guard.Leaf) { a.Grant = issuance.Grant{} },
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
			b := newBench(t, true)
			c := b.template(t)
			if _, err := b.Leaf(t.Context(), b.announce(c), b.books, b.encode(c)); err != nil {
				t.Fatalf("unchanged: %v", err)
			}
			signed := b.key.n
			b.books = &books{}
			c = b.template(t)
			a := b.announce(c)
			change(b, c, &a)
			var refused *guard.RefusedError
			if _, err := b.Leaf(t.Context(), a, b.books, b.encode(c)); !errors.As(err, &refused) {
				t.Errorf("got %v, want a refusal", err)
			}
			if len(b.books.recorded) > 0 || b.key.n > signed {
				t.Errorf("%d recorded, %d signed", len(b.books.recorded), b.key.n-signed)
			}
		})
	}
}

func shift(c *x509.Certificate, d time.Duration) {
	c.NotBefore, c.NotAfter = c.NotBefore.Add(d), c.NotAfter.Add(d)
}

// otherGrant is of another engine than the bench's.
func otherGrant(b *bench) issuance.Grant {
	p := b.grant.Params()
	p.Identity.Grant.Engines = []string{"large"}
	g, err := issuance.NewGrant(p)
	if err != nil {
		panic(err) // the bench's own, but for the engine
	}
	return g
}

// Attack 36: the store fails, and nothing is signed.
func TestNothingIsSignedWithoutARecord(t *testing.T) {
	t.Parallel()
	b := newBench(t, true)
	c := b.template(t)
	b.books.err = errors.New("disk full")
	if leaf, err := b.Leaf(t.Context(), b.announce(c), b.books, b.encode(c)); leaf != nil || !errors.Is(err, b.books.err) {
		t.Errorf("got %v, %v", leaf, err)
	}
	if b.key.n != 0 {
		t.Errorf("%d signatures", b.key.n)
	}
	b.books.err = nil
	if _, err := b.Leaf(t.Context(), b.announce(c), b.books, b.encode(c)); err != nil {
		t.Error(err)
	}
}

// The signer that an encoder gets gives no signature away, whatever it asks.
func TestEncoderHasNoSignature(t *testing.T) {
	t.Parallel()
	b := newBench(t, true)
	c := b.template(t)
	digest := sha256.Sum256([]byte("anything"))
	for name, encode := range map[string]guard.Encoder{
		"bare digest": func(s crypto.Signer) error {
			_, err := s.Sign(rand.Reader, digest[:], crypto.SHA256)
			return err
		},
		"bare digest, error dropped": func(s crypto.Signer) error {
			if sig, _ := s.Sign(rand.Reader, digest[:], crypto.SHA256); sig != nil {
				t.Error("a signature over a digest")
			}
			return nil
		},
		"arbitrary bytes": func(s crypto.Signer) error {
			sig, err := s.(crypto.MessageSigner).SignMessage(rand.Reader, []byte("arbitrary"), crypto.SHA256)
			if sig != nil {
				t.Error("a signature over arbitrary bytes")
			}
			return err
		},
		"another hash": func(s crypto.Signer) error {
			_, err := s.(crypto.MessageSigner).SignMessage(rand.Reader, []byte("arbitrary"), crypto.SHA512)
			return err
		},
		"two at once": func(s crypto.Signer) error {
			_ = b.encode(c)(s) // the first is taken
			return b.encode(c)(s)
		},
		"nothing": func(crypto.Signer) error { return nil },
		"error":   func(crypto.Signer) error { return errors.New("no template") },
		"a CRL": func(s crypto.Signer) error {
			_, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(guard.CRLLifetime)}, b.issuer, s)
			return err
		},
	} {
		if leaf, err := b.Leaf(t.Context(), b.announce(c), b.books, encode); err == nil || leaf != nil {
			t.Errorf("%s: signed", name)
		}
	}
	if b.key.n != 0 || len(b.books.recorded) != 0 {
		t.Errorf("%d signed, %d recorded", b.key.n, len(b.books.recorded))
	}
}

func TestRepeat(t *testing.T) {
	t.Parallel()
	b := newBench(t, false)
	c := b.template(t)
	first, err := b.Leaf(t.Context(), b.announce(c), b.books, b.encode(c))
	if err != nil {
		t.Fatal(err)
	}
	b.books.tbs = first.RawTBSCertificate
	again, fresh, err := b.Repeat(t.Context(), b.announce(c), b.books)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.Raw, first.Raw) || !bytes.Equal(fresh, first.Signature) {
		t.Error("a deterministic key gave other bytes")
	}
	t.Run("kept signature", func(t *testing.T) {
		kept := &books{tbs: first.RawTBSCertificate, sig: first.Signature}
		again, fresh, err := b.Repeat(t.Context(), b.announce(c), kept)
		if err != nil || fresh != nil || !bytes.Equal(again.Raw, first.Raw) {
			t.Errorf("fresh %x, %v", fresh, err)
		}
	})
	t.Run("altered signature", func(t *testing.T) {
		sig := bytes.Clone(first.Signature)
		sig[len(sig)-1] ^= 1
		if leaf, _, err := b.Repeat(t.Context(), b.announce(c), &books{tbs: first.RawTBSCertificate, sig: sig}); err == nil {
			t.Errorf("gave out %v", leaf)
		}
	})
	t.Run("another key", func(t *testing.T) {
		a := b.announce(c)
		a.PublicKey = newKey(t).Public()
		var refused *guard.RefusedError
		if _, _, err := b.Repeat(t.Context(), a, b.books); !errors.As(err, &refused) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("an engine that is not granted now", func(t *testing.T) {
		a := b.announce(c)
		a.Grant = otherGrant(b)
		var refused *guard.RefusedError
		if _, _, err := b.Repeat(t.Context(), a, b.books); !errors.As(err, &refused) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("store's TBS altered", func(t *testing.T) {
		evil := b.template(t)
		evil.IsCA, evil.KeyUsage = true, x509.KeyUsageCertSign
		var tbs []byte
		der, err := x509.CreateCertificate(rand.Reader, evil, b.issuer, b.leaf.Public(), b.key.Signer)
		if err != nil {
			t.Fatal(err)
		}
		if parsed, err := x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		} else {
			tbs = parsed.RawTBSCertificate
		}
		var refused *guard.RefusedError
		if _, _, err := b.Repeat(t.Context(), b.announce(c), &books{tbs: tbs}); !errors.As(err, &refused) {
			t.Errorf("got %v", err)
		}
		if _, err := b.Reproduce(t.Context(), &books{tbs: tbs}); !errors.As(err, &refused) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("reproduce", func(t *testing.T) {
		leaf, err := b.Reproduce(t.Context(), b.books)
		if err != nil || !bytes.Equal(leaf.Raw, first.Raw) {
			t.Errorf("got %v", err)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	b := newBench(t, false)
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
