package ca

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/internal/keys"
	"github.com/mayfly-ca/mayfly/ca/store"
)

// Names of the files and folders that Init writes.
const (
	rootFolder   = "root"   // kept offline
	issuerFolder = "issuer" // copied to the issuer

	fileRoot         = "root.crt"
	fileRootKey      = "root.key"
	fileRootCRL      = "root.crl"
	fileIntermediate = "intermediate.crt"
	fileKey          = "intermediate.key"
	fileStore        = "store"
	fileStateKey     = "state.key"
)

// InitOptions describe the authority that Init makes.
type InitOptions struct {
	// Dir is where Init makes the folders root and issuer. Neither may exist yet.
	Dir         string
	TrustDomain string
	// EngineDNS lists the DNS names of engines, or domains above them. At least one
	// is required.
	EngineDNS []string
	// IssuerURL is the future URL of the issuer, so that it can certify its own
	// listener. Optional.
	IssuerURL string
	// RootPassword encrypts the root's key. If it is empty, Init makes a password
	// and returns it.
	RootPassword []byte
}

// InitResult names what Init wrote.
type InitResult struct {
	// RootDir must be kept offline: the root's certificate, its encrypted key and
	// its CRL.
	RootDir string
	// IssuerDir is for the issuer. The intermediate's key in it is a secret.
	IssuerDir string

	RootCertificate, RootKey string // in RootDir
	// In IssuerDir. DSN is the store, StateKey the file of the key that signs its logins.
	Root, RootCRL, Intermediate, IntermediateKey, DSN, StateKey string

	// RootPassword is the password that Init made, or empty if the caller gave one.
	// It is shown once and stored nowhere.
	RootPassword string
	// Fingerprint pins the root: --trust-anchor sha256:<Fingerprint>.
	Fingerprint string
}

// ErrInitialised means that the folder holds an authority already.
var ErrInitialised = errors.New("exists already: a CA is never made over another")

// Init makes an authority: root, intermediate, the root's first CRL, and an empty
// store. It is for the operator's own machine. It refuses to run on a Fly Machine,
// since a root's key must not be on that volume or in that memory.
func Init(ctx context.Context, o InitOptions) (*InitResult, error) {
	r, err := initialise(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("make a CA: %w", err)
	}
	return r, nil
}

func initialise(ctx context.Context, o InitOptions) (_ *InitResult, err error) {
	if os.Getenv("FLY_MACHINE_ID") != "" {
		return nil, errors.New("this is a Fly Machine: make the authority on your own machine, and bring the issuer folder here")
	}
	if o.Dir == "" {
		return nil, errors.New("no folder")
	}
	constraints, err := NewConstraints(o.TrustDomain, o.EngineDNS, o.IssuerURL)
	if err != nil {
		return nil, err
	}
	result := initResult(o.Dir)
	if len(o.RootPassword) == 0 {
		o.RootPassword = newPassword()
		result.RootPassword = string(o.RootPassword)
	}
	made, err := makeAuthority(ctx, constraints, o.RootPassword, time.Now())
	if err != nil {
		return nil, err
	}
	result.Fingerprint = made.fingerprint
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	for _, dir := range []string{result.RootDir, result.IssuerDir} {
		if err := os.Mkdir(dir, 0o700); errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("%s %w", dir, ErrInitialised)
		} else if err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, os.RemoveAll(dir))
			}
		}()
	}
	if err := made.write(result); err != nil {
		return nil, err
	}
	if err := CreateStore(ctx, result.DSN, made.meta); err != nil {
		return nil, err
	}
	return result, nil
}

func initResult(dir string) *InitResult {
	root, issuer := filepath.Join(dir, rootFolder), filepath.Join(dir, issuerFolder)
	return &InitResult{
		RootDir:         root,
		IssuerDir:       issuer,
		RootCertificate: filepath.Join(root, fileRoot),
		RootKey:         filepath.Join(root, fileRootKey),
		Root:            filepath.Join(issuer, fileRoot),
		RootCRL:         filepath.Join(issuer, fileRootCRL),
		Intermediate:    filepath.Join(issuer, fileIntermediate),
		IntermediateKey: filepath.Join(issuer, fileKey),
		DSN:             filepath.Join(issuer, fileStore),
		StateKey:        filepath.Join(issuer, fileStateKey),
	}
}

// authorityFiles are the contents of the files of a new authority.
type authorityFiles struct {
	root, rootKey, rootCRL, intermediate, key []byte
	meta                                      store.Meta
	fingerprint                               string
}

// write writes all the files durably.
func (f *authorityFiles) write(result *InitResult) error {
	for _, w := range []struct {
		path string
		data []byte
		mode os.FileMode
	}{
		{result.RootCertificate, f.root, 0o644},
		{result.RootKey, f.rootKey, 0o600},
		{filepath.Join(result.RootDir, fileRootCRL), f.rootCRL, 0o644},
		{filepath.Join(result.RootDir, fileIntermediate), f.intermediate, 0o644},
		{result.Root, f.root, 0o644},
		{result.RootCRL, f.rootCRL, 0o644},
		{result.Intermediate, f.intermediate, 0o644},
		{result.IntermediateKey, f.key, 0o600},
		{result.StateKey, []byte(store.EncodeStateKey(store.NewStateKey()) + "\n"), 0o600},
	} {
		if err := writeNew(w.path, w.data, w.mode); err != nil {
			return err
		}
	}
	return syncFolder(result.RootDir) // CreateStore syncs the other folder
}

func makeAuthority(ctx context.Context, c Constraints, password []byte, now time.Time) (*authorityFiles, error) {
	rootKey, err := keys.Generate()
	if err != nil {
		return nil, err
	}
	template, err := rootTemplate(c, rootKey.Public(), now)
	if err != nil {
		return nil, err
	}
	root, err := keys.CA(template, template, rootKey.Public(), rootKey)
	if err != nil {
		return nil, err
	}
	key, err := keys.Generate()
	if err != nil {
		return nil, err
	}
	template, err = intermediateTemplate(c, key.Public(), now, root)
	if err != nil {
		return nil, err
	}
	intermediate, err := keys.CA(template, root, key.Public(), rootKey)
	if err != nil {
		return nil, err
	}
	if _, err := checkIntermediate(intermediate, root); err != nil {
		return nil, fmt.Errorf("the new intermediate: %w", err)
	}
	f := &authorityFiles{
		root:         encodePEM(blockCertificate, root.Raw),
		intermediate: encodePEM(blockCertificate, intermediate.Raw),
		fingerprint:  Fingerprint(root),
		meta: store.Meta{
			RootFingerprint: Fingerprint(root),
			TrustDomain:     c.TrustDomain.Name(),
			CreatedAt:       now.UTC().Truncate(time.Second),
		},
	}
	if f.rootCRL, err = signRootCRL(ctx, root, rootKey, nil, nil, now, intermediate.NotAfter); err != nil {
		return nil, err
	}
	if f.rootKey, err = keys.Marshal(rootKey, password); err != nil {
		return nil, err
	}
	if f.key, err = keys.Marshal(key, nil); err != nil {
		return nil, err
	}
	return f, nil
}

// newPassword returns 160 random bits in groups that are easy to copy by hand.
func newPassword() []byte {
	var b [20]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	s := strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
	groups := make([]string, 0, 8)
	for i := 0; i < len(s); i += 4 {
		groups = append(groups, s[i:i+4])
	}
	return []byte(strings.Join(groups, "-"))
}

// writeNew durably writes a file that must not exist yet.
func writeNew(path string, data []byte, mode os.FileMode) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}
