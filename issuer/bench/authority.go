package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority is the CA of another server, on disk: P-256 throughout, as mayfly's.
type authority struct {
	root, intermediate, key string // paths, PEM
	chain                   string // intermediate, root
}

// codeSigning is the key usage that Fulcio requires of its intermediate.
var codeSigning = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}

func newAuthority(dir string, usages []x509.ExtKeyUsage) (*authority, error) {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := func(n int64, name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(n), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
	}
	top, middle := template(1, "bench root"), template(2, "bench intermediate")
	middle.ExtKeyUsage = usages
	rootDER, err := x509.CreateCertificate(rand.Reader, top, top, &rootKey.PublicKey, rootKey)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, middle, top, &key.PublicKey, rootKey)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	a := &authority{
		root: filepath.Join(dir, "root.crt"), intermediate: filepath.Join(dir, "intermediate.crt"),
		key: filepath.Join(dir, "intermediate.key"), chain: filepath.Join(dir, "chain.crt"),
	}
	rootPEM, interPEM := block("CERTIFICATE", rootDER), block("CERTIFICATE", der)
	var errs []error
	for path, text := range map[string][]byte{
		a.root: rootPEM, a.intermediate: interPEM, a.key: block("PRIVATE KEY", pkcs8), a.chain: append(interPEM[:len(interPEM):len(interPEM)], rootPEM...),
	} {
		errs = append(errs, os.WriteFile(path, text, 0o600))
	}
	return a, errors.Join(errs...)
}

// port returns the port of an address.
func port(addr string) string {
	_, p, err := net.SplitHostPort(addr)
	if err != nil {
		panic(err) // freeAddress made addr
	}
	return p
}
