package idtokentest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

// keyring holds a provider's keys. The newest signs.
type keyring struct {
	algorithm string
	mu        sync.Mutex
	keys      []signingKey // oldest first
}

type signingKey struct {
	kid     string
	private crypto.Signer
}

func (k *keyring) rotate() error {
	if k.algorithm == "" {
		k.algorithm = idtoken.RS256
	}
	private, err := generate(k.algorithm)
	if err != nil {
		return fmt.Errorf("idtokentest: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys = append(k.keys, signingKey{kid: rand.Text(), private: private})
	return nil
}

func generate(algorithm string) (crypto.Signer, error) {
	switch algorithm {
	case idtoken.RS256:
		return rsa.GenerateKey(rand.Reader, 2048)
	case idtoken.ES256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case idtoken.EdDSA:
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return private, err
	}
	return nil, fmt.Errorf("unknown algorithm %q", algorithm)
}

func (k *keyring) retire() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys = k.keys[len(k.keys)-1:]
}

func (k *keyring) newest() signingKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keys[len(k.keys)-1]
}

// set returns the published JWK set.
func (k *keyring) set() jose.JSONWebKeySet {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out jose.JSONWebKeySet
	for _, key := range k.keys {
		out.Keys = append(out.Keys, jose.JSONWebKey{Key: key.private.Public(), KeyID: key.kid, Algorithm: k.algorithm, Use: "sig"})
	}
	return out
}

// sign makes a compact JWS over payload. Members of header are added to alg, kid and
// typ.
func (k *keyring) sign(payload []byte, header map[string]any) (string, error) {
	key := k.newest()
	options := (&jose.SignerOptions{}).WithType("JWT")
	for name, v := range header {
		options = options.WithHeader(jose.HeaderKey(name), v)
	}
	signer, err := jose.NewSigner(jose.SigningKey{
		Algorithm: jose.SignatureAlgorithm(k.algorithm),
		Key:       jose.JSONWebKey{Key: key.private, KeyID: key.kid},
	}, options)
	if err != nil {
		return "", fmt.Errorf("idtokentest: sign: %w", err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("idtokentest: sign: %w", err)
	}
	return jws.CompactSerialize()
}

// Signer returns the current signing key and its id, for tokens that a provider would
// not make.
func (p *Provider) Signer() (kid string, key crypto.Signer) {
	k := p.keys.newest()
	return k.kid, k.private
}

// Sign signs payload unchanged, JSON or not. Members of header are added to alg, kid
// and typ, or replace typ.
func (p *Provider) Sign(payload []byte, header map[string]any) (string, error) {
	return p.keys.sign(payload, header)
}

func encode(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("idtokentest: %w", err)
	}
	return data, nil
}
