package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/internal/keys"
	"github.com/mayfly-ca/mayfly/ca/store"
)

// Installed describes what InstallRotation did in the issuer's folder.
type Installed struct {
	// PreviousCertificate and PreviousKey are the new paths of the previous
	// intermediate. Both belong under ca.previous until a day after the end of its
	// last leaf. PreviousKey is empty if its key is not in the folder.
	PreviousCertificate, PreviousKey string
	// NotAfter is the end of the intermediate that now issues.
	NotAfter time.Time
}

// InstallRotation installs the result of SignRotation in the issuer's folder dir.
// keyRef names the new intermediate's key (see Config.Key); if it is empty, the key
// is the one that RequestRotation made in dir. An interrupted call can be repeated.
// After it, a running issuer must restart or reload; Publish then signs CRLs with a
// new number.
// new CRL number.
func InstallRotation(ctx context.Context, dir string, r Rotation, keyRef string) (*Installed, error) {
	i, err := installRotation(ctx, dir, r, keyRef)
	if err != nil {
		return nil, fmt.Errorf("install rotation: %w", err)
	}
	return i, nil
}

func installRotation(ctx context.Context, dir string, r Rotation, keyRef string) (*Installed, error) {
	f, err := readFolder(dir)
	if err != nil {
		return nil, err
	}
	list, err := parseRootCRL(r.RootCRL, f.root)
	if err != nil {
		return nil, err
	}
	if list.Number.Cmp(f.crl.Number) < 0 {
		return nil, fmt.Errorf("root CRL: number %v is before the installed %v", list.Number, f.crl.Number)
	}
	installed := &Installed{NotAfter: f.intermediate.NotAfter}
	if r.Intermediate != nil {
		if installed, err = f.install(ctx, r.Intermediate, list, keyRef); err != nil {
			return nil, err
		}
	}
	return installed, replaceFile(filepath.Join(dir, fileRootCRL), r.RootCRL, 0o644)
}

// issuerFiles holds the contents of the issuer's folder.
type issuerFiles struct {
	dir          string
	root         *x509.Certificate
	crl          *x509.RevocationList
	intermediate *x509.Certificate
	constraints  Constraints
}

func readFolder(dir string) (*issuerFiles, error) {
	f := &issuerFiles{dir: dir}
	data, err := os.ReadFile(filepath.Join(dir, fileRoot))
	if err != nil {
		return nil, err
	}
	if f.root, err = parseCertificate(data); err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	if data, err = os.ReadFile(filepath.Join(dir, fileRootCRL)); err != nil {
		return nil, err
	}
	if f.crl, err = parseRootCRL(data, f.root); err != nil {
		return nil, err
	}
	if data, err = os.ReadFile(filepath.Join(dir, fileIntermediate)); err != nil {
		return nil, err
	}
	if f.intermediate, err = parseCertificate(data); err != nil {
		return nil, fmt.Errorf("intermediate: %w", err)
	}
	f.constraints, err = checkIntermediate(f.intermediate, f.root)
	return f, err
}

// install replaces the issuing intermediate and keeps the previous one.
func (f *issuerFiles) install(ctx context.Context, certPEM []byte, list *x509.RevocationList, keyRef string) (*Installed, error) {
	next, err := parseCertificate(certPEM)
	if err != nil {
		return nil, fmt.Errorf("intermediate: %w", err)
	}
	c, err := checkIntermediate(next, f.root)
	switch {
	case err != nil:
		return nil, fmt.Errorf("intermediate: %w", err)
	case c.TrustDomain != f.constraints.TrustDomain:
		return nil, fmt.Errorf("intermediate: it is of trust domain %s", c.TrustDomain.Name())
	case revokedBy(list, next):
		return nil, errors.New("intermediate: the root's CRL names it as compromised")
	}
	keyFile, nextKey := filepath.Join(f.dir, fileKey), filepath.Join(f.dir, fileNextKey)
	ref := keyRef
	if ref == "" {
		ref = nextKey
		if holdsKey(ctx, keyFile, next) {
			ref = keyFile // an earlier run moved the key already
		}
	}
	if !holdsKey(ctx, ref, next) {
		return nil, fmt.Errorf("%s does not hold the new intermediate's key", ref)
	}
	installed := &Installed{NotAfter: next.NotAfter}
	if !bytes.Equal(next.Raw, f.intermediate.Raw) {
		if err := f.keep(ctx, installed, keyFile); err != nil {
			return nil, err
		}
	}
	if ref == nextKey {
		if err := os.Rename(nextKey, keyFile); err != nil {
			return nil, err
		}
	}
	if err := replaceFile(filepath.Join(f.dir, fileIntermediate), certPEM, 0o644); err != nil {
		return nil, err
	}
	if err := os.Remove(filepath.Join(f.dir, fileNextCSR)); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	return installed, nil
}

// keep copies the previous intermediate to the folder of previous intermediates,
// with its key if that is a file of the issuer's folder.
func (f *issuerFiles) keep(ctx context.Context, installed *Installed, keyFile string) error {
	dir := filepath.Join(f.dir, previousFolder)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	base := filepath.Join(dir, hex.EncodeToString(f.intermediate.SubjectKeyId))
	installed.PreviousCertificate = base + ".crt"
	if err := replaceFile(installed.PreviousCertificate, encodePEM(blockCertificate, f.intermediate.Raw), 0o644); err != nil {
		return err
	}
	if holdsKey(ctx, keyFile, f.intermediate) {
		data, err := os.ReadFile(keyFile)
		if err != nil {
			return err
		}
		if err := replaceFile(base+".key", data, 0o600); err != nil {
			return err
		}
	}
	if _, err := os.Stat(base + ".key"); err == nil {
		installed.PreviousKey = base + ".key"
	}
	return nil
}

// holdsKey reports whether ref names cert's key.
func holdsKey(ctx context.Context, ref string, cert *x509.Certificate) bool {
	key, err := keys.Open(ctx, ref)
	if err != nil {
		return false
	}
	defer key.Close()
	return equalKeys(cert.PublicKey, key.Public())
}

// LoadPrevious reads the previous intermediates that InstallRotation kept in the
// issuer's folder dir, in the order of their names. It is no error if there are
// none.
func LoadPrevious(dir string) ([]Previous, error) {
	paths, err := filepath.Glob(filepath.Join(dir, previousFolder, "*.crt"))
	if err != nil {
		return nil, fmt.Errorf("load previous intermediates: %w", err)
	}
	slices.Sort(paths)
	previous := make([]Previous, 0, len(paths))
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			return nil, fmt.Errorf("load previous intermediates: %w", err)
		}
		previous = append(previous, Previous{Certificate: data, Key: strings.TrimSuffix(p, ".crt") + ".key"})
	}
	return previous, nil
}

// Publish signs and commits a new set of CRLs, whatever the age of the last set,
// and records a rotation event. It is the last step of rotate install.
func (a *Authority) Publish(ctx context.Context, by string) (*CRLs, error) {
	err := a.store.Append(ctx, store.Event{
		Time: time.Now().UTC(), Type: store.EventRotation, By: by, Reason: "intermediate or root CRL installed",
		Detail: map[string]string{"authority_key_id": a.current.aki, "root_crl_number": a.rootCRL.Number.String()},
	})
	if err != nil {
		return nil, fmt.Errorf("publish CRLs: %w", err)
	}
	set, err := a.store.PublishCRLs(ctx, 0, a.signer(ctx))
	if err != nil {
		return nil, fmt.Errorf("publish CRLs: %w", err)
	}
	return a.keepNewest(a.bundle(set)), nil
}
