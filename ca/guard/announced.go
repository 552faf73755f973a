package guard

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/ca/issuance"
)

// Server announces the certificate of the issuer's own HTTPS listener. It has
// no SPIFFE ID and no grant, so no engine and no client takes it for a peer.
type Server struct {
	Serial      string
	DNSNames    []string
	IPAddresses []net.IP // loopback only
	PublicKey   crypto.PublicKey
}

// Server signs the issuer's own certificate, which encode builds, if it is a,
// and once record has returned.
func (g *Guard) Server(a Server, record func(*x509.Certificate) error, encode Encoder) (*x509.Certificate, error) {
	tbs, err := g.take(encode)
	if err != nil {
		return nil, err
	}
	leaf, err := parseTBS(tbs)
	if err != nil {
		return nil, &RefusedError{err}
	}
	if err := g.checkServer(leaf, a); err != nil {
		return nil, &RefusedError{err}
	}
	if err := record(leaf); err != nil {
		return nil, err
	}
	sig, err := g.sign(tbs)
	if err != nil {
		return nil, err
	}
	return g.verified(tbs, sig)
}

// ServerTTL is the lifetime of the issuer's own certificate.
const ServerTTL = 24 * time.Hour

func (g *Guard) checkServer(leaf *x509.Certificate, a Server) error {
	b := g.bounds()
	if err := issuance.CheckEndEntity(leaf, g.o.Issuer, x509.ExtKeyUsageServerAuth); err != nil {
		return err
	}
	switch {
	case Serial(leaf) != a.Serial:
		return fmt.Errorf("serial %s was not announced", Serial(leaf))
	case !equalKeys(leaf.PublicKey, a.PublicKey):
		return errors.New("another public key than announced")
	case len(leaf.URIs) > 0 || hasExtension(leaf, identity.OIDGrant):
		return errors.New("the issuer's certificate names a peer")
	case !slices.Equal(leaf.DNSNames, a.DNSNames) || len(leaf.IPAddresses) != len(a.IPAddresses):
		return errors.New("other names than announced")
	case leaf.NotBefore.After(b.Now) || leaf.NotBefore.Before(b.Now.Add(-issuance.MaxAge)):
		return errors.New("NotBefore is not now")
	case leaf.NotAfter.After(leaf.NotBefore.Add(issuance.Backdate + ServerTTL)):
		return errors.New("it lives too long")
	}
	for i, ip := range leaf.IPAddresses {
		if !ip.IsLoopback() || !ip.Equal(a.IPAddresses[i]) {
			return errors.New("IP names are loopback and announced")
		}
	}
	return nil
}

func hasExtension(c *x509.Certificate, oid asn1.ObjectIdentifier) bool {
	for _, e := range c.Extensions {
		if e.Id.Equal(oid) {
			return true
		}
	}
	return false
}

// CRLLifetime is nextUpdate - thisUpdate of every CRL that a Guard signs.
const CRLLifetime = 10 * time.Minute

// CRL announces a certificate revocation list.
type CRL struct {
	Number     int64
	ThisUpdate time.Time // whole seconds
	// Floor is in whole seconds; see FloorExtension.
	Floor   time.Time
	Entries []x509.RevocationListEntry
}

// FloorExtension is how the list carries the floor, identity.OIDFloor.
func (a CRL) FloorExtension() (pkix.Extension, error) { return identity.FloorExtension(a.Floor) }

// CRL signs the list that encode builds, if it is a, and returns its DER.
func (g *Guard) CRL(a CRL, encode Encoder) ([]byte, error) {
	tbs, err := g.take(encode)
	if err != nil {
		return nil, err
	}
	if err := g.checkCRL(tbs, a); err != nil {
		return nil, &RefusedError{err}
	}
	sig, err := g.sign(tbs)
	if err != nil {
		return nil, err
	}
	return wrap(tbs, sig)
}

func (g *Guard) checkCRL(tbs []byte, a CRL) error {
	der, err := wrap(tbs, nil)
	if err != nil {
		return err
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return fmt.Errorf("not a CRL: %w", err)
	}
	now := time.Now()
	switch {
	case !bytes.Equal(list.RawIssuer, g.o.Issuer.RawSubject) || !bytes.Equal(list.AuthorityKeyId, g.o.Issuer.SubjectKeyId):
		return errors.New("another issuer")
	case list.Number == nil || list.Number.Cmp(big.NewInt(a.Number)) != 0:
		return errors.New("another CRL number than announced")
	case !list.ThisUpdate.Equal(a.ThisUpdate) || list.ThisUpdate.After(now.Add(issuance.MaxAge)) || list.ThisUpdate.Before(now.Add(-issuance.MaxAge)):
		return errors.New("thisUpdate is not now")
	case list.NextUpdate.Sub(list.ThisUpdate) != CRLLifetime:
		return errors.New("another lifetime of the CRL")
	case len(list.Extensions) != 3:
		return errors.New("other CRL extensions than three")
	case len(list.RevokedCertificateEntries) != len(a.Entries):
		return errors.New("other entries than announced")
	}
	for i, e := range list.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(a.Entries[i].SerialNumber) != 0 || len(e.Extensions) > 0 {
			return errors.New("other entries than announced")
		}
	}
	floor, err := identity.Floor(list)
	if err != nil {
		return err
	}
	if !floor.Equal(a.Floor) {
		return errors.New("another floor than announced")
	}
	return nil
}
