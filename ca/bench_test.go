package ca_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/catest"
	"github.com/mayfly-ca/mayfly/ca/store"
)

// forgetful is a store that records nothing, so that BenchmarkIssue measures only
// the authority's own work.
type forgetful struct{ store.Store }

func (forgetful) Record(_ context.Context, c *store.Certificate, _ store.Event) (*store.Certificate, error) {
	return c, nil
}

// BenchmarkIssue measures one issuance without the store: CSR signature, leaf,
// guard, signature. The sub-benchmark floor measures only the unavoidable
// cryptography: verify one P-256 signature and make one.
func BenchmarkIssue(b *testing.B) {
	c := catest.New(b, catest.Options{})
	config := c.Config
	config.Store = forgetful{config.Store}
	a := catest.OpenConfig(b, config)
	g := catest.Grant(b, catest.ClientParams(b, "default"))
	csr := catest.CSR(b, catest.Key(b))
	b.Run("authority", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := a.Issue(b.Context(), g, csr); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("floor", func(b *testing.B) {
		key := catest.Key(b)
		digest := sha256.Sum256([]byte("to be signed"))
		sig, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], sig) {
				b.Fatal("not verified")
			}
			if _, err := ecdsa.SignASN1(rand.Reader, key, digest[:]); err != nil {
				b.Fatal(err)
			}
		}
	})
}
