package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store/postgres"
	"github.com/mayfly-ca/mayfly/ca/store/sqlite"
)

// IsPostgres tells whether dsn names a PostgreSQL database; otherwise it is the
// path of a SQLite file.
func IsPostgres(dsn string) bool {
	return strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://")
}

// CreateStore makes an empty store where none is: dsn is the path of a SQLite
// file or a postgres:// URL. ErrExists if there is one.
func CreateStore(ctx context.Context, dsn string, m Meta) error {
	if IsPostgres(dsn) {
		return postgres.Create(ctx, dsn, m)
	}
	return sqlite.Create(ctx, dsn, m)
}

// OpenStore opens the store of root's authority. It never makes one: ErrMissing,
// ErrOtherRoot. key signs its logins; a zero key is one that only this Store has.
func OpenStore(ctx context.Context, dsn string, root *x509.Certificate, key StateKey) (Store, error) {
	if IsPostgres(dsn) {
		s, err := postgres.Open(ctx, dsn, Fingerprint(root), key)
		if err != nil { // not a nil *postgres.Store in a Store
			return nil, err
		}
		return s, nil
	}
	s, err := sqlite.Open(ctx, dsn, Fingerprint(root), key)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// MetaOf names a new store of the authority whose certificates are given in PEM,
// with the present as its first floor.
func MetaOf(rootPEM, intermediatePEM []byte) (Meta, error) {
	root, err := parseCertificate(rootPEM)
	if err != nil {
		return Meta{}, fmt.Errorf("root: %w", err)
	}
	intermediate, err := parseCertificate(intermediatePEM)
	if err != nil {
		return Meta{}, fmt.Errorf("intermediate: %w", err)
	}
	c, err := checkIntermediate(intermediate, root)
	if err != nil {
		return Meta{}, fmt.Errorf("intermediate: %w", err)
	}
	return Meta{
		RootFingerprint: Fingerprint(root),
		TrustDomain:     c.TrustDomain.Name(),
		CreatedAt:       time.Now().UTC().Truncate(time.Second),
	}, nil
}

// RestoreStore makes the store at dsn from a backup of any driver, where none may
// be yet (ErrExists), and raises its floor: what was issued or revoked after the
// backup is unknown, so everything issued before now is refused. The store is
// there whole, with the floor in it, or not at all. A backup of another root is
// ErrOtherRoot; what was made of it no authority opens, and a SQLite file is
// removed again.
func RestoreStore(ctx context.Context, dsn string, backup io.Reader, root *x509.Certificate, by string) (time.Time, error) {
	restore := sqlite.Restore
	if IsPostgres(dsn) {
		restore = postgres.Restore
	}
	m, floor, err := restore(ctx, dsn, backup, restored(by))
	if err != nil {
		return time.Time{}, fmt.Errorf("restore: %w", err)
	}
	if m.RootFingerprint != Fingerprint(root) {
		err := fmt.Errorf("restore: the backup is of root %s: %w", m.RootFingerprint, ErrOtherRoot)
		if !IsPostgres(dsn) {
			err = errors.Join(err, os.Remove(dsn))
		}
		return time.Time{}, err
	}
	return floor, nil
}

func restored(by string) Event {
	return Event{Time: time.Now().UTC(), Type: EventRestored, By: by, Reason: "restored from a backup"}
}

// RestoreInPlace raises the floor of a store that was rolled back by its own
// means, as RestoreStore does.
func RestoreInPlace(ctx context.Context, s Store, by string) (time.Time, error) {
	return s.RaiseFloor(ctx, restored(by))
}
