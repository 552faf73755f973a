// Package step is the only importer of smallstep's code: its softcas makes leaves
// and CRLs, its x509util makes the CA certificates, its KMS and PEM packages hold
// the keys. crypto/x509 below them verifies each signature before it returns it.
// smallstep's Authority, with its provisioners, its store and its options, stays
// out; so does its name.
package keys

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/smallstep/certificates/cas/apiv1"
	"github.com/smallstep/certificates/cas/softcas"
	"go.step.sm/crypto/x509util"
)

// Leaf has signer sign template, for template.PublicKey, as a certificate of
// issuer, and verifies the signature. NotBefore, NotAfter, SerialNumber and
// SubjectKeyId must be set. softcas writes the issuer's name into template.
func Leaf(ctx context.Context, template, issuer *x509.Certificate, signer crypto.MessageSigner) (*x509.Certificate, error) {
	if template.NotBefore.IsZero() || template.NotAfter.IsZero() || template.SerialNumber == nil || len(template.SubjectKeyId) == 0 {
		return nil, errors.New("sign leaf: an unfinished template")
	}
	cas, err := newCAS(ctx, issuer, signer)
	if err != nil {
		return nil, fmt.Errorf("sign leaf: %w", err)
	}
	// Lifetime is not used, since the template has its times, but must be set.
	resp, err := cas.CreateCertificate(&apiv1.CreateCertificateRequest{Template: template, Lifetime: time.Second})
	if err != nil {
		return nil, fmt.Errorf("sign leaf: %w", err)
	}
	return resp.Certificate, nil
}

// CRL has issuer's signer sign list, verifies the signature and returns the DER.
func CRL(ctx context.Context, list *x509.RevocationList, issuer *x509.Certificate, signer crypto.Signer) ([]byte, error) {
	cas, err := newCAS(ctx, issuer, signer)
	if err != nil {
		return nil, fmt.Errorf("sign CRL: %w", err)
	}
	resp, err := cas.CreateCRL(&apiv1.CreateCRLRequest{RevocationList: list})
	if err != nil {
		return nil, fmt.Errorf("sign CRL: %w", err)
	}
	return resp.CRL, nil
}

func newCAS(ctx context.Context, issuer *x509.Certificate, signer crypto.Signer) (*softcas.SoftCAS, error) {
	return softcas.New(ctx, apiv1.Options{CertificateChain: []*x509.Certificate{issuer}, Signer: signer})
}

// CA has parent's signer sign template, a CA's, for pub. A root is its own
// parent.
func CA(template, parent *x509.Certificate, pub crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	cert, err := x509util.CreateCertificate(template, parent, pub, signer)
	if err != nil {
		return nil, fmt.Errorf("sign CA certificate: %w", err)
	}
	return cert, nil
}
