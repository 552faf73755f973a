package ca

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"time"

	"github.com/mayfly-ca/mayfly/ca/internal/sqlstore"
	"github.com/mayfly-ca/mayfly/ca/store"
)

// IsPostgres reports whether dsn names a PostgreSQL database. Any other dsn is the
// path of a SQLite file.
func IsPostgres(dsn string) bool { return sqlstore.IsPostgres(dsn) }

// CreateStore makes an empty store at dsn, the path of a SQLite file or a
// postgres:// URL. If a store exists there already, it returns store.ErrExists.
func CreateStore(ctx context.Context, dsn string, m store.Meta) error {
	return sqlstore.Create(ctx, dsn, m)
}

// OpenStore opens the store of root's authority. It never makes one. Errors:
// store.ErrMissing, store.ErrOtherRoot. key signs the logins; with a zero key, the
// Store makes its own.
func OpenStore(ctx context.Context, dsn string, root *x509.Certificate, key store.StateKey) (store.Store, error) {
	return sqlstore.Open(ctx, dsn, Fingerprint(root), key)
}

// MetaOf returns the Meta of a new store for an authority whose certificates are
// given in PEM. The first floor is the current time.
func MetaOf(rootPEM, intermediatePEM []byte) (store.Meta, error) {
	root, err := parseCertificate(rootPEM)
	if err != nil {
		return store.Meta{}, fmt.Errorf("root: %w", err)
	}
	intermediate, err := parseCertificate(intermediatePEM)
	if err != nil {
		return store.Meta{}, fmt.Errorf("intermediate: %w", err)
	}
	c, err := checkIntermediate(intermediate, root)
	if err != nil {
		return store.Meta{}, fmt.Errorf("intermediate: %w", err)
	}
	return store.Meta{
		RootFingerprint: Fingerprint(root),
		TrustDomain:     c.TrustDomain.Name(),
		CreatedAt:       time.Now().UTC().Truncate(time.Second),
	}, nil
}

// RestoreStore makes a store at dsn from a backup and raises its floor.
// Certificates issued or revoked after the backup are unknown, so everything issued
// before now is refused. The store then exists whole, with the floor in it, or not
// at all. Errors: store.ErrExists if dsn holds a store, store.ErrOtherRoot for the
// backup of another root.
func RestoreStore(ctx context.Context, dsn string, backup io.Reader, root *x509.Certificate, by string) (time.Time, error) {
	floor, err := sqlstore.Restore(ctx, dsn, backup, Fingerprint(root), restored(by))
	if err != nil {
		return time.Time{}, fmt.Errorf("restore: %w", err)
	}
	return floor, nil
}

func restored(by string) store.Event {
	return store.Event{Time: time.Now().UTC(), Type: store.EventRestored, By: by, Reason: "restored from a backup"}
}

// RestoreInPlace raises the floor of a store that was rolled back by its database's
// own tools, as RestoreStore does.
func RestoreInPlace(ctx context.Context, s store.Store, by string) (time.Time, error) {
	return s.RaiseFloor(ctx, restored(by))
}
