package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// floor is the cryptography that every issuance needs: verify an RS256 token and the
// signature of a P-256 certificate request, and sign a certificate with P-256.
type floor struct {
	token    *rsa.PublicKey
	digest   [32]byte
	tokenSig []byte
	csr      *x509.CertificateRequest
	key      *ecdsa.PrivateKey
}

func newFloor() (*floor, error) {
	issuer, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	f := &floor{token: &issuer.PublicKey, digest: sha256.Sum256([]byte("header.payload"))}
	if f.tokenSig, err = rsa.SignPKCS1v15(rand.Reader, issuer, crypto.SHA256, f.digest[:]); err != nil {
		return nil, err
	}
	if f.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, f.key)
	if err != nil {
		return nil, err
	}
	f.csr, err = x509.ParseCertificateRequest(der)
	return f, err
}

// once does the cryptography of one issuance.
func (f *floor) once() error {
	if err := rsa.VerifyPKCS1v15(f.token, crypto.SHA256, f.digest[:], f.tokenSig); err != nil {
		return err
	}
	if err := f.csr.CheckSignature(); err != nil {
		return err
	}
	_, err := ecdsa.SignASN1(rand.Reader, f.key, f.digest[:])
	return err
}

// measure returns the CPU time of one floor while all processors are busy, as they are
// when servers are under load.
func (f *floor) measure(d time.Duration) (time.Duration, error) {
	before, err := ownCPU()
	if err != nil {
		return 0, err
	}
	var n atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, runtime.GOMAXPROCS(0))
	until := time.Now().Add(d)
	for i := range errs {
		wg.Go(func() {
			for time.Now().Before(until) {
				if errs[i] = f.once(); errs[i] != nil {
					return
				}
				n.Add(1)
			}
		})
	}
	wg.Wait()
	after, err := ownCPU()
	if err := errors.Join(append(errs, err)...); err != nil {
		return 0, err
	}
	return (after - before) / time.Duration(max(1, n.Load())), nil
}
