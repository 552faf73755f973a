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
// ErrOtherRoot.
func OpenStore(ctx context.Context, dsn string, root *x509.Certificate) (Store, error) {
	if IsPostgres(dsn) {
		s, err := postgres.Open(ctx, dsn, Fingerprint(root))
		if err != nil { // not a nil *postgres.Store in a Store
			return nil, err
		}
		return s, nil
	}
	s, err := sqlite.Open(ctx, dsn, Fingerprint(root))
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

// RestoreStore brings a backup back as the SQLite file at path, which must not
// exist, and raises its floor: what was issued or revoked after the backup is
// unknown, so everything issued before now is refused. The file appears under
// its name only with the floor in it.
func RestoreStore(ctx context.Context, path string, backup io.Reader, root *x509.Certificate, by string) (time.Time, error) {
	if IsPostgres(path) {
		return time.Time{}, errors.New("restore: PostgreSQL restores by its own means; then call RestoreInPlace")
	}
	floor, err := restoreFile(ctx, path, backup, root, by)
	if err != nil {
		return time.Time{}, fmt.Errorf("restore: %w", err)
	}
	return floor, nil
}

func restoreFile(ctx context.Context, path string, backup io.Reader, root *x509.Certificate, by string) (floor time.Time, err error) {
	for _, taken := range []string{path, path + "-wal"} {
		if _, err := os.Lstat(taken); err == nil {
			return time.Time{}, fmt.Errorf("%s: %w", taken, ErrExists)
		}
	}
	unfinished := path + ".restoring"
	if err := copyNew(unfinished, backup); err != nil {
		return time.Time{}, err
	}
	defer func() {
		for _, end := range []string{"", "-wal", "-shm"} {
			if rm := os.Remove(unfinished + end); rm != nil && !os.IsNotExist(rm) {
				err = errors.Join(err, rm)
			}
		}
	}()
	s, err := OpenStore(ctx, unfinished, root)
	if err != nil {
		return time.Time{}, err
	}
	floor, err = RestoreInPlace(ctx, s, by)
	if err := errors.Join(err, s.Close()); err != nil {
		return time.Time{}, err
	}
	return floor, os.Link(unfinished, path) // refuses where path is taken
}

// RestoreInPlace raises the floor of a store that was rolled back by its own
// means, as RestoreStore does.
func RestoreInPlace(ctx context.Context, s Store, by string) (time.Time, error) {
	return s.RaiseFloor(ctx, Event{Time: time.Now().UTC(), Type: EventRestored, By: by, Reason: "restored from a backup"})
}

func copyNew(path string, r io.Reader) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	return f.Sync()
}
