// Package guard is the only holder of an intermediate's key. It signs only what it
// was asked for, and no certificate before its record is durable: no certificate
// exists without a record.
//
// LeafSigner, ServerSigner and CRLSigner each take the description of one
// certificate or list and return a crypto.MessageSigner for one signature over it.
// x509.CreateCertificate and x509.CreateRevocationList pass the whole to-be-signed
// bytes (TBS) to that signer. The signer parses the TBS, compares it with the
// description, records a certificate, and only then signs. x509 verifies each
// signature before it returns.
//
// It imports ca/grant, ca/identity and the standard library.
package guard

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ca/grant"
)

// Errors of a Signer. It also returns *RefusedError and the errors of its record
// function.
var (
	// ErrDigest: the caller asked for the signature of a bare digest. A Signer
	// signs only bytes that it can parse.
	ErrDigest = errors.New("guard: a bare digest is never signed")
	// ErrSecondSignature: the Signer was used before, with or without success.
	ErrSecondSignature = errors.New("guard: a second signature was asked for")
)

// RefusedError says that the bytes to be signed differ from their description.
type RefusedError struct{ Err error }

func (e *RefusedError) Error() string { return "guard: refused to sign: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *RefusedError) Unwrap() error { return e.Err }

// Options describe the authority of a Guard.
type Options struct {
	// Issuer is the intermediate's certificate.
	Issuer *x509.Certificate
	// Key is the certificate's private key, ECDSA P-256. Only the Guard may hold
	// it.
	Key         crypto.Signer
	TrustDomain spiffeid.TrustDomain
	// CRL is the distribution point of every leaf.
	CRL string
}

// Guard holds one intermediate's key.
type Guard struct{ o Options }

// New returns the guard of an intermediate. The key must be the certificate's.
func New(o Options) (*Guard, error) {
	if o.Issuer == nil || o.Key == nil || o.TrustDomain.IsZero() || o.CRL == "" {
		return nil, errors.New("guard: incomplete options")
	}
	pub, ok := o.Issuer.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, errors.New("guard: an intermediate's key is ECDSA P-256")
	}
	if !pub.Equal(o.Key.Public()) {
		return nil, errors.New("guard: the key is not the certificate's")
	}
	return &Guard{o}, nil
}

// Signer makes one signature over the one object that it was made for. Every call
// uses it up, also a call that it refuses.
type Signer struct {
	guard *Guard
	// check compares and records tbs, and returns the guard's own copy of it.
	check func(tbs []byte) ([]byte, error)
	used  atomic.Bool
}

var _ crypto.MessageSigner = (*Signer)(nil)

// Public returns the intermediate's public key.
func (s *Signer) Public() crypto.PublicKey { return s.guard.o.Issuer.PublicKey }

// Sign returns ErrDigest.
func (s *Signer) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	s.used.Store(true)
	return nil, ErrDigest
}

// SignMessage parses, checks, records and signs tbs.
func (s *Signer) SignMessage(_ io.Reader, tbs []byte, opts crypto.SignerOpts) ([]byte, error) {
	if s.used.Swap(true) {
		return nil, ErrSecondSignature
	}
	if opts == nil || opts.HashFunc() != crypto.SHA256 {
		return nil, &RefusedError{errors.New("another hash than SHA-256")}
	}
	checked, err := s.check(tbs)
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(checked)
	sig, err := s.guard.o.Key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("guard: sign: %w", err)
	}
	return sig, nil
}

// certificateSigner returns a signer for one certificate.
func (g *Guard) certificateSigner(check, record func(*x509.Certificate) error) *Signer {
	return &Signer{guard: g, check: func(tbs []byte) ([]byte, error) {
		cert, err := parseTBS(tbs)
		if err == nil {
			err = check(cert)
		}
		if err != nil {
			return nil, &RefusedError{err}
		}
		if err := record(cert); err != nil {
			return nil, err
		}
		return cert.RawTBSCertificate, nil
	}}
}

// Leaf describes a leaf.
type Leaf struct {
	// Serial is 32 lower-case hex digits.
	Serial string
	Grant  grant.Grant
	// PublicKey is the key whose possession the request proved.
	PublicKey crypto.PublicKey
	// Retry means that the leaf was recorded at an earlier use of the grant's
	// token. NotBefore may then be up to grant.MaxAge before the token's iat, not
	// only before now.
	Retry bool
}

// LeafSigner returns the signer of one leaf. The signer calls record with the
// parsed leaf and signs leaf.RawTBSCertificate after record returns nil. The record
// must be durable by then. An error of record is returned unchanged.
func (g *Guard) LeafSigner(a Leaf, record func(leaf *x509.Certificate) error) *Signer {
	return g.certificateSigner(func(leaf *x509.Certificate) error { return g.checkLeaf(leaf, a) }, record)
}

func (g *Guard) checkLeaf(leaf *x509.Certificate, a Leaf) error {
	if err := checkSubject(leaf, a.Serial, a.PublicKey); err != nil {
		return err
	}
	b := grant.Bounds{Now: time.Now(), TrustDomain: g.o.TrustDomain, Issuer: g.o.Issuer, CRL: g.o.CRL}
	b.Earliest = b.Now.Add(-grant.MaxAge)
	if a.Retry {
		b.Earliest = a.Grant.Params().Token.IssuedAt.Add(-grant.MaxAge)
	}
	return grant.Check(leaf, a.Grant, b)
}

// checkSubject compares the serial number and the public key of cert with the
// description.
func checkSubject(cert *x509.Certificate, serial string, pub crypto.PublicKey) error {
	if got := Serial(cert); got != serial {
		return fmt.Errorf("serial %s, want %s", got, serial)
	}
	if k, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(pub) {
		return errors.New("another public key")
	}
	return nil
}

// Serial returns a certificate's serial number as mayfly writes it everywhere: 32
// lower-case hex digits.
func Serial(c *x509.Certificate) string {
	return fmt.Sprintf("%0*x", 2*grant.SerialBytes, c.SerialNumber)
}

// ecdsaWithSHA256 is the only signature algorithm of mayfly's intermediates, as an
// AlgorithmIdentifier in DER (RFC 5758 3.2).
var ecdsaWithSHA256 = []byte{0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02}

// wrap returns the outer form of certificates and CRLs (RFC 5280 4.1 and 5.1).
func wrap(tbs, signature []byte) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)+128))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		b.AddBytes(ecdsaWithSHA256)
		b.AddASN1BitString(signature)
	})
	return b.Bytes()
}

// Assemble makes a certificate from a recorded TBS and its signature. It does not
// verify the signature.
func Assemble(tbs, signature []byte) (*x509.Certificate, error) {
	der, err := wrap(tbs, signature)
	if err != nil {
		return nil, fmt.Errorf("assemble certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("assemble certificate: %w", err)
	}
	return cert, nil
}

// parseTBS reads tbs as a certificate without a signature.
func parseTBS(tbs []byte) (*x509.Certificate, error) {
	cert, err := Assemble(tbs, nil)
	if err != nil {
		return nil, err
	}
	if len(cert.UnhandledCriticalExtensions) > 0 {
		return nil, fmt.Errorf("critical extensions %v", cert.UnhandledCriticalExtensions)
	}
	return cert, nil
}
