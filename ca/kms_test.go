package ca_test

import (
	"bytes"
	"context"
	"crypto"
	"encoding/pem"
	"errors"
	"os"
	"strings"
	"testing"

	"crypto/x509"

	kmsapi "go.step.sm/crypto/kms/apiv1"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/catest"
)

// opaqueKMS holds keys as a cloud's does: one never sees them, and two
// signatures over the same bytes differ. Its URIs are opaquekms:path=FILE.
type opaqueKMS struct{ kmsapi.KeyManager }

const opaqueScheme = "opaquekms"

func init() {
	kmsapi.Register(opaqueScheme, func(context.Context, kmsapi.Options) (kmsapi.KeyManager, error) { return opaqueKMS{}, nil })
}

func (opaqueKMS) Close() error { return nil }

func (opaqueKMS) CreateSigner(r *kmsapi.CreateSignerRequest) (crypto.Signer, error) {
	data, err := os.ReadFile(strings.TrimPrefix(r.SigningKey, opaqueScheme+":path="))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	return opaqueKey{key.(crypto.Signer)}, nil
}

type opaqueKey struct{ crypto.Signer }

// A KMS does not sign the same bytes the same way, so the signature is kept, and
// a lost answer is still given again byte for byte, by any replica.
func TestKMS(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	config := c.Config
	config.Key = opaqueScheme + ":path=" + c.Files.IntermediateKey
	a := catest.OpenConfig(t, config)
	key, p := catest.Key(t), catest.ClientParams(t, "default")
	first, err := a.Issue(t.Context(), catest.Grant(t, p), catest.CSR(t, key))
	if err != nil {
		t.Fatal(err)
	}
	verify(t, c, first.Chain, p)
	stored, err := c.Store().Certificate(t.Context(), first.Record.Serial)
	if err != nil || !bytes.Equal(stored.Signature, first.Certificate.Signature) {
		t.Errorf("the signature was not kept: %v", err)
	}
	for name, replica := range map[string]*ca.Authority{"same": a, "another": c.Authority} {
		again, err := replica.Issue(t.Context(), catest.Grant(t, p), catest.CSR(t, key))
		if err != nil || !again.Repeated || !bytes.Equal(again.Certificate.Raw, first.Certificate.Raw) {
			t.Errorf("%s replica: %v", name, err)
		}
	}
	// What is revoked is not signed again, but what is kept can be shown.
	revoke(t, a, ca.Revocation{Serial: first.Record.Serial})
	if chain, err := a.Chain(t.Context(), stored); err != nil || !bytes.Equal(chain[0].Raw, first.Certificate.Raw) {
		t.Errorf("chain: %v", err)
	}
	var replay *ca.ReplayError
	if _, err := a.Issue(t.Context(), catest.Grant(t, p), catest.CSR(t, key)); !errors.As(err, &replay) {
		t.Errorf("got %v", err)
	}
	if _, err := a.Verify(t.Context()); err != nil {
		t.Error(err)
	}
}

// The signature's place is lost when the issuer is killed between signing and
// keeping it: the next replica makes another and keeps that.
func TestKMSKilledBeforeTheSignatureIsKept(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	config := c.Config
	config.Key = opaqueScheme + ":path=" + c.Files.IntermediateKey
	config.Store = &brokenStore{Store: c.Config.Store, attach: errors.New("killed")}
	key, g := catest.Key(t), catest.Grant(t, catest.ClientParams(t, "default"))
	if issued, err := catest.OpenConfig(t, config).Issue(t.Context(), g, catest.CSR(t, key)); err == nil {
		t.Fatalf("issued %v", issued)
	}
	config.Store = c.Config.Store
	a := catest.OpenConfig(t, config)
	first, err := a.Issue(t.Context(), g, catest.CSR(t, key))
	if err != nil {
		t.Fatal(err)
	}
	second, err := a.Issue(t.Context(), g, catest.CSR(t, key))
	if err != nil || !bytes.Equal(first.Certificate.Raw, second.Certificate.Raw) {
		t.Errorf("other bytes: %v", err)
	}
}
