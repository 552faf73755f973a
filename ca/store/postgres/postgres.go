// Package postgres keeps a store in a PostgreSQL database, for several issuers
// that share one.
//
// Replicas agree because every commit takes one advisory lock: tokens, blocks,
// revocations, the floor, and the chain of events are read and written under
// it. The package imports ca/store's ledger and pgx; no SQL of the store itself
// belongs here.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/ca/store/internal/ledger"
)

// Store is a store.Store in a PostgreSQL database.
type Store struct{ *ledger.Ledger }

const (
	// minConns is the size of the pool where the URL has no pool_max_conns.
	minConns = 8
	// commitLock and shapeLock are the advisory locks of commits and of
	// changes of shape.
	commitLock = 0x6d6179666c79_0001
	shapeLock  = 0x6d6179666c79_0002
)

// Create makes an empty store in the database that url names, which must be
// there. A store that is there already is store.ErrExists.
func Create(ctx context.Context, url string, m store.Meta) error {
	return build(ctx, url, func(ctx context.Context, d *driver) error {
		return d.Update(ctx, func(tx ledger.Tx) error {
			if err := empty(ctx, tx); err != nil {
				return err
			}
			return ledger.Found(ctx, tx, m)
		})
	})
}

// Restore makes a store in the database that url names from a backup of any
// driver and raises its floor, since what was issued or revoked after the
// backup is unknown. ev is the event of it; an empty Type is
// store.EventRestored. The store is there whole or not at all.
func Restore(ctx context.Context, url string, r io.Reader, ev store.Event) (m store.Meta, floor time.Time, err error) {
	err = build(ctx, url, func(ctx context.Context, d *driver) error {
		return d.Update(ctx, func(tx ledger.Tx) (err error) {
			if err := empty(ctx, tx); err != nil {
				return err
			}
			m, floor, err = ledger.Restore(ctx, tx, r, ev)
			return err
		})
	})
	return m, floor, err
}

// empty refuses a database that holds a store.
func empty(ctx context.Context, tx ledger.Tx) error {
	n, err := tx.Exec(ctx, `UPDATE meta SET id = id`)
	if err == nil && n > 0 {
		err = store.ErrExists
	}
	return err
}

// build brings the database to the store's shape and lets fill write its rows.
func build(ctx context.Context, url string, fill func(context.Context, *driver) error) (err error) {
	d, err := connect(ctx, url)
	if err != nil {
		return fmt.Errorf("create store: %w", err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if err := d.migrate(ctx); err != nil {
		return fmt.Errorf("create store: %w", err)
	}
	if err := fill(ctx, d); err != nil {
		return fmt.Errorf("create store: %w", err)
	}
	return nil
}

// Open opens the store in the database that url names, which must be there and
// belong to the root with the fingerprint rootFP ("" for any): else
// store.ErrMissing or store.ErrOtherRoot. It never creates a store. A shape of
// an earlier version is brought up to date. key signs its logins; a zero key is
// one that only this Store has.
func Open(ctx context.Context, url, rootFP string, key store.StateKey) (*Store, error) {
	d, err := connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := d.prepare(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), d.Close())
	}
	l, err := ledger.Open(ctx, d, rootFP, key)
	if err != nil {
		return nil, err
	}
	return &Store{l}, nil
}

// prepare checks that the database holds a store and brings its shape up to
// date.
func (d *driver) prepare(ctx context.Context) error {
	var there bool
	if err := d.pool.QueryRow(ctx, `SELECT to_regclass('meta') IS NOT NULL AND to_regclass('goose_db_version') IS NOT NULL`).Scan(&there); err != nil {
		return err
	}
	if !there {
		return store.ErrMissing
	}
	var version int64
	if err := d.pool.QueryRow(ctx, `SELECT COALESCE(MAX(version_id), 0) FROM goose_db_version WHERE is_applied`).Scan(&version); err != nil {
		return err
	}
	if version == ledger.Version {
		return nil
	}
	return d.migrate(ctx)
}

// migrate brings the shape up to date while no other process does.
func (d *driver) migrate(ctx context.Context) (err error) {
	c, err := d.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer c.Release()
	if _, err := c.Exec(ctx, `SELECT pg_advisory_lock($1)`, int64(shapeLock)); err != nil {
		return err
	}
	defer func() {
		_, unlock := c.Exec(ctx, `SELECT pg_advisory_unlock($1)`, int64(shapeLock))
		err = errors.Join(err, unlock)
	}()
	db := stdlib.OpenDBFromPool(d.pool)
	return errors.Join(ledger.Migrate(ctx, goose.DialectPostgres, db, dialect), db.Close())
}

// connect opens the pool. A database that does not exist is store.ErrMissing.
func connect(ctx context.Context, url string) (*driver, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, errors.New("the database URL is malformed") // err quotes it, password and all
	}
	if !strings.Contains(url, "pool_max_conns") {
		cfg.MaxConns = max(cfg.MaxConns, minConns)
	}
	cfg.AfterConnect = settle
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	d := &driver{pool: pool, config: cfg.ConnConfig.Copy(), turn: make(chan struct{}, 1)}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		var e *pgconn.PgError
		if errors.As(err, &e) && e.Code == "3D000" { // no such database
			return nil, fmt.Errorf("%w: %w", store.ErrMissing, err)
		}
		return nil, err
	}
	return d, nil
}

// settle makes a connection durable, whatever the server's default, and keeps
// a replica that hangs in the middle of a commit from holding up the others.
func settle(ctx context.Context, c *pgx.Conn) error {
	_, err := c.Exec(ctx, `SET idle_in_transaction_session_timeout = '15s';
		SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') IN ('off', 'local')`)
	return err
}
