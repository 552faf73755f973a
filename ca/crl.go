package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"

	"github.com/mayfly-ca/mayfly/ca/internal/guard"
	"github.com/mayfly-ca/mayfly/ca/internal/keys"
	"github.com/mayfly-ca/mayfly/ca/store"
)

const (
	// maxCRLAge is the greatest age at which a set of CRLs is served.
	maxCRLAge = 60 * time.Second
	// entryLife is how long a revoked leaf stays listed after its NotAfter. A relay
	// may outlive its certificate for that long (max_connection_age).
	entryLife = 24 * time.Hour
	// publishTimeout bounds signing and committing a set. This work continues after
	// its first caller has gone.
	publishTimeout = 30 * time.Second
)

// CRLs is one committed set: one CRL for each intermediate, all with the same
// number. It is shared: callers must not change it.
type CRLs struct {
	Number   int64
	SignedAt time.Time
	// PEM is the body of GET /v1/crl/wait: the certificate and the CRL of each
	// intermediate, then the root's CRL.
	PEM []byte
	// ByAKI maps an intermediate's key id, in lower-case hex, to its CRL in DER.
	ByAKI map[string][]byte
	// Current is the CRL of the issuing intermediate, in DER.
	Current []byte
}

// CRL returns the newest CRL of the issuing intermediate, in DER. See CRLs.
func (a *Authority) CRL(ctx context.Context) ([]byte, error) {
	set, err := a.CRLs(ctx)
	if err != nil {
		return nil, err
	}
	return set.Current, nil
}

// CRLs returns the newest set, at most a minute old. If needed, it signs a new set,
// once for all concurrent callers.
func (a *Authority) CRLs(ctx context.Context) (*CRLs, error) {
	if c := a.crls.Load(); c != nil && fresh(c.SignedAt) && !a.superseded(c.Number) {
		return c, nil
	}
	flight := a.flight.DoChan("crls", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), publishTimeout)
		defer cancel()
		return a.publish(ctx)
	})
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("crls: %w", ctx.Err())
	case r := <-flight:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*CRLs), nil
	}
}

// WaitCRLs returns the newest set as soon as its number differs from after. It
// returns nil if ctx ends first.
func (a *Authority) WaitCRLs(ctx context.Context, after int64) (*CRLs, error) {
	for tries := 0; ; tries++ {
		if tries > 1 && !pause(ctx) {
			return nil, nil
		}
		changed := a.store.CRLChanged(after)
		c, err := a.CRLs(ctx)
		switch {
		case ctx.Err() != nil:
			return nil, nil
		case err != nil:
			return nil, err
		case c.Number != after:
			return c, nil
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-changed:
		}
	}
}

// pause keeps a waiter from spinning when the store signals a change but the number
// is still the one that the waiter has.
func pause(ctx context.Context) bool {
	t := time.NewTimer(10 * time.Millisecond)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func fresh(signedAt time.Time) bool {
	age := time.Since(signedAt)
	return -maxCRLAge < age && age < maxCRLAge
}

// superseded reports whether a set with another number has been committed.
func (a *Authority) superseded(number int64) bool {
	select {
	case <-a.store.CRLChanged(number):
		return true
	default:
		return false
	}
}

// publish returns the store's newest set if it holds every revocation, is fresh and
// covers all our intermediates. Otherwise it signs another. It always signs the
// first set of this process: before a rotation, another process may have served the
// stored set with other intermediates or another root CRL. Engines do not fetch a
// number that they already have.
func (a *Authority) publish(ctx context.Context) (*CRLs, error) {
	sign, maxAge := a.signer(ctx), maxCRLAge
	if a.crls.Load() == nil {
		maxAge = 0
	}
	set, err := a.store.PublishCRLs(ctx, maxAge, sign)
	if err != nil {
		return nil, fmt.Errorf("publish CRLs: %w", err)
	}
	if !fresh(set.SignedAt) || !a.coversIssuers(set) {
		// A replica signed it with a fast clock, or before a rotation.
		if set, err = a.store.PublishCRLs(ctx, 0, sign); err != nil {
			return nil, fmt.Errorf("publish CRLs: %w", err)
		}
	}
	return a.keepNewest(a.bundle(set)), nil
}

// coversIssuers reports whether set has a CRL of each of our intermediates.
func (a *Authority) coversIssuers(set *store.CRLSet) bool {
	n := 0
	for _, c := range set.CRLs {
		for _, l := range a.issuers {
			if l.aki == c.AKI {
				n++
			}
		}
	}
	return n == len(a.issuers)
}

// keepNewest stores c unless the stored set is newer, and returns the newer one.
func (a *Authority) keepNewest(c *CRLs) *CRLs {
	for {
		old := a.crls.Load()
		if old != nil && old.Number > c.Number {
			return old
		}
		if a.crls.CompareAndSwap(old, c) {
			return c
		}
	}
}

func (a *Authority) bundle(set *store.CRLSet) *CRLs {
	c := &CRLs{Number: set.Number, SignedAt: set.SignedAt, ByAKI: make(map[string][]byte, len(set.CRLs))}
	for _, s := range set.CRLs {
		c.ByAKI[s.AKI] = s.DER
	}
	c.Current = c.ByAKI[a.current.aki]
	var b bytes.Buffer
	for _, l := range a.issuers {
		if der, ok := c.ByAKI[l.aki]; ok {
			writePEM(&b, blockCertificate, l.cert.Raw)
			writePEM(&b, blockCRL, der)
		}
	}
	writePEM(&b, blockCRL, a.rootCRL.Raw)
	c.PEM = b.Bytes()
	return c
}

func writePEM(b *bytes.Buffer, kind string, der []byte) {
	// A bytes.Buffer accepts every write, and the block has no invalid headers.
	_ = pem.Encode(b, &pem.Block{Type: kind, Bytes: der})
}

func (a *Authority) signer(ctx context.Context) func(store.CRLState) ([]store.SignedCRL, error) {
	return func(s store.CRLState) ([]store.SignedCRL, error) { return a.signCRLs(ctx, s) }
}

// signCRLs signs the CRL of each intermediate from one state. It runs under the
// store's row lock.
func (a *Authority) signCRLs(ctx context.Context, s store.CRLState) ([]store.SignedCRL, error) {
	// Use our clock, not the database's: the guard compares the time with its own
	// clock.
	now := time.Now().UTC().Truncate(time.Second)
	signed := make([]store.SignedCRL, 0, len(a.issuers))
	for _, l := range a.issuers {
		entries, err := crlEntries(s.Entries[l.aki])
		if err != nil {
			return nil, err
		}
		want := guard.CRL{Number: s.Number, ThisUpdate: now, Floor: s.Floor.Truncate(time.Second), Entries: entries}
		floor, err := want.FloorExtension()
		if err != nil {
			return nil, err
		}
		list := &x509.RevocationList{
			Number:                    big.NewInt(s.Number),
			ThisUpdate:                now,
			NextUpdate:                now.Add(guard.CRLLifetime),
			RevokedCertificateEntries: entries,
			ExtraExtensions:           []pkix.Extension{floor},
		}
		der, err := keys.CRL(ctx, list, l.cert, l.guard.CRLSigner(want))
		if err != nil {
			return nil, err
		}
		signed = append(signed, store.SignedCRL{AKI: l.aki, DER: der})
	}
	for aki, entries := range s.Entries {
		if len(entries) > 0 && !a.holds(aki) {
			// Every verifier refuses these leaves, since they have no fresh CRL.
			a.log.WarnContext(ctx, "revoked certificates of an intermediate that is not configured", "aki", aki, "entries", len(entries))
		}
	}
	return signed, nil
}

func (a *Authority) holds(aki string) bool {
	for _, l := range a.issuers {
		if l.aki == aki {
			return true
		}
	}
	return false
}

func crlEntries(revoked []store.RevokedEntry) ([]x509.RevocationListEntry, error) {
	entries := make([]x509.RevocationListEntry, len(revoked))
	for i, r := range revoked {
		serial, ok := new(big.Int).SetString(r.Serial, 16)
		if !ok || r.RevokedAt.IsZero() {
			return nil, fmt.Errorf("revocation of serial %q is malformed", r.Serial)
		}
		entries[i] = x509.RevocationListEntry{SerialNumber: serial, RevocationTime: r.RevokedAt.UTC().Truncate(time.Second)}
	}
	return entries, nil
}
