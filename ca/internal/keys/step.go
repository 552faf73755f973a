// Package keys opens CA keys and signs with them. It is the only importer of
// smallstep's code: softcas makes leaves and CRLs, x509util makes the CA
// certificates, and the KMS and PEM packages hold the keys. Below them, crypto/x509
// verifies each signature before it returns. smallstep's Authority, with its
// provisioners, store and options, must not enter this package.
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

// Leaf signs template, for template.PublicKey, as a certificate of issuer, with
// signer. It verifies the signature. NotBefore, NotAfter, SerialNumber and
// SubjectKeyId must be set. softcas writes the issuer's name into template.
func Leaf(ctx context.Context, template, issuer *x509.Certificate, signer crypto.MessageSigner) (*x509.Certificate, error) {
	if template.NotBefore.IsZero() || template.NotAfter.IsZero() || template.SerialNumber == nil || len(template.SubjectKeyId) == 0 {
		return nil, errors.New("sign leaf: an unfinished template")
	}
	cas, err := newCAS(ctx, issuer, signer)
	if err != nil {
		return nil, fmt.Errorf("sign leaf: %w", err)
	}
	// Lifetime must be set but is not used: the template has its times.
	resp, err := cas.CreateCertificate(&apiv1.CreateCertificateRequest{Template: template, Lifetime: time.Second})
	if err != nil {
		return nil, fmt.Errorf("sign leaf: %w", err)
	}
	return resp.Certificate, nil
}

// CRL signs list with issuer's signer, verifies the signature and returns the DER.
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

// CA signs template, the certificate of a CA for pub, with parent's signer. A root
// is its own parent.
func CA(template, parent *x509.Certificate, pub crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	cert, err := x509util.CreateCertificate(template, parent, pub, signer)
	if err != nil {
		return nil, fmt.Errorf("sign CA certificate: %w", err)
	}
	return cert, nil
}
