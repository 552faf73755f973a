package ca_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/catest"
	"github.com/mayfly-ca/mayfly/ca/store"
)

// brokenStore fails where the test wants.
type brokenStore struct {
	store.Store
	record  error // before anything is written
	lost    error // after the record is durable
	publish error
}

func (b *brokenStore) Record(ctx context.Context, c *store.Certificate, ev store.Event) (*store.Certificate, error) {
	if b.record != nil {
		return nil, b.record
	}
	got, err := b.Store.Record(ctx, c, ev)
	if err == nil && b.lost != nil {
		return nil, b.lost
	}
	return got, err
}

func (b *brokenStore) PublishCRLs(ctx context.Context, maxAge time.Duration, sign func(store.CRLState) ([]store.SignedCRL, error)) (*store.CRLSet, error) {
	if b.publish != nil {
		return nil, b.publish
	}
	return b.Store.PublishCRLs(ctx, maxAge, sign)
}

// Attack 36: the store fails, nothing is issued, and the token is not used up.
func TestStoreFails(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	broken := &brokenStore{Store: c.Config.Store, record: errors.New("disk full")}
	config := c.Config
	config.Store = broken
	a := catest.OpenConfig(t, config)
	g, csr := catest.Grant(t, catest.ClientParams(t, "default")), catest.CSR(t, catest.Key(t))
	if issued, err := a.Issue(t.Context(), g, csr); issued != nil || !errors.Is(err, broken.record) {
		t.Errorf("got %v, %v", issued, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	broken.record = nil
	if issued, err := a.Issue(ctx, g, csr); issued != nil || err == nil {
		t.Errorf("issued for a caller who had gone: %v", issued)
	}
	if certs, _, err := c.Store().Certificates(t.Context(), store.CertificateFilter{Limit: 10}); err != nil || len(certs) != 0 {
		t.Errorf("%d records, %v", len(certs), err)
	}
	if _, err := a.Issue(t.Context(), g, csr); err != nil {
		t.Errorf("the same token afterwards: %v", err)
	}
}

// Attack 35: a crash between record and signature leaves a record without a
// certificate. It can be revoked. Until then, every replica issues it for the same
// token and key.
func TestCrashBetweenRecordAndSignature(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	config := c.Config
	config.Store = &brokenStore{Store: c.Config.Store, lost: errors.New("killed")}
	crashing := catest.OpenConfig(t, config)
	key := catest.Key(t)
	g := catest.Grant(t, catest.ClientParams(t, "default"))
	if issued, err := crashing.Issue(t.Context(), g, catest.CSR(t, key)); err == nil {
		t.Fatalf("issued %v", issued)
	}
	certs, _, err := c.Store().Certificates(t.Context(), store.CertificateFilter{Limit: 10})
	if err != nil || len(certs) != 1 {
		t.Fatalf("%d records, %v", len(certs), err)
	}
	first, err := c.Issue(t.Context(), g, catest.CSR(t, key))
	if err != nil {
		t.Fatal(err)
	}
	if !first.Repeated || first.Record.Serial != certs[0].Serial {
		t.Errorf("another certificate was issued: %+v", first.Record)
	}
	second, err := catest.OpenConfig(t, replica(t, c)).Issue(t.Context(), g, catest.CSR(t, key))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Certificate.RawTBSCertificate, second.Certificate.RawTBSCertificate) {
		t.Error("replicas give out different certificates")
	}
	revoke(t, c.Authority, store.Revocation{Serial: certs[0].Serial})
	crls, err := c.CRLs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !lists(t, crls.Current, first.Certificate) {
		t.Error("not in the CRL")
	}
	wantReplay(t, c, g, key, "revoked")
}
