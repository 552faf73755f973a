package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/ca/internal/guard"
	"github.com/mayfly-ca/mayfly/ca/internal/keys"
)

// intermediate is an intermediate CA whose key this authority holds.
type intermediate struct {
	cert  *x509.Certificate
	aki   string // lower-case hex of the certificate's subject key id
	crl   string // URL of its CRL
	key   *keys.Key
	guard *guard.Guard
}

func openIntermediate(ctx context.Context, cert *x509.Certificate, keyRef string, td spiffeid.TrustDomain, crlBase string) (*intermediate, error) {
	key, err := keys.Open(ctx, keyRef)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	i := &intermediate{cert: cert, aki: hex.EncodeToString(cert.SubjectKeyId), key: key}
	i.crl = crlBase + i.aki
	i.guard, err = guard.New(guard.Options{Issuer: cert, Key: key.Signer, TrustDomain: td, CRL: i.crl})
	if err != nil {
		return nil, errors.Join(err, key.Close())
	}
	return i, nil
}

// checkRoot refuses a root that Init could not have made.
func checkRoot(root *x509.Certificate) error {
	switch {
	case !root.BasicConstraintsValid || !root.IsCA || root.MaxPathLen != 1:
		return errors.New("not a CA of path length 1")
	case root.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != x509.KeyUsageCertSign|x509.KeyUsageCRLSign:
		return errors.New("its key usage lacks certSign or crlSign")
	case !bytes.Equal(root.RawIssuer, root.RawSubject):
		return errors.New("not self-issued")
	case len(root.SubjectKeyId) == 0:
		return errors.New("no subject key id")
	}
	return root.CheckSignatureFrom(root)
}

// checkIntermediate refuses an intermediate that neither Init nor rotate sign could
// have made.
func checkIntermediate(cert, root *x509.Certificate) (Constraints, error) {
	switch {
	case !cert.BasicConstraintsValid || !cert.IsCA || cert.MaxPathLen != 0 || !cert.MaxPathLenZero:
		return Constraints{}, errors.New("not a CA of path length 0")
	case cert.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign:
		return Constraints{}, errors.New("its key usage is not certSign and crlSign")
	case len(cert.SubjectKeyId) == 0:
		return Constraints{}, errors.New("no subject key id")
	case !bytes.Equal(cert.RawIssuer, root.RawSubject):
		return Constraints{}, errors.New("issued by another root")
	case cert.NotAfter.After(root.NotAfter):
		return Constraints{}, errors.New("it outlives the root")
	}
	if err := cert.CheckSignatureFrom(root); err != nil {
		return Constraints{}, fmt.Errorf("issued by another root: %w", err)
	}
	return constraintsOf(cert)
}

// revokedBy reports whether list contains cert.
func revokedBy(list *x509.RevocationList, cert *x509.Certificate) bool {
	return lists(list, cert.SerialNumber)
}

func lists(list *x509.RevocationList, serial *big.Int) bool {
	for _, e := range list.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(serial) == 0 {
			return true
		}
	}
	return false
}

// parseCertificate reads exactly one certificate.
func parseCertificate(data []byte) (*x509.Certificate, error) {
	der, err := onePEM(data, blockCertificate)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// PEM block types (RFC 7468).
const (
	blockCertificate = "CERTIFICATE"
	blockCRL         = "X509 CRL"
	blockRequest     = "CERTIFICATE REQUEST"
)

func onePEM(data []byte, kind string) ([]byte, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != kind {
		return nil, fmt.Errorf("no PEM block %q", kind)
	}
	if next, _ := pem.Decode(rest); next != nil {
		return nil, fmt.Errorf("more than one PEM block %q", kind)
	}
	return block.Bytes, nil
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
