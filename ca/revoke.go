package ca

import (
	"context"
	"errors"
	"fmt"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// Revoke revokes, blocks or raises the floor as r says. It returns when a committed
// CRL holds the revocation, with that CRL's number. If the store has committed but
// publishing fails, the error says so: the revocation is valid, and the next CRL
// holds it. A dry run publishes nothing.
func (a *Authority) Revoke(ctx context.Context, r store.Revocation) (*store.RevocationResult, int64, error) {
	result, err := a.store.Revoke(ctx, r)
	if err != nil {
		return nil, 0, fmt.Errorf("revoke: %w", err)
	}
	if r.DryRun {
		set, err := a.store.CRLs(ctx)
		switch {
		case errors.Is(err, store.ErrNotFound): // no set has been signed yet
			return result, 0, nil
		case err != nil:
			return nil, 0, fmt.Errorf("revoke: %w", err)
		}
		return result, set.Number, nil
	}
	// A committed revocation must be published, whether or not the caller waits. Do
	// not share the flight of CRLs: it may have read its state earlier.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), publishTimeout)
	defer cancel()
	c, err := a.publish(ctx)
	if err != nil {
		a.crls.Store(nil) // the next call of CRLs publishes
		return nil, 0, fmt.Errorf("revoke: committed, but not yet in a CRL: %w", err)
	}
	return result, c.Number, nil
}
