// Package guard is the sole holder of an intermediate's key. It signs nothing
// that was not announced, and no leaf before its record is durable: a
// certificate that was never recorded cannot exist.
//
// Leaf, CRL and Server are each told what one thing is to be, and an Encoder for
// it, which is handed a crypto.MessageSigner. That signer takes the encoder's
// to-be-signed bytes whole and gives nothing back: the guard parses them as what
// they claim to be, checks everything from them anew, has a leaf recorded, and
// only then signs. What was announced dies with the call, however it ends.
//
// It imports ca/issuance, ca/identity and the standard library; who records is
// told to it as a Recorder.
package guard

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ca/issuance"
)

// Recorder makes a leaf's record durable.
type Recorder interface {
	// Record writes the record of leaf, whose RawTBSCertificate is what will
	// be signed, and returns when it is durable. ErrRepeated says that the
	// token bought another leaf before, which Recorded returns: nothing was
	// written then. After any error nothing is signed.
	Record(ctx context.Context, leaf *x509.Certificate) error
	// Recorded returns the to-be-signed bytes of a leaf that was recorded and
	// is neither expired nor revoked, and its signature if that was kept.
	Recorded(ctx context.Context) (tbs, signature []byte, err error)
}

// Errors of a Guard.
var (
	// ErrRepeated: see Recorder.
	ErrRepeated = errors.New("the token bought a certificate before")
	// ErrExpired: a recorded leaf has ended and is not signed again.
	ErrExpired = errors.New("guard: the recorded certificate has expired")
	// ErrDigest: an encoder asked for a signature over a bare digest. The
	// guard signs only what it can read.
	ErrDigest = errors.New("guard: a bare digest is never signed")
	// ErrSpent: an encoder asked for a second signature.
	ErrSpent = errors.New("guard: one signature was announced")
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
	// pub is the issuer's public key.
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

// Encoder builds one certificate or list that signer signs, as
// x509.CreateCertificate does. What it returns besides an error is not needed:
// the guard joins bytes and signature itself.
type Encoder func(signer crypto.Signer) error

// taker is the signer that an Encoder is given. It takes the bytes and returns
// errTaken: the encoder ends there, and nobody but the guard has a signature.
type taker struct {
	pub crypto.PublicKey
	tbs []byte
}

var (
	_        crypto.MessageSigner = (*taker)(nil)
	errTaken                      = errors.New("guard: taken to be signed")
)

// Public is the intermediate's public key.
func (t *taker) Public() crypto.PublicKey { return t.pub }

// Sign refuses: see ErrDigest.
func (t *taker) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, ErrDigest
}

// SignMessage takes tbs.
func (t *taker) SignMessage(_ io.Reader, tbs []byte, opts crypto.SignerOpts) ([]byte, error) {
	switch {
	case t.tbs != nil:
		t.tbs = nil
		return nil, ErrSpent
	case opts.HashFunc() != crypto.SHA256:
		return nil, &RefusedError{errors.New("another hash than SHA-256")}
	}
	t.tbs = bytes.Clone(tbs)
	return nil, errTaken
}

// take runs encode until it hands its bytes over.
func (g *Guard) take(encode Encoder) ([]byte, error) {
	t := &taker{pub: g.pub}
	err := encode(t)
	switch {
	case len(t.tbs) > 0 && errors.Is(err, errTaken):
		return t.tbs, nil
	case err != nil:
		return nil, err
	}
	return nil, errors.New("guard: the encoder wanted no signature")
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

// Leaf signs the leaf that encode builds, if it is a, and once r has recorded
// it.
func (g *Guard) Leaf(ctx context.Context, a Leaf, r Recorder, encode Encoder) (*x509.Certificate, error) {
	tbs, err := g.take(encode)
	if err != nil {
		return nil, err
	}
	leaf, err := parseTBS(tbs)
	if err != nil {
		return nil, &RefusedError{err}
	}
	if got := Serial(leaf); got != a.Serial {
		return nil, &RefusedError{fmt.Errorf("serial %s was not announced", got)}
	}
	if !equalKeys(leaf.PublicKey, a.PublicKey) {
		return nil, &RefusedError{errors.New("another public key than announced")}
	}
	if err := issuance.Check(leaf, a.Grant, g.bounds()); err != nil {
		return nil, &RefusedError{err}
	}
	if err := r.Record(ctx, leaf); err != nil {
		return nil, err
	}
	sig, err := g.sign(tbs)
	if err != nil {
		return nil, err
	}
	if !g.Deterministic() { // a KMS may answer anything
		return g.verified(tbs, sig)
	}
	return sealed(leaf, sig)
}

// sealed gives leaf, as parseTBS made it, its signature, and saves parsing it
// again.
func sealed(leaf *x509.Certificate, sig []byte) (*x509.Certificate, error) {
	der, err := wrap(leaf.RawTBSCertificate, sig)
	if err != nil {
		return nil, fmt.Errorf("assemble certificate: %w", err)
	}
	leaf.Raw, leaf.Signature = der, sig
	return leaf, nil
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
	// It may be the store's, or of a key that faltered: two signatures over the
	// same bytes, one of them faulty, would give a deterministic ECDSA key away.
	leaf, err = g.verified(tbs, sig)
	return leaf, fresh, err
}

// verified joins tbs and sig to a certificate and verifies it.
func (g *Guard) verified(tbs, sig []byte) (*x509.Certificate, error) {
	leaf, err := Assemble(tbs, sig)
	if err != nil {
		return nil, err
	}
	if err := leaf.CheckSignatureFrom(g.o.Issuer); err != nil {
		return nil, fmt.Errorf("guard: signature: %w", err)
	}
	return leaf, nil
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

// ecdsaWithSHA256 is the one signature algorithm of mayfly's intermediates, as
// an AlgorithmIdentifier in DER (RFC 5758 3.2).
var ecdsaWithSHA256 = []byte{0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02}

// wrap is the outer form of certificates and CRLs (RFC 5280 4.1 and 5.1).
func wrap(tbs, signature []byte) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)+128))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		b.AddBytes(ecdsaWithSHA256)
		b.AddASN1BitString(signature)
	})
	return b.Bytes()
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
