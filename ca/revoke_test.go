package ca_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/catest"
	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/ca/store"
)

// serial returns a certificate's serial number as the store writes it.
func serial(c *x509.Certificate) string { return fmt.Sprintf("%032x", c.SerialNumber) }

// lists reports whether a CRL in DER contains a certificate.
func lists(t *testing.T, der []byte, c *x509.Certificate) bool {
	t.Helper()
	for _, e := range parseCRL(t, der).RevokedCertificateEntries {
		if e.SerialNumber.Cmp(c.SerialNumber) == 0 {
			return true
		}
	}
	return false
}

func parseCRL(t *testing.T, der []byte) *x509.RevocationList {
	t.Helper()
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func revoke(t *testing.T, a *ca.Authority, r store.Revocation) (*store.RevocationResult, int64) {
	t.Helper()
	r.Reason, r.By = "test", "test"
	result, number, err := a.Revoke(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return result, number
}

func TestRevokeReturnsWhenTheCRLHoldsIt(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	out, stays := c.Client(t, "default"), c.Client(t, "default")
	first, err := c.CRLs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, number := revoke(t, c.Authority, store.Revocation{Serial: serial(out.Leaf)})
	crls, err := c.CRLs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if number <= first.Number || crls.Number != number {
		t.Errorf("numbers %d, %d, then %d", first.Number, number, crls.Number)
	}
	if !lists(t, crls.Current, out.Leaf) || lists(t, crls.Current, stays.Leaf) {
		t.Error("the CRL holds the wrong certificates")
	}
	list := parseCRL(t, crls.Current)
	if err := list.CheckSignatureFrom(c.Intermediates()[0]); err != nil {
		t.Error(err)
	}
	if d := list.NextUpdate.Sub(list.ThisUpdate); d != 10*time.Minute {
		t.Errorf("nextUpdate is %v on", d)
	}
	if list.Number.Cmp(big.NewInt(number)) != 0 {
		t.Errorf("CRL number %v, want %d", list.Number, number)
	}
	if floor, err := identity.Floor(list); err != nil || !floor.Equal(c.Store().Meta().CreatedAt) {
		t.Errorf("floor %v, %v", floor, err)
	}
	if n := len(blocks(t, crls.PEM, "X509 CRL")); n != 2 {
		t.Errorf("%d CRLs, want the intermediate's and the root's", n)
	}
	if again, err := c.CRLs(t.Context()); err != nil || again.Number != number {
		t.Errorf("a fresh CRL was signed anew: %v", err)
	}
	if result, number := revoke(t, c.Authority, store.Revocation{Serial: serial(stays.Leaf), DryRun: true}); number != crls.Number || len(result.Serials) != 1 {
		t.Errorf("dry run: %v, number %d", result, number)
	}
}

// Attacks 53 and 59: revoking the first certificate of a run revokes all
// certificates of that run, and the run gets no other. Another run still does.
func TestRevokeTakesTheRun(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	first, second := c.Client(t, "default"), c.Client(t, "default")
	other := catest.ClientParams(t, "default")
	other.Subject.RunID, other.Identity.Grant.Run = "1002", "1002/1/1"
	stays := c.Leaf(t, other)
	revoke(t, c.Authority, store.Revocation{Serial: serial(first.Leaf), Block: 24 * time.Hour})
	crls, err := c.CRLs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !lists(t, crls.Current, first.Leaf) || !lists(t, crls.Current, second.Leaf) || lists(t, crls.Current, stays.Leaf) {
		t.Error("the CRL holds the wrong certificates")
	}
	var blocked *store.BlockedError
	if _, err := c.Issue(t.Context(), catest.Grant(t, catest.ClientParams(t, "default")), catest.CSR(t, catest.Key(t))); !errors.As(err, &blocked) {
		t.Errorf("got %v, want a *BlockedError", err)
	}
	other.Token = catest.ClientParams(t).Token
	c.Leaf(t, other)
}

// Attack 54: a certificate issued while its run is revoked is either refused or in
// the list.
func TestIssueDuringRevoke(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	seed := c.Client(t, "default")
	const racers = 24
	requests := make([]*x509.CertificateRequest, racers)
	for i := range requests {
		requests[i] = catest.CSR(t, catest.Key(t))
	}
	issued := make([]*ca.Issued, racers)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range racers {
		g := catest.Grant(t, catest.ClientParams(t, "default"))
		wg.Go(func() {
			<-start
			got, err := c.Issue(t.Context(), g, requests[i])
			var blocked *store.BlockedError
			if err != nil && !errors.As(err, &blocked) {
				t.Error(err)
			}
			issued[i] = got
		})
	}
	var number int64
	wg.Go(func() {
		<-start
		_, n, err := c.Revoke(t.Context(), store.Revocation{Serial: serial(seed.Leaf), Block: time.Hour, Reason: "test", By: "test"})
		if err != nil {
			t.Error(err)
		}
		number = n
	})
	close(start)
	wg.Wait()
	crls, err := c.CRLs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if crls.Number < number {
		t.Errorf("CRL %d is older than the revocation's %d", crls.Number, number)
	}
	for _, got := range issued {
		if got != nil && !lists(t, crls.Current, got.Certificate) {
			t.Errorf("certificate %s slipped between", got.Record.Serial)
		}
	}
}

// Attack 55: two replicas revoke at once, and the newest CRL holds both.
func TestReplicasRevokeAtOnce(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	second := catest.OpenConfig(t, replica(t, c))
	const each = 6
	var wg sync.WaitGroup
	var leaves []*x509.Certificate
	for _, a := range []*ca.Authority{c.Authority, second} {
		for range each {
			leaf := c.Client(t, "default").Leaf
			leaves = append(leaves, leaf)
			wg.Go(func() {
				if _, _, err := a.Revoke(t.Context(), store.Revocation{Serial: serial(leaf), Reason: "test", By: "test"}); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	for name, a := range map[string]*ca.Authority{"first": c.Authority, "second": second} {
		set, err := c.Store().CRLs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		crls, err := a.WaitCRLs(t.Context(), 0)
		for err == nil && crls.Number != set.Number { // the other replica's set arrives within 250 ms
			crls, err = a.WaitCRLs(t.Context(), crls.Number)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, leaf := range leaves {
			if !lists(t, crls.Current, leaf) {
				t.Errorf("%s: the newest CRL lacks %s", name, serial(leaf))
			}
		}
	}
}

// replica returns the configuration of a second issuer over the same store file.
func replica(t *testing.T, c *catest.CA) ca.Config {
	t.Helper()
	st, err := ca.OpenStore(t.Context(), c.Files.DSN, c.Root(), store.StateKey{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	config := c.Config
	config.Store = st
	return config
}

// Attack 59, all: the floor is above every issued certificate, even one of the same
// second. Nothing is issued before the floor is reached, and earlier tokens are
// refused after it.
func TestRevokeAll(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	old := catest.ClientParams(t, "default")
	leaf := c.Client(t, "default").Leaf
	result, _ := revoke(t, c.Authority, store.Revocation{All: true})
	crls, err := c.CRLs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	floor, err := identity.Floor(parseCRL(t, crls.Current))
	if err != nil || !floor.Equal(result.Floor) {
		t.Fatalf("floor %v, %v, want %v", floor, err, result.Floor)
	}
	if !identity.BeforeFloor(leaf, floor) {
		t.Error("a certificate of the same second is not before the floor")
	}
	// Nothing is issued until the floor is reached. Then a later token is accepted,
	// and an earlier one is still refused.
	for {
		p := catest.ClientParams(t, "default")
		p.Subject.RunID = "after"
		issued, err := c.Issue(t.Context(), catest.Grant(t, p), catest.CSR(t, catest.Key(t)))
		if err == nil {
			if identity.BeforeFloor(issued.Certificate, floor) {
				t.Error("issued before the floor")
			}
			break
		}
		if !errors.Is(err, store.ErrBeforeFloor) {
			t.Fatal(err)
		}
		if time.Since(floor) > 30*time.Second {
			t.Fatal("the floor is never reached")
		}
		select { // iat has whole seconds: the next token may be accepted
		case <-time.After(20 * time.Millisecond):
		case <-t.Context().Done():
		}
	}
	if _, err := c.Issue(t.Context(), catest.Grant(t, old), catest.CSR(t, catest.Key(t))); !errors.Is(err, store.ErrBeforeFloor) {
		t.Errorf("a token of before the floor: %v", err)
	}
	crls, err = c.CRLs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := identity.Floor(parseCRL(t, crls.Current)); err != nil || again.Before(floor) {
		t.Errorf("the floor fell to %v, %v", again, err)
	}
}

func TestWaitCRLs(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	leaf := c.Client(t, "default").Leaf
	first, err := c.WaitCRLs(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if none, err := c.WaitCRLs(ctx, first.Number); none != nil || err != nil {
		t.Errorf("got %v, %v, want neither", none, err)
	}
	waited := make(chan *ca.CRLs)
	go func() {
		got, err := c.WaitCRLs(t.Context(), first.Number)
		if err != nil {
			t.Error(err)
		}
		waited <- got
	}()
	_, number := revoke(t, c.Authority, store.Revocation{Serial: serial(leaf)})
	got := <-waited
	if got == nil || got.Number != number || !lists(t, got.Current, leaf) {
		t.Errorf("waited for %d, got %+v", number, got)
	}
	if der, err := c.CRL(t.Context()); err != nil || !lists(t, der, leaf) {
		t.Errorf("the issuing intermediate's CRL: %v", err)
	}
	if ahead, err := c.WaitCRLs(t.Context(), number+1000); err != nil || ahead.Number != number {
		t.Errorf("a caller that knows a higher number: %v", err)
	}
	if !bytes.Contains(got.PEM, []byte("BEGIN CERTIFICATE")) {
		t.Error("no intermediate's certificate in the PEM")
	}
}

// A committed revocation whose CRL could not be signed is in the next CRL.
func TestRevokeWhosePublishingFails(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	leaf := c.Client(t, "default").Leaf
	broken := &brokenStore{Store: c.Config.Store}
	config := c.Config
	config.Store = broken
	a := catest.OpenConfig(t, config)
	if _, err := a.CRLs(t.Context()); err != nil {
		t.Fatal(err)
	}
	broken.publish = errors.New("disk full")
	if _, _, err := a.Revoke(t.Context(), store.Revocation{Serial: serial(leaf), Reason: "test", By: "test"}); !errors.Is(err, broken.publish) {
		t.Errorf("got %v", err)
	}
	if _, err := a.CRLs(t.Context()); err == nil {
		t.Error("a CRL without the revocation was given out")
	}
	broken.publish = nil
	crls, err := a.CRLs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !lists(t, crls.Current, leaf) {
		t.Error("the next CRL lacks the revocation")
	}
}
