package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/internal/keys"
)

// Names of the files of a rotation in the issuer's folder.
const (
	fileNextKey    = "next.key"
	fileNextCSR    = "next.csr"
	previousFolder = "previous"
)

// RotatedFiles returns the paths of the files in the issuer's folder dir that
// InstallRotation replaces, and of the root's certificate there.
func RotatedFiles(dir string) (root, rootCRL, intermediate, key string) {
	in := func(name string) string { return filepath.Join(dir, name) }
	return in(fileRoot), in(fileRootCRL), in(fileIntermediate), in(fileKey)
}

// RotationRequest names what RequestRotation wrote.
type RotationRequest struct {
	Key     string // path; empty if a KMS or the environment holds the key
	Request string // path of the CSR, for the root's machine
}

// RequestRotation begins a rotation in the issuer's folder dir. It makes the next
// intermediate's key and a request for its certificate. keyRef names an existing
// key (see Config.Key); if it is empty, RequestRotation makes a key in dir.
func RequestRotation(ctx context.Context, dir, keyRef string) (*RotationRequest, error) {
	r := &RotationRequest{Request: filepath.Join(dir, fileNextCSR)}
	var signer crypto.Signer
	if keyRef != "" {
		key, err := keys.Open(ctx, keyRef)
		if err != nil {
			return nil, fmt.Errorf("request rotation: %w", err)
		}
		defer key.Close()
		signer = key.Signer
	} else {
		r.Key = filepath.Join(dir, fileNextKey)
		key, err := keys.Generate()
		if err != nil {
			return nil, fmt.Errorf("request rotation: %w", err)
		}
		data, err := keys.Marshal(key, nil)
		if err != nil {
			return nil, fmt.Errorf("request rotation: %w", err)
		}
		if err := writeNew(r.Key, data, 0o600); err != nil {
			return nil, fmt.Errorf("request rotation: %w", err)
		}
		signer = key
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "mayfly intermediate"}}, signer)
	if err != nil {
		return nil, fmt.Errorf("request rotation: %w", err)
	}
	if err := replaceFile(r.Request, encodePEM(blockRequest, csr), 0o644); err != nil {
		return nil, fmt.Errorf("request rotation: %w", err)
	}
	return r, nil
}

// RotationOptions describe what the root signs.
type RotationOptions struct {
	// RootDir is the offline folder that Init wrote. SignRotation updates its
	// root.crl and intermediate.crt.
	RootDir string
	// RootKey is the path of the root's encrypted key. Empty means root.key in
	// RootDir.
	RootKey  string
	Password []byte
	// Request is the CSR of the next intermediate, in PEM. If it is empty, only the
	// root's CRL is signed.
	Request []byte
	// EngineDNS and IssuerURL replace the name constraints. Without EngineDNS, the
	// last intermediate's constraints stay.
	EngineDNS []string
	IssuerURL string
	// Compromised lists intermediates that must not be trusted any more: each the
	// path of a certificate, or a serial number of 32 hex digits.
	Compromised []string
}

// Rotation is the result for the issuer, both parts in PEM.
type Rotation struct {
	Intermediate []byte // nil if only the CRL was signed
	RootCRL      []byte
}

// SignRotation signs the next intermediate and the root's CRL, offline. The CRL's
// nextUpdate is that intermediate's NotAfter. Its number is higher than the last
// CRL's, and it keeps every entry of that CRL.
func SignRotation(ctx context.Context, o RotationOptions) (*Rotation, error) {
	r, err := signRotation(ctx, o, time.Now())
	if err != nil {
		return nil, fmt.Errorf("sign rotation: %w", err)
	}
	return r, nil
}

func signRotation(ctx context.Context, o RotationOptions, now time.Time) (*Rotation, error) {
	root, err := readRoot(o)
	if err != nil {
		return nil, err
	}
	compromised, err := readCompromised(o.Compromised)
	if err != nil {
		return nil, err
	}
	last, r := root.intermediate, &Rotation{}
	if len(o.Request) > 0 {
		if last, err = root.signNext(o, now); err != nil {
			return nil, err
		}
		r.Intermediate = encodePEM(blockCertificate, last.Raw)
	}
	r.RootCRL, err = signRootCRL(ctx, root.cert, root.key, root.crl, compromised, now, last.NotAfter)
	if err != nil {
		return nil, err
	}
	// Write the CRL first: its number must never be lost.
	if err := replaceFile(filepath.Join(o.RootDir, fileRootCRL), r.RootCRL, 0o644); err != nil {
		return nil, err
	}
	if r.Intermediate == nil {
		return r, nil
	}
	old := filepath.Join(o.RootDir, hex.EncodeToString(root.intermediate.SubjectKeyId)+".crt")
	if err := replaceFile(old, encodePEM(blockCertificate, root.intermediate.Raw), 0o644); err != nil {
		return nil, err
	}
	return r, replaceFile(filepath.Join(o.RootDir, fileIntermediate), r.Intermediate, 0o644)
}

// offlineRoot holds the contents of the root's folder.
type offlineRoot struct {
	cert         *x509.Certificate
	key          crypto.Signer
	crl          *x509.RevocationList
	intermediate *x509.Certificate // the last one signed
	constraints  Constraints
}

func readRoot(o RotationOptions) (*offlineRoot, error) {
	r := &offlineRoot{}
	data, err := os.ReadFile(filepath.Join(o.RootDir, fileRoot))
	if err != nil {
		return nil, err
	}
	if r.cert, err = parseCertificate(data); err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	if err := checkRoot(r.cert); err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	if data, err = os.ReadFile(filepath.Join(o.RootDir, fileRootCRL)); err != nil {
		return nil, err
	}
	if r.crl, err = parseRootCRL(data, r.cert); err != nil {
		return nil, err
	}
	if data, err = os.ReadFile(filepath.Join(o.RootDir, fileIntermediate)); err != nil {
		return nil, err
	}
	if r.intermediate, err = parseCertificate(data); err != nil {
		return nil, fmt.Errorf("intermediate: %w", err)
	}
	if r.constraints, err = checkIntermediate(r.intermediate, r.cert); err != nil {
		return nil, fmt.Errorf("intermediate: %w", err)
	}
	path := o.RootKey
	if path == "" {
		path = filepath.Join(o.RootDir, fileRootKey)
	}
	if data, err = os.ReadFile(path); err != nil {
		return nil, err
	}
	if r.key, err = keys.Parse(data, o.Password); err != nil {
		return nil, fmt.Errorf("root key: %w", err)
	}
	if !equalKeys(r.cert.PublicKey, r.key.Public()) {
		return nil, errors.New("root key: not the root certificate's")
	}
	return r, nil
}

// signNext signs the certificate of the next intermediate.
func (r *offlineRoot) signNext(o RotationOptions, now time.Time) (*x509.Certificate, error) {
	der, err := onePEM(o.Request, blockRequest)
	if err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	if err := keys.CheckPublic(csr.PublicKey); err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	if equalKeys(csr.PublicKey, r.cert.PublicKey) || equalKeys(csr.PublicKey, r.intermediate.PublicKey) {
		return nil, errors.New("request: its key is the one in use: make another with mayfly-issuer rotate request")
	}
	c := r.constraints
	if len(o.EngineDNS) > 0 {
		if c, err = NewConstraints(c.TrustDomain.Name(), o.EngineDNS, o.IssuerURL); err != nil {
			return nil, err
		}
	} else if o.IssuerURL != "" {
		return nil, errors.New("an issuer URL replaces the name constraints only together with the engines' DNS names")
	}
	template, err := intermediateTemplate(c, csr.PublicKey, now, r.cert)
	if err != nil {
		return nil, err
	}
	cert, err := keys.CA(template, r.cert, csr.PublicKey, r.key)
	if err != nil {
		return nil, err
	}
	_, err = checkIntermediate(cert, r.cert)
	return cert, err
}

// readCompromised reads paths of certificates and serial numbers.
func readCompromised(names []string) ([]*big.Int, error) {
	serials := make([]*big.Int, 0, len(names))
	for _, n := range names {
		if len(n) == 32 && strings.Trim(n, "0123456789abcdefABCDEF") == "" {
			serial, _ := new(big.Int).SetString(n, 16)
			serials = append(serials, serial)
			continue
		}
		data, err := os.ReadFile(n)
		if err != nil {
			return nil, fmt.Errorf("compromised: neither a serial of 32 hex digits nor a certificate: %w", err)
		}
		cert, err := parseCertificate(data)
		if err != nil {
			return nil, fmt.Errorf("compromised: %s: %w", n, err)
		}
		serials = append(serials, cert.SerialNumber)
	}
	return serials, nil
}

func equalKeys(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// replaceFile replaces a file atomically and durably.
func replaceFile(path string, data []byte, mode os.FileMode) error {
	unfinished := path + ".new"
	if err := os.Remove(unfinished); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := writeNew(unfinished, data, mode); err != nil {
		return err
	}
	if err := os.Rename(unfinished, path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// syncFolder makes the names in dir durable.
func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
