package idtoken_test

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/issuer/idtokentest"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

// BenchmarkVerify verifies one GitHub token with cached keys: the hot path of issuing.
func BenchmarkVerify(b *testing.B) {
	p := start(b, idtokentest.Options{Type: idtoken.GitHub})
	v := verifier(b, trust(p, idtoken.GitHub))
	token := mint(b, p, forUs(nil))
	if _, err := v.Verify(b.Context(), token, audience); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(b.Context(), token, audience); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerifyGoOIDC verifies the same token with go-oidc and a cached key.
func BenchmarkVerifyGoOIDC(b *testing.B) {
	p := start(b, idtokentest.Options{Type: idtoken.GitHub})
	v := goOIDC(b, p, idtoken.RS256, audience)
	token := mint(b, p, forUs(nil))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(b.Context(), token); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFloor measures only the signature: SHA-256 and RS256 verification.
func BenchmarkFloor(b *testing.B) {
	p := start(b, idtokentest.Options{Type: idtoken.GitHub})
	token := mint(b, p, forUs(nil))
	dot := strings.LastIndexByte(token, '.')
	sig, err := b64.DecodeString(token[dot+1:])
	if err != nil {
		b.Fatal(err)
	}
	key := publicKey(p)
	b.ReportAllocs()
	for b.Loop() {
		sum := sha256.Sum256([]byte(token[:dot]))
		if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], sig); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkParseObject parses the payload of a GitHub token.
func BenchmarkParseObject(b *testing.B) {
	p := start(b, idtokentest.Options{Type: idtoken.GitHub})
	payload := payloadOf(b, p, nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := idtoken.ParseObject(payload); err != nil {
			b.Fatal(err)
		}
	}
}
