package ca

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/mayfly-ca/mayfly/ca/grant"
)

// CSRError refuses a certificate request because of its content. Its text may be
// shown to the requester.
type CSRError struct{ Err error }

func (e *CSRError) Error() string { return "certificate request: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *CSRError) Unwrap() error { return e.Err }

// checkCSR requires a key that a leaf may hold and that is none of the CA's own,
// and proof that the caller has it. It ignores everything else in the request. It
// checks the key before it verifies the signature, so that an odd key costs no
// time.
func (a *Authority) checkCSR(csr *x509.CertificateRequest) error {
	if csr == nil {
		return &CSRError{errors.New("none")}
	}
	if err := grant.CheckKey(csr.PublicKey); err != nil {
		return &CSRError{err}
	}
	if a.isOwnKey(csr.PublicKey) {
		return &CSRError{errors.New("the key is an authority's")}
	}
	if err := csr.CheckSignature(); err != nil {
		return &CSRError{fmt.Errorf("proof of possession: %w", err)}
	}
	return nil
}

func (a *Authority) isOwnKey(pub crypto.PublicKey) bool {
	k, ok := pub.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || k.Equal(a.root.PublicKey) {
		return true
	}
	for _, l := range a.issuers {
		if k.Equal(l.cert.PublicKey) {
			return true
		}
	}
	return false
}
