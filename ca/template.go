package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ca/grant"
)

// Lifetimes of CA certificates. Each begins caBackdate before it is made.
const (
	rootYears         = 10
	intermediateYears = 1
	caBackdate        = 5 * time.Minute
)

// newSerial returns a random 128-bit serial number whose first byte is not zero, so
// that it always has 32 hex digits and 16 octets.
func newSerial() (*big.Int, error) {
	var b [grant.SerialBytes]byte
	for b[0] == 0 {
		if _, err := io.ReadFull(rand.Reader, b[:]); err != nil {
			return nil, fmt.Errorf("draw serial number: %w", err)
		}
	}
	return new(big.Int).SetBytes(b[:]), nil
}

// subjectKeyID returns the leftmost 160 bits of the SHA-256 of pub's
// subjectPublicKey (RFC 7093 section 2, method 1).
func subjectKeyID(pub crypto.PublicKey) ([]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("subject key id: %w", err)
	}
	in := cryptobyte.String(spki)
	var info, algorithm, key cryptobyte.String
	var unused uint8 // bits, of the BIT STRING
	if !in.ReadASN1(&info, cbasn1.SEQUENCE) || !info.ReadASN1(&algorithm, cbasn1.SEQUENCE) ||
		!info.ReadASN1(&key, cbasn1.BIT_STRING) || !key.ReadUint8(&unused) || unused != 0 {
		return nil, errors.New("subject key id: malformed public key")
	}
	sum := sha256.Sum256(key)
	return sum[:20], nil
}

// caTemplate returns the fields that root and intermediates share.
func caTemplate(kind string, c Constraints, pub crypto.PublicKey, now time.Time, years int) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	id, err := subjectKeyID(pub)
	if err != nil {
		return nil, err
	}
	now = now.UTC().Truncate(time.Second)
	t := &x509.Certificate{
		SerialNumber: serial,
		// The key's id in the name distinguishes two intermediates, for people and
		// for verifiers that find an issuer by its name.
		Subject:               pkix.Name{CommonName: fmt.Sprintf("mayfly %s %s", kind, hex.EncodeToString(id[:8]))},
		NotBefore:             now.Add(-caBackdate),
		NotAfter:              now.AddDate(years, 0, 0),
		BasicConstraintsValid: true,
		IsCA:                  true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		SubjectKeyId:          id,
	}
	if td := c.TrustDomain.Name(); len(td) <= 64 { // ub-organization-name
		t.Subject.Organization = []string{td}
	}
	return t, nil
}

func rootTemplate(c Constraints, pub crypto.PublicKey, now time.Time) (*x509.Certificate, error) {
	t, err := caTemplate("root", c, pub, now, rootYears)
	if err != nil {
		return nil, err
	}
	t.MaxPathLen = 1
	return t, nil
}

// intermediateTemplate returns the template of an intermediate. It never outlives
// root.
func intermediateTemplate(c Constraints, pub crypto.PublicKey, now time.Time, root *x509.Certificate) (*x509.Certificate, error) {
	t, err := caTemplate("intermediate", c, pub, now, intermediateYears)
	if err != nil {
		return nil, err
	}
	if t.NotAfter.After(root.NotAfter) {
		t.NotAfter = root.NotAfter
	}
	if t.NotBefore.Before(root.NotBefore) {
		t.NotBefore = root.NotBefore
	}
	t.MaxPathLenZero = true
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	c.write(t)
	return t, nil
}
