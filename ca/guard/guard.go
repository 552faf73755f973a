// Package guard is the sole holder of an intermediate's key. It signs nothing
// that was not announced, and no leaf before its record is durable: a
// certificate that was never recorded cannot exist.
//
// A Guard itself is no signer. Leaf, CRL and Server announce one thing each and
// return a Ticket, which is a crypto.MessageSigner for that one thing and once:
// it is given the whole to-be-signed bytes, parses them as what they claim to
// be, checks everything from them anew, and only then signs. A ticket that is
// dropped leaves nothing behind.
//
// It imports ca/issuance, ca/identity and the standard library; who records is
// told to it as a Recorder.
package guard

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/ca/issuance"
)

// Recorder makes a leaf's record durable.
type Recorder interface {
	// Record writes the record of leaf, whose RawTBSCertificate is what will
	// be signed, and returns when it is durable. ErrRepeated says that the
	// token bought another leaf before, which Recorded returns: nothing was
	// written then, and the ticket signs nothing. After any other error the
	// ticket signs nothing either.
	Record(ctx context.Context, leaf *x509.Certificate) error
	// Recorded returns the to-be-signed bytes of a leaf that was recorded and
	// is neither expired nor revoked, and its signature if that was kept.
	Recorded(ctx context.Context) (tbs, signature []byte, err error)
}

// Errors of a ticket.
var (
	// ErrRepeated: see Recorder.
	ErrRepeated = errors.New("the token bought a certificate before")
	// ErrDigest: a signature over a bare digest was asked for. The guard signs
	// only what it can read.
	ErrDigest = errors.New("guard: a bare digest is never signed")
	// ErrExpired: a recorded leaf has ended and is not signed again.
	ErrExpired = errors.New("guard: the recorded certificate has expired")
	// ErrSpent: a ticket was used a second time.
	ErrSpent = errors.New("guard: the ticket is spent")
)

// RefusedError says that what was to be signed is not what was announced.
type RefusedError struct{ Err error }

func (e *RefusedError) Error() string { return "guard: refused to sign: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *RefusedError) Unwrap() error { return e.Err }

// Options name a Guard's authority.
type Options struct {
	// Issuer is the intermediate's certificate.
	Issuer *x509.Certificate
	// Key is its private key, which nobody else may hold. ECDSA P-256.
	Key         crypto.Signer
	TrustDomain spiffeid.TrustDomain
	// CRL is the distribution point of every leaf.
	CRL string
}

// Guard holds one intermediate's key.
type Guard struct {
	o Options
	// pub is the issuer's, so that all tickets compare with one.
	pub crypto.PublicKey
}

// New makes the guard of an intermediate. The key must be the certificate's.
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
	return &Guard{o: o, pub: pub}, nil
}

// Issuer is the intermediate's certificate.
func (g *Guard) Issuer() *x509.Certificate { return g.o.Issuer }

// Deterministic tells whether signing the same bytes twice gives the same
// signature (RFC 6979), as software keys do and KMS keys may not.
func (g *Guard) Deterministic() bool {
	_, ok := g.o.Key.(*ecdsa.PrivateKey)
	return ok
}

// Ticket signs the one thing that it was announced for, once. It implements
// crypto.Signer and crypto.MessageSigner.
type Ticket struct {
	guard *Guard
	spent atomic.Bool
	// admit checks and records tbs.
	admit func(tbs []byte) error
}

var _ crypto.MessageSigner = (*Ticket)(nil)

// Public is the intermediate's public key.
func (t *Ticket) Public() crypto.PublicKey { return t.guard.pub }

// Sign refuses: see ErrDigest.
func (t *Ticket) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, ErrDigest
}

// SignMessage signs tbs if it is what the ticket was announced for. rand is not
// used: software keys sign deterministically.
func (t *Ticket) SignMessage(_ io.Reader, tbs []byte, opts crypto.SignerOpts) ([]byte, error) {
	if t.spent.Swap(true) {
		return nil, ErrSpent
	}
	if opts.HashFunc() != crypto.SHA256 {
		return nil, &RefusedError{errors.New("another hash than SHA-256")}
	}
	if err := t.admit(tbs); err != nil {
		return nil, err
	}
	return t.guard.sign(tbs)
}

// sign is the only use of the key.
func (g *Guard) sign(tbs []byte) ([]byte, error) {
	digest := sha256.Sum256(tbs)
	random := rand.Reader
	if g.Deterministic() {
		random = nil // RFC 6979
	}
	sig, err := g.o.Key.Sign(random, digest[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("guard: sign: %w", err)
	}
	return sig, nil
}

// Leaf announces a leaf.
type Leaf struct {
	// Serial is 32 lower-case hex digits.
	Serial string
	Grant  issuance.Grant
	// PublicKey is what the request proved possession of.
	PublicKey crypto.PublicKey
}

// Leaf returns the ticket for one leaf, which r will have recorded before it is
// signed.
func (g *Guard) Leaf(ctx context.Context, a Leaf, r Recorder) *Ticket {
	return &Ticket{guard: g, admit: func(tbs []byte) error {
		leaf, err := parseTBS(tbs)
		if err != nil {
			return &RefusedError{err}
		}
		if got := Serial(leaf); got != a.Serial {
			return &RefusedError{fmt.Errorf("serial %s was not announced", got)}
		}
		if !equalKeys(leaf.PublicKey, a.PublicKey) {
			return &RefusedError{errors.New("another public key than announced")}
		}
		if err := issuance.Check(leaf, a.Grant, g.bounds()); err != nil {
			return &RefusedError{err}
		}
		return r.Record(ctx, leaf)
	}}
}

// Repeat returns the leaf that r recorded for a's token before, byte for byte
// as it was given out if the key is deterministic or the signature was kept. It
// must still be within the grant, and for the same key. fresh is the signature
// if it was made anew. a.Serial is not looked at.
func (g *Guard) Repeat(ctx context.Context, a Leaf, r Recorder) (leaf *x509.Certificate, fresh []byte, err error) {
	tbs, sig, err := r.Recorded(ctx)
	if err != nil {
		return nil, nil, err
	}
	leaf, err = parseTBS(tbs)
	if err != nil {
		return nil, nil, &RefusedError{err}
	}
	if !equalKeys(leaf.PublicKey, a.PublicKey) {
		return nil, nil, &RefusedError{errors.New("another public key than recorded")}
	}
	if err := issuance.CheckRepeat(leaf, a.Grant, g.bounds()); err != nil {
		return nil, nil, &RefusedError{err}
	}
	return g.complete(tbs, sig)
}

// Reproduce returns a recorded leaf for who may read it, as Repeat does for who
// may have it. ErrExpired if it has ended.
func (g *Guard) Reproduce(ctx context.Context, r Recorder) (*x509.Certificate, error) {
	tbs, sig, err := r.Recorded(ctx)
	if err != nil {
		return nil, err
	}
	leaf, err := parseTBS(tbs)
	if err != nil {
		return nil, &RefusedError{err}
	}
	if !time.Now().Before(leaf.NotAfter) {
		return nil, ErrExpired
	}
	if err := issuance.CheckRecorded(leaf, g.bounds()); err != nil {
		return nil, &RefusedError{err}
	}
	leaf, _, err = g.complete(tbs, sig)
	return leaf, err
}

// complete gives a checked TBS its signature, and returns it if it is fresh.
func (g *Guard) complete(tbs, sig []byte) (leaf *x509.Certificate, fresh []byte, err error) {
	if len(sig) == 0 {
		if sig, err = g.sign(tbs); err != nil {
			return nil, nil, err
		}
		fresh = sig
	}
	if leaf, err = Assemble(tbs, sig); err != nil {
		return nil, nil, err
	}
	// Of the store, or of a key that faltered: two signatures over the same
	// bytes, one of them faulty, would give a deterministic ECDSA key away.
	if err := leaf.CheckSignatureFrom(g.o.Issuer); err != nil {
		return nil, nil, fmt.Errorf("guard: recorded signature: %w", err)
	}
	return leaf, fresh, nil
}

// Server announces the certificate of the issuer's own HTTPS listener. It has
// no SPIFFE ID and no grant, so no engine and no client takes it for a peer.
type Server struct {
	Serial      string
	DNSNames    []string
	IPAddresses []net.IP // loopback only
	PublicKey   crypto.PublicKey
}

// Server returns the ticket for the issuer's own certificate. record is called
// before it is signed.
func (g *Guard) Server(a Server, record func(*x509.Certificate) error) *Ticket {
	return &Ticket{guard: g, admit: func(tbs []byte) error {
		leaf, err := parseTBS(tbs)
		if err != nil {
			return &RefusedError{err}
		}
		if err := g.checkServer(leaf, a); err != nil {
			return &RefusedError{err}
		}
		return record(leaf)
	}}
}

func (g *Guard) bounds() issuance.Bounds {
	return issuance.Bounds{Now: time.Now(), TrustDomain: g.o.TrustDomain, Issuer: g.o.Issuer, CRL: g.o.CRL}
}

// Serial writes a certificate's serial number as mayfly does everywhere: 32
// lower-case hex digits.
func Serial(c *x509.Certificate) string {
	return fmt.Sprintf("%0*x", 2*issuance.SerialBytes, c.SerialNumber)
}

func equalKeys(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// ecdsaWithSHA256 is the one signature algorithm of mayfly's intermediates.
var ecdsaWithSHA256 = asn1.RawValue{FullBytes: []byte{0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02}}

// signed is the outer form of certificates and CRLs (RFC 5280 4.1 and 5.1).
type signed struct {
	TBS       asn1.RawValue
	Algorithm asn1.RawValue
	Signature asn1.BitString
}

func wrap(tbs, signature []byte) ([]byte, error) {
	return asn1.Marshal(signed{
		TBS:       asn1.RawValue{FullBytes: tbs},
		Algorithm: ecdsaWithSHA256,
		Signature: asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)},
	})
}

// Assemble joins a recorded TBS and its signature to a certificate. It does not
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
