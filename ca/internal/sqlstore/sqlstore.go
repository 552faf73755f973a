// Package sqlstore implements store.Store over one SQLite file or one PostgreSQL
// database. The tables, the queries and the rules are the same for both. A DSN is
// the path of the file or a postgres:// URL.
//
// The differences between the two databases (connections, the lock of a commit,
// notifications) are in sqlite.go and postgres.go. The package imports ca/store,
// and nothing that signs.
package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// IsPostgres reports whether dsn names a PostgreSQL database. Any other dsn is the
// path of a SQLite file.
func IsPostgres(dsn string) bool {
	return strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://")
}

// Create makes an empty store at dsn: a file of mode 0600, or the tables of an
// existing database. If the file's folder is missing, Create makes it with mode
// 0700. The store exists whole or not at all. If a store or any file is there
// already, it returns store.ErrExists.
func Create(ctx context.Context, dsn string, m store.Meta) error {
	return build(ctx, dsn, func(tx transaction) error { return insertFirstRows(ctx, tx, m) })
}

// Restore makes a store at dsn, as Create does, from a backup of any database. It
// raises the store's floor, since certificates issued or revoked after the backup
// are unknown, and returns the floor. If the backup's root has another fingerprint
// than root, it returns store.ErrOtherRoot. ev is the event of the restore; an
// empty Type means store.EventRestored.
func Restore(ctx context.Context, dsn string, backup io.Reader, root string, ev store.Event) (floor time.Time, err error) {
	err = build(ctx, dsn, func(tx transaction) (err error) {
		floor, err = restoreBackup(ctx, tx, backup, root, ev)
		return err
	})
	return floor, err
}

// build makes a store and calls fill to write its rows.
func build(ctx context.Context, dsn string, fill func(transaction) error) error {
	if IsPostgres(dsn) {
		d, err := connectPostgres(ctx, dsn)
		if err == nil {
			err = initialize(ctx, d, fill)
		}
		return named("create store", dsn, err)
	}
	return named("create store", dsn, buildFile(dsn, func(unfinished string) error {
		d, err := connectSQLite(ctx, unfinished)
		if err != nil {
			return err
		}
		return initialize(ctx, d, fill)
	}))
}

// initialize makes the tables of d, calls fill to write their first rows, and
// closes d.
func initialize(ctx context.Context, d database, fill func(transaction) error) error {
	err := migrate(ctx, d, version)
	if err == nil {
		err = d.update(ctx, func(tx transaction) error {
			switch m, _, err := readMeta(ctx, tx); {
			case err != nil:
				return err
			case m != nil:
				return store.ErrExists
			}
			return fill(tx)
		})
	}
	return errors.Join(err, d.close())
}

// Open opens the store at dsn. It never makes one and returns store.ErrMissing
// instead. If root is not empty and not the fingerprint of the store's root, it
// returns store.ErrOtherRoot. It migrates tables of an earlier version; for a later
// version it returns store.ErrNewer. key signs the logins. With a zero key the
// Store makes its own, and no other Store verifies its logins.
func Open(ctx context.Context, dsn, root string, key store.StateKey) (store.Store, error) {
	connect := openFile
	if IsPostgres(dsn) {
		connect = connectPostgres
	}
	d, err := connect(ctx, dsn)
	if err != nil {
		return nil, named("open store", dsn, err)
	}
	err = migrateExisting(ctx, d)
	var l *ledger
	if err == nil {
		l, err = startLedger(ctx, d, root, key)
	}
	if err != nil {
		return nil, named("open store", dsn, errors.Join(err, d.close()))
	}
	return l, nil
}

// named adds the operation to err, and the path of a file. It leaves out a URL,
// which may hold a password.
func named(op, dsn string, err error) error {
	switch {
	case err == nil:
		return nil
	case IsPostgres(dsn):
		return fmt.Errorf("%s: %w", op, err)
	}
	return fmt.Errorf("%s %s: %w", op, dsn, err)
}
