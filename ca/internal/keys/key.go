package keys

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"go.step.sm/crypto/kms"
	kmsapi "go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/pemutil"
)

// envScheme is the prefix of a reference to a key in the environment.
const envScheme = "env:"

// maxKeyBytes bounds a key file.
const maxKeyBytes = 64 << 10

// Key is a CA key. It may hold a KMS open.
type Key struct {
	crypto.Signer
	close func() error
}

// Close closes the KMS, if there is one.
func (k *Key) Close() error {
	if k.close == nil {
		return nil
	}
	return k.close()
}

// Open returns the key that ref names: the path of a PEM file, env:NAME for a PEM
// (or its base64) in the environment, or a go.step.sm/crypto KMS URI. The key must
// be ECDSA P-256. Errors never contain key material.
func Open(ctx context.Context, ref string) (*Key, error) {
	k, err := open(ctx, ref)
	if err != nil {
		return nil, err
	}
	if err := CheckPublic(k.Public()); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", ref, err), k.Close())
	}
	return k, nil
}

// CheckPublic returns an error unless a CA may have the key pub: ECDSA P-256.
func CheckPublic(pub crypto.PublicKey) error {
	if k, ok := pub.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		return errors.New("a CA key is ECDSA P-256")
	}
	return nil
}

func open(ctx context.Context, ref string) (*Key, error) {
	if ref == "" {
		return nil, errors.New("no key is named")
	}
	if name, ok := strings.CutPrefix(ref, envScheme); ok {
		value := os.Getenv(name)
		if value == "" {
			return nil, fmt.Errorf("environment variable %s is not set", name)
		}
		signer, err := parseEnv(value)
		if err != nil {
			return nil, fmt.Errorf("environment variable %s: %w", name, err)
		}
		return &Key{Signer: signer}, nil
	}
	if scheme, _, ok := strings.Cut(ref, ":"); ok && !strings.ContainsAny(scheme, `/\.`) && len(scheme) > 1 {
		return openKMS(ctx, ref)
	}
	data, err := readFile(ref)
	if err != nil {
		return nil, err
	}
	signer, err := Parse(data, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	return &Key{Signer: signer}, nil
}

func openKMS(ctx context.Context, uri string) (*Key, error) {
	km, err := kms.New(ctx, kmsapi.Options{URI: uri})
	if err != nil {
		return nil, fmt.Errorf("kms: %w", err)
	}
	signer, err := km.CreateSigner(&kmsapi.CreateSignerRequest{SigningKey: uri})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("kms: %w", err), km.Close())
	}
	return &Key{Signer: signer, close: km.Close}, nil
}

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", path, fs.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	if info.Size() > maxKeyBytes {
		return nil, fmt.Errorf("%s: %d bytes is too large for a key", path, info.Size())
	}
	return os.ReadFile(path)
}

// parseEnv parses a PEM, or the base64 of a PEM for platforms that do not keep line
// breaks.
func parseEnv(value string) (crypto.Signer, error) {
	if !strings.Contains(value, "-----BEGIN") {
		der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(value), ""))
		if err != nil {
			return nil, errors.New("neither a PEM nor the base64 of one")
		}
		value = string(der)
	}
	return Parse([]byte(value), nil)
}

// Parse reads a private key in PEM. An encrypted key needs its password; without
// it, the error says so.
func Parse(data, password []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("no PEM block")
	}
	opts := []pemutil.Options{pemutil.WithFirstBlock()}
	encrypted := block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != ""
	switch {
	case encrypted && len(password) == 0:
		return nil, errors.New("the key is encrypted and no password was given")
	case encrypted:
		opts = append(opts, pemutil.WithPassword(password))
	}
	key, err := pemutil.ParseKey(data, opts...)
	if err != nil {
		return nil, errors.New("not a private key, or a wrong password")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("not a private key that signs")
	}
	return signer, nil
}

// Generate makes an ECDSA P-256 key in software for a CA.
func Generate() (*ecdsa.PrivateKey, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// Marshal writes key as PKCS #8 PEM. With a password, it is encrypted (PBES2,
// AES-256).
func Marshal(key *ecdsa.PrivateKey, password []byte) ([]byte, error) {
	opts := []pemutil.Options{pemutil.WithPKCS8(true)}
	if len(password) > 0 {
		opts = append(opts, pemutil.WithPassword(password))
	}
	block, err := pemutil.Serialize(key, opts...)
	if err != nil {
		return nil, fmt.Errorf("marshal key: %w", err)
	}
	return pem.EncodeToMemory(block), nil
}
