package ca

import (
	"context"
	"errors"
	"fmt"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// Revoke revokes, blocks or raises the floor as r says, and returns when a
// committed CRL holds it, with that CRL's number. An error after the store has
// committed names that: the revocation stands then, and the next CRL holds it.
// A dry run publishes nothing.
func (a *Authority) Revoke(ctx context.Context, r store.Revocation) (*store.RevocationResult, int64, error) {
	result, err := a.store.Revoke(ctx, r)
	if err != nil {
		return nil, 0, fmt.Errorf("revoke: %w", err)
	}
	if r.DryRun {
		set, err := a.store.CRLs(ctx)
		switch {
		case errors.Is(err, store.ErrNotFound): // none was signed yet
			return result, 0, nil
		case err != nil:
			return nil, 0, fmt.Errorf("revoke: %w", err)
		}
		return result, set.Number, nil
	}
	// What is committed must be published, whether or not the caller waits. Not
	// through the flight of CRLs, which may have read its state before.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), publishTimeout)
	defer cancel()
	c, err := a.publish(ctx)
	if err != nil {
		a.crls.Store(nil) // the next to ask publishes
		return nil, 0, fmt.Errorf("revoke: committed, but not yet in a CRL: %w", err)
	}
	return result, c.Number, nil
}
