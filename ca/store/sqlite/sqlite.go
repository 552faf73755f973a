// Package sqlite keeps a store in one SQLite file, the embedded default.
//
// One connection writes, under a lock that other processes share (the host's
// revoke beside a running serve); a pool reads. The journal is a write-ahead
// log with synchronous=FULL: what was acknowledged survives a power cut. The
// package imports ca/store's ledger and modernc.org/sqlite; no SQL of the
// store itself belongs here.
package sqlite

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/pressly/goose/v3"

	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/ca/store/internal/ledger"
)

// Store is a store.Store in a SQLite file.
type Store struct{ *ledger.Ledger }

// Create makes an empty store at path, mode 0600, and the folder it lies in,
// mode 0700, where that is missing. It is there whole or not at all. Where
// anything lies at path already, it returns store.ErrExists.
func Create(ctx context.Context, path string, m store.Meta) error {
	return build(ctx, path, func(ctx context.Context, d *driver) error {
		return d.Update(ctx, func(tx ledger.Tx) error { return ledger.Found(ctx, tx, m) })
	})
}

// build makes a file of the store's shape beside path, lets fill write its
// rows, and gives it its name.
func build(ctx context.Context, path string, fill func(context.Context, *driver) error) (err error) {
	for _, taken := range []string{path, path + "-wal"} {
		if _, err := os.Lstat(taken); err == nil {
			return fmt.Errorf("create store %s: %w", taken, store.ErrExists)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("create store: %w", err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("create store: %w", err)
	}
	suffix := make([]byte, 8)
	rand.Read(suffix)
	unfinished := path + ".new-" + hex.EncodeToString(suffix)
	defer func() {
		for _, end := range []string{"", "-wal", "-shm"} {
			if rm := os.Remove(unfinished + end); rm != nil && !errors.Is(rm, fs.ErrNotExist) {
				err = errors.Join(err, rm)
			}
		}
	}()
	f, err := os.OpenFile(unfinished, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("create store: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("create store: %w", err)
	}
	d, err := connect(ctx, unfinished)
	if err != nil {
		return fmt.Errorf("create store: %w", err)
	}
	err = ledger.Migrate(ctx, goose.DialectSQLite3, d.writes, dialect)
	if err == nil {
		err = fill(ctx, d)
	}
	if err := errors.Join(err, d.Close()); err != nil {
		return fmt.Errorf("create store: %w", err)
	}
	return publish(unfinished, path)
}

// publish gives a finished file its name, durably, unless that is taken.
func publish(unfinished, path string) error {
	if err := os.Link(unfinished, path); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create store %s: %w", path, store.ErrExists)
	} else if err != nil {
		return fmt.Errorf("create store: %w", err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("create store: %w", err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return fmt.Errorf("create store: %w", err)
	}
	return nil
}

// Open opens the store at path, which must be there and belong to the root
// with the fingerprint rootFP ("" for any): else store.ErrMissing or
// store.ErrOtherRoot. It never creates a store. A shape of an earlier version
// is brought up to date. key signs its logins; a zero key is one that only this
// Store has.
func Open(ctx context.Context, path, rootFP string, key store.StateKey) (*Store, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open store %s: %w", path, store.ErrMissing)
	case err != nil:
		return nil, fmt.Errorf("open store: %w", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("open store %s: not a file", path)
	case info.Size() == 0:
		return nil, fmt.Errorf("open store %s: it is empty: %w", path, store.ErrMissing)
	}
	d, err := connect(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	if err := d.prepare(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", path, err), d.Close())
	}
	d.checkpointer = startCheckpointer(d, checkpointEvery, restartAfter)
	l, err := ledger.Open(ctx, d, rootFP, key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &Store{l}, nil
}

// prepare checks that the file is a store and brings its shape up to date.
func (d *driver) prepare(ctx context.Context) error {
	var tables int
	err := d.writes.QueryRowContext(ctx, `SELECT COUNT(*) FROM sqlite_master WHERE name IN ('meta', 'goose_db_version')`).Scan(&tables)
	if err != nil {
		return err
	}
	if tables < 2 {
		return store.ErrMissing
	}
	if v, err := ledger.SchemaVersion(ctx, d.writes); err != nil || v == ledger.Version {
		return err
	}
	return ledger.Migrate(ctx, goose.DialectSQLite3, d.writes, dialect)
}

// dsn names the file to the driver: read and write, never create.
func dsn(path string, pragmas ...string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	q := url.Values{"mode": {"rw"}, "_pragma": append([]string{"busy_timeout(10000)"}, pragmas...)}
	return (&url.URL{Scheme: "file", Path: abs, RawQuery: q.Encode()}).String(), nil
}

// connect opens the writing and the reading connections.
func connect(ctx context.Context, path string) (*driver, error) {
	w, err := dsn(path, "journal_mode(WAL)", "synchronous(FULL)", "cache_size(-32000)", fmt.Sprintf("wal_autocheckpoint(%d)", inlineCheckpoint), "temp_store(MEMORY)")
	if err != nil {
		return nil, err
	}
	r, err := dsn(path, "query_only(1)", "cache_size(-8000)", "temp_store(MEMORY)")
	if err != nil {
		return nil, err
	}
	d := &driver{turn: make(chan struct{}, 1), statements: make(map[string]*sql.Stmt)}
	if d.writes, err = sql.Open("sqlite", w); err != nil {
		return nil, err
	}
	d.writes.SetMaxOpenConns(2) // the writer's own, and one to migrate and ping
	if d.reads, err = sql.Open("sqlite", r); err != nil {
		return nil, errors.Join(err, d.writes.Close())
	}
	d.reads.SetMaxOpenConns(readers)
	d.reads.SetMaxIdleConns(readers)
	if d.writer, err = d.writes.Conn(ctx); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Restore makes a store at path from a backup of any driver and raises its
// floor, since what was issued or revoked after the backup is unknown. ev is
// the event of it; an empty Type is store.EventRestored. As with Create, the
// store is there whole or not at all.
func Restore(ctx context.Context, path string, r io.Reader, ev store.Event) (m store.Meta, floor time.Time, err error) {
	err = build(ctx, path, func(ctx context.Context, d *driver) error {
		return d.Update(ctx, func(tx ledger.Tx) (err error) {
			m, floor, err = ledger.Restore(ctx, tx, r, ev)
			return err
		})
	})
	return m, floor, err
}
