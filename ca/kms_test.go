package ca_test

import (
	"bytes"
	"context"
	"crypto"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"crypto/x509"

	kmsapi "go.step.sm/crypto/kms/apiv1"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/catest"
	"github.com/mayfly-ca/mayfly/ca/store"
)

// opaqueKMS holds keys as a cloud KMS does: it never shows a key, and two
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

// A KMS signs the same bytes differently each time. After a lost answer, any
// replica answers again with the same to-be-signed bytes, and no signature is
// stored.
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
	for name, replica := range map[string]*ca.Authority{"same": a, "another": c.Authority} {
		again, err := replica.Issue(t.Context(), catest.Grant(t, p), catest.CSR(t, key))
		if err != nil || !again.Repeated || !bytes.Equal(again.Certificate.RawTBSCertificate, first.Certificate.RawTBSCertificate) {
			t.Errorf("%s replica: %v", name, err)
			continue
		}
		verify(t, c, again.Chain, p)
	}
	stored, err := c.Store().Certificate(t.Context(), first.Record.Serial)
	if err != nil || len(stored.Signature) > 0 || a.Chain(stored) != nil {
		t.Errorf("a signature was stored: %x, %v", stored.Signature, err)
	}
	revoke(t, a, store.Revocation{Serial: first.Record.Serial})
	wantReplay(t, c, catest.Grant(t, p), key, "revoked")
	if _, err := a.Verify(t.Context()); err != nil {
		t.Error(err)
	}
}

// A record of an earlier version may hold its signature. Chain returns it if it is
// the intermediate's.
func TestChainOfAnOlderRecord(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	d := sqliteDatabase(t, c)
	leaf := c.Client(t, "default").Leaf
	set := func(signature []byte) *store.Certificate {
		d.exec(t, fmt.Sprintf("UPDATE bodies SET signature = x'%x' WHERE id = (SELECT id FROM certificates WHERE serial = x'%s')", signature, serial(leaf)))
		stored, err := c.Store().Certificate(t.Context(), serial(leaf))
		if err != nil {
			t.Fatal(err)
		}
		return stored
	}
	if chain := c.Chain(set(leaf.Signature)); len(chain) != 2 || !chain[0].Equal(leaf) {
		t.Errorf("chain %v", chain)
	}
	if _, err := c.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	for name, signature := range map[string][]byte{"none": nil, "another's": c.Client(t, "default").Leaf.Signature, "no signature": {1}} {
		if chain := c.Chain(set(signature)); chain != nil {
			t.Errorf("%s: chain %v", name, chain)
		}
	}
}

// faultyKMS is an opaqueKMS whose signatures are wrong while faulty is set.
type faultyKMS struct{ opaqueKMS }

const faultyScheme = "faultykms"

func init() {
	kmsapi.Register(faultyScheme, func(context.Context, kmsapi.Options) (kmsapi.KeyManager, error) { return faultyKMS{}, nil })
}

func (k faultyKMS) CreateSigner(r *kmsapi.CreateSignerRequest) (crypto.Signer, error) {
	path := strings.TrimPrefix(r.SigningKey, faultyScheme+":path=")
	s, err := k.opaqueKMS.CreateSigner(&kmsapi.CreateSignerRequest{SigningKey: opaqueScheme + ":path=" + path})
	if err != nil {
		return nil, err
	}
	faulty, _ := faults.LoadOrStore(path, new(atomic.Bool))
	return faultyKey{s, faulty.(*atomic.Bool)}, nil
}

// faults maps the path of a key to its switch.
var faults sync.Map

type faultyKey struct {
	crypto.Signer
	faulty *atomic.Bool
}

func (k faultyKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	sig, err := k.Signer.Sign(random, digest, opts)
	if k.faulty.Load() && err == nil {
		sig[len(sig)-1] ^= 1
	}
	return sig, err
}

// A faulty signature does not leave the authority: with a good one over the same
// bytes it could reveal the key. The token is good for the same certificate after
// the key works again.
func TestFaultyKey(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	config := c.Config
	config.Key = faultyScheme + ":path=" + c.Files.IntermediateKey
	a := catest.OpenConfig(t, config)
	switched, _ := faults.Load(c.Files.IntermediateKey)
	faulty := switched.(*atomic.Bool)
	key, g := catest.Key(t), catest.Grant(t, catest.ClientParams(t, "default"))
	before, err := a.CRLs(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	faulty.Store(true)
	if issued, err := a.Issue(t.Context(), g, catest.CSR(t, key)); err == nil || issued != nil {
		t.Errorf("issued %v", issued)
	}
	if issued, err := a.Issue(t.Context(), g, catest.CSR(t, key)); err == nil || issued != nil {
		t.Errorf("issued again %v", issued)
	}
	if cert, err := a.ServerCertificate(t.Context(), []string{"engine." + catest.EngineDNS}, nil); err == nil || cert != nil {
		t.Error("the issuer's own certificate was given out")
	}
	if set, err := a.Publish(t.Context(), "test"); err == nil || set != nil {
		t.Error("a CRL was published")
	}
	if set, err := c.Store().CRLs(t.Context()); err != nil || set.Number != before.Number {
		t.Errorf("a CRL was stored: %v", err)
	}

	faulty.Store(false)
	issued, err := a.Issue(t.Context(), g, catest.CSR(t, key))
	if err != nil || !issued.Repeated {
		t.Fatalf("afterwards: %+v, %v", issued, err)
	}
	verify(t, c, issued.Chain, g.Params())
	if _, err := a.ServerCertificate(t.Context(), []string{"engine." + catest.EngineDNS}, nil); err != nil {
		t.Error(err)
	}
	if _, err := a.Publish(t.Context(), "test"); err != nil {
		t.Error(err)
	}
}
