package guard

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/ca/grant"
	"github.com/mayfly-ca/mayfly/ca/identity"
)

// Server describes the certificate of the issuer's own HTTPS listener. It has no
// SPIFFE ID and no grant, so engines and clients do not accept it as a peer.
type Server struct {
	Serial      string
	DNSNames    []string
	IPAddresses []net.IP // loopback only
	PublicKey   crypto.PublicKey
}

// ServerSigner returns the signer of the issuer's own certificate. It signs after
// record returns nil.
func (g *Guard) ServerSigner(a Server, record func(*x509.Certificate) error) *Signer {
	return g.certificateSigner(func(cert *x509.Certificate) error { return g.checkServer(cert, a) }, record)
}

// ServerTTL is the lifetime of the issuer's own certificate.
const ServerTTL = 24 * time.Hour

func (g *Guard) checkServer(cert *x509.Certificate, a Server) error {
	if err := checkSubject(cert, a.Serial, a.PublicKey); err != nil {
		return err
	}
	if err := grant.CheckEndEntity(cert, g.o.Issuer, x509.ExtKeyUsageServerAuth); err != nil {
		return err
	}
	if err := grant.CheckNames(cert, a.DNSNames, a.IPAddresses, ""); err != nil {
		return err
	}
	now := time.Now()
	switch {
	case hasExtension(cert, identity.OIDGrant):
		return errors.New("the issuer's certificate carries a grant")
	case slices.ContainsFunc(a.IPAddresses, func(ip net.IP) bool { return !ip.IsLoopback() }):
		return errors.New("an IP address that is not loopback")
	case cert.NotBefore.After(now) || cert.NotBefore.Before(now.Add(-grant.MaxAge)):
		return errors.New("NotBefore is not now")
	case cert.NotAfter.After(cert.NotBefore.Add(grant.Backdate + ServerTTL)):
		return errors.New("it lives too long")
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

// CRL describes a certificate revocation list.
type CRL struct {
	Number     int64
	ThisUpdate time.Time // whole seconds
	// Floor is in whole seconds; see FloorExtension.
	Floor   time.Time
	Entries []x509.RevocationListEntry
}

// FloorExtension returns the extension that carries the floor, identity.OIDFloor.
func (a CRL) FloorExtension() (pkix.Extension, error) { return identity.FloorExtension(a.Floor) }

// CRLSigner returns the signer of one list.
func (g *Guard) CRLSigner(a CRL) *Signer {
	return &Signer{guard: g, check: func(tbs []byte) ([]byte, error) {
		list, err := parseTBSList(tbs)
		if err == nil {
			err = g.checkCRL(list, a)
		}
		if err != nil {
			return nil, &RefusedError{err}
		}
		return list.RawTBSRevocationList, nil
	}}
}

// parseTBSList reads tbs as a CRL without a signature.
func parseTBSList(tbs []byte) (*x509.RevocationList, error) {
	der, err := wrap(tbs, nil)
	if err != nil {
		return nil, err
	}
	return x509.ParseRevocationList(der)
}

func (g *Guard) checkCRL(list *x509.RevocationList, a CRL) error {
	now := time.Now()
	switch {
	case !bytes.Equal(list.RawIssuer, g.o.Issuer.RawSubject) || !bytes.Equal(list.AuthorityKeyId, g.o.Issuer.SubjectKeyId):
		return errors.New("another issuer")
	case list.Number == nil || list.Number.Cmp(big.NewInt(a.Number)) != 0:
		return errors.New("another CRL number")
	case !list.ThisUpdate.Equal(a.ThisUpdate) || list.ThisUpdate.After(now.Add(grant.MaxAge)) || list.ThisUpdate.Before(now.Add(-grant.MaxAge)):
		return errors.New("thisUpdate is not now")
	case list.NextUpdate.Sub(list.ThisUpdate) != CRLLifetime:
		return errors.New("another lifetime of the CRL")
	case len(list.Extensions) != 3:
		return errors.New("other CRL extensions than three")
	case len(list.RevokedCertificateEntries) != len(a.Entries):
		return errors.New("other entries")
	}
	for i, e := range list.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(a.Entries[i].SerialNumber) != 0 || !e.RevocationTime.Equal(a.Entries[i].RevocationTime) || len(e.Extensions) > 0 {
			return errors.New("other entries")
		}
	}
	floor, err := identity.Floor(list)
	if err != nil {
		return err
	}
	if !floor.Equal(a.Floor) {
		return errors.New("another floor")
	}
	return nil
}
