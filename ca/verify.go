package ca

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/ca/grant"
	"github.com/mayfly-ca/mayfly/ca/internal/guard"
	"github.com/mayfly-ca/mayfly/ca/store"
)

// maxFaults bounds how many faults Verify lists.
const maxFaults = 20

// Verified counts what Verify checked.
type Verified struct {
	Certificates int64
	// Unknown counts certificates of intermediates that are no longer configured.
	// Their records are consistent; nothing more can be checked.
	Unknown int64
	Events  int64
}

// Verify checks every stored certificate against its own record and the rules of
// this authority. It also checks the chain of events, and compares the issuances
// and revocations in the events with the certificates. The error names the first
// faults.
func (a *Authority) Verify(ctx context.Context) (*Verified, error) {
	v := &Verified{}
	var faults []error
	fault := func(serial string, err error) {
		if err != nil && len(faults) < maxFaults {
			faults = append(faults, fmt.Errorf("certificate %s: %w", serial, err))
		}
	}
	// Read the events first: a certificate with an event is then in the store, even
	// if the store is in use.
	told, err := a.readTold(ctx)
	if err != nil {
		faults = append(faults, fmt.Errorf("read events: %w", err))
	}
	err = a.store.Each(ctx, func(c *store.Certificate) error {
		v.Certificates++
		known, err := a.verifyRecord(c)
		if !known {
			v.Unknown++
		}
		fault(c.Serial, err)
		if told != nil {
			fault(c.Serial, a.checkEvents(ctx, told, c))
		}
		return nil
	})
	if err != nil {
		faults = append(faults, fmt.Errorf("read certificates: %w", err))
	} else if told != nil {
		for _, serial := range slices.Sorted(maps.Keys(told.issued)) {
			fault(serial, errors.New("issue event without a record"))
		}
	}
	if v.Events, err = a.store.VerifyEvents(ctx); err != nil {
		faults = append(faults, fmt.Errorf("events: %w", err))
	}
	if len(faults) > 0 {
		return v, fmt.Errorf("verify store: %w", errors.Join(faults...))
	}
	return v, nil
}

// minRetention is how long after its issuing a certificate certainly stays in the
// store: see Store.Prune. Its event stays longer.
const minRetention = 26 * time.Hour

// eventIndex holds what the events say about certificates, by serial.
type eventIndex struct {
	since   time.Time       // start of issued
	issued  map[string]bool // within minRetention, and not found in the store yet
	revoked map[string]bool
}

func (a *Authority) readTold(ctx context.Context) (*eventIndex, error) {
	t := &eventIndex{since: time.Now().Add(-minRetention), issued: make(map[string]bool), revoked: make(map[string]bool)}
	err := a.eachEvent(ctx, store.EventFilter{Type: store.EventIssued, Since: &t.since}, func(e *store.Event) {
		if e.Identity != "" { // without an identity, the issuer's own certificate, which has no record
			t.issued[e.Serial] = true
		}
	})
	if err != nil {
		return nil, err
	}
	return t, a.eachEvent(ctx, store.EventFilter{Type: store.EventRevoked}, func(e *store.Event) { t.revoked[e.Serial] = true })
}

// eachEvent calls f for the events that filter selects, in order.
func (a *Authority) eachEvent(ctx context.Context, filter store.EventFilter, f func(*store.Event)) error {
	filter.Limit = 500
	for filter.After = -1; ; {
		events, _, err := a.store.Events(ctx, filter)
		if err != nil || len(events) == 0 {
			return err
		}
		for i := range events {
			f(&events[i])
		}
		filter.After = events[len(events)-1].Seq
	}
}

// checkEvents compares one record with its events.
func (a *Authority) checkEvents(ctx context.Context, t *eventIndex, c *store.Certificate) error {
	was := t.issued[c.Serial]
	delete(t.issued, c.Serial)
	if t.revoked[c.Serial] && c.RevokedAt == nil {
		return errors.New("an event says that it was revoked, and its revocation is gone")
	}
	if was || c.IssuedAt.Before(t.since) {
		return nil
	}
	// It may have been issued after the events were read.
	events, _, err := a.store.Events(ctx, store.EventFilter{Type: store.EventIssued, Serial: c.Serial, Limit: 1})
	if err == nil && (len(events) == 0 || events[0].Serial != c.Serial) {
		err = errors.New("no issue event for the record")
	}
	return err
}

// verifyRecord compares one record with its TBS, and reports whether its
// intermediate is known.
func (a *Authority) verifyRecord(c *store.Certificate) (known bool, err error) {
	aki, err := hex.DecodeString(c.AKI)
	if err != nil {
		return false, fmt.Errorf("authority key id: %w", err)
	}
	line := a.issuerFor(aki)
	leaf, err := guard.Assemble(c.TBS, c.Signature)
	if err != nil {
		return line != nil, err
	}
	if err := checkColumns(c, leaf); err != nil {
		return line != nil, err
	}
	if err := grant.CheckSubject(leaf, a.constraints.TrustDomain, c.Identity, c.Rule, c.Run, c.Engines, subjectOf(c)); err != nil {
		return line != nil, err
	}
	if line == nil {
		return false, nil
	}
	p := grant.Profile(c.Profile)
	eku, err := p.ExtKeyUsage()
	if err != nil {
		return true, err
	}
	if err := grant.CheckEndEntity(leaf, line.cert, eku); err != nil {
		return true, err
	}
	if err := grant.CheckNames(leaf, leaf.DNSNames, nil, c.Identity); err != nil {
		return true, err
	}
	if leaf.NotAfter.Sub(leaf.NotBefore) > grant.Backdate+p.MaxTTL() {
		return true, errors.New("it lives longer than its profile may")
	}
	if len(c.Signature) > 0 {
		return true, leaf.CheckSignatureFrom(line.cert)
	}
	return true, nil
}

func subjectOf(c *store.Certificate) grant.Labels {
	return grant.Labels{Repository: c.Repository, RepositoryID: c.RepositoryID, RunID: c.RunID, Actor: c.Actor}
}

// checkColumns compares the columns of a record with its leaf.
func checkColumns(c *store.Certificate, leaf *x509.Certificate) error {
	spki := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	switch {
	case guard.Serial(leaf) != c.Serial:
		return errors.New("the record has another serial")
	case !bytes.Equal(spki[:], c.SPKI):
		return errors.New("the record has another key")
	case !leaf.NotBefore.Equal(c.NotBefore) || !leaf.NotAfter.Equal(c.NotAfter):
		return errors.New("the record has other times")
	case hex.EncodeToString(leaf.AuthorityKeyId) != c.AKI:
		return errors.New("the record has another intermediate")
	}
	return nil
}

// Chain returns the leaf and its intermediate for a record that holds its
// signature, as some records of earlier versions do. For every other record it
// returns nil. It never signs.
func (a *Authority) Chain(c *store.Certificate) []*x509.Certificate {
	aki, err := hex.DecodeString(c.AKI)
	if err != nil || len(c.Signature) == 0 {
		return nil
	}
	line := a.issuerFor(aki)
	leaf, err := guard.Assemble(c.TBS, c.Signature)
	if line == nil || err != nil || leaf.CheckSignatureFrom(line.cert) != nil {
		return nil
	}
	return []*x509.Certificate{leaf, line.cert}
}
