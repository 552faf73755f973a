package ca

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/mayfly-ca/mayfly/ca/grant"
)

// CSRError refuses a certificate request for what it is. Its text may be shown.
type CSRError struct{ Err error }

func (e *CSRError) Error() string { return "certificate request: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *CSRError) Unwrap() error { return e.Err }

// checkCSR wants a key that a leaf may hold, which is none of the CA's own, and
// proof that the caller has it. What else a request asks for is not looked at.
// The key is judged before the signature is verified, so that no strange key
// costs time.
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
