package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"strings"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/mayfly-ca/mayfly/ca/store/internal/ledger"
)

// readers bounds the connections that read at once.
const readers = 4

var dialect = ledger.Dialect{Int: "INTEGER", Bytes: "BLOB", Clustered: "WITHOUT ROWID", IndexHints: true}

// driver implements ledger.Driver.
type driver struct {
	writes *sql.DB
	reads  *sql.DB

	turn       chan struct{} // holds one: whose turn it is to write
	writer     *sql.Conn
	statements map[string]*sql.Stmt // of writer, prepared once

	checkpointer *checkpointer // nil while the store is being made
}

// Dialect implements ledger.Driver.
func (d *driver) Dialect() ledger.Dialect { return dialect }

// Snapshot implements ledger.Driver.
func (d *driver) Snapshot(ctx context.Context, f func(ledger.Reader) error) (err error) {
	c, err := d.reads.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if _, err := c.ExecContext(context.Background(), "BEGIN"); err != nil {
		return err
	}
	defer func() {
		_, end := c.ExecContext(context.Background(), "ROLLBACK")
		err = errors.Join(err, end)
	}()
	return f(reader{c})
}

// reader asks over one connection of the pool.
type reader struct{ c *sql.Conn }

// Query implements ledger.Reader.
func (r reader) Query(ctx context.Context, query string, args ...any) (ledger.Rows, error) {
	rows, err := r.c.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err // a nil *sql.Rows is no nil ledger.Rows
	}
	return rows, nil
}

// Update implements ledger.Driver. The context ends the wait for the turn; a
// transaction that has begun is finished, since a statement that could be
// interrupted costs a goroutine each.
func (d *driver) Update(ctx context.Context, f func(ledger.Tx) error) error {
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	tx := transaction{d}
	if _, err := tx.Exec(ctx, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	err := f(tx)
	if err == nil {
		if _, err = tx.Exec(ctx, "COMMIT"); err == nil {
			if d.checkpointer != nil {
				d.checkpointer.committed()
			}
			return nil
		}
	}
	if _, undo := tx.Exec(ctx, "ROLLBACK"); undo != nil && !strings.Contains(undo.Error(), "no transaction is active") {
		err = errors.Join(err, undo)
	}
	return err
}

// transaction is what f of Update writes through.
type transaction struct{ d *driver }

// prepared returns the statement of a query, made on its first use. The texts
// are constants of the ledger but for a handful with a limit in them.
func (t transaction) prepared(query string) (*sql.Stmt, error) {
	if s, ok := t.d.statements[query]; ok {
		return s, nil
	}
	s, err := t.d.writer.PrepareContext(context.Background(), query)
	if err != nil {
		return nil, err
	}
	if len(t.d.statements) >= 256 {
		for q, old := range t.d.statements {
			delete(t.d.statements, q)
			if err := old.Close(); err != nil {
				return nil, errors.Join(err, s.Close())
			}
		}
	}
	t.d.statements[query] = s
	return s, nil
}

// Query implements ledger.Reader.
func (t transaction) Query(_ context.Context, query string, args ...any) (ledger.Rows, error) {
	s, err := t.prepared(query)
	if err != nil {
		return nil, err
	}
	rows, err := s.QueryContext(context.Background(), args...)
	if err != nil {
		return nil, err
	}
	return rows, nil
}

// Exec implements ledger.Tx.
func (t transaction) Exec(_ context.Context, query string, args ...any) (int64, error) {
	s, err := t.prepared(query)
	if err != nil {
		return 0, err
	}
	r, err := s.ExecContext(context.Background(), args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// Do implements ledger.Tx.
func (t transaction) Do(ctx context.Context, query string, args ...any) error {
	_, err := t.Exec(ctx, query, args...)
	return err
}

// Insert implements ledger.Tx.
func (t transaction) Insert(_ context.Context, table *ledger.Table, rows [][]any) error {
	s, err := t.prepared(table.InsertOne())
	if err != nil {
		return err
	}
	for _, row := range rows {
		if _, err := s.ExecContext(context.Background(), row...); err != nil {
			return err
		}
	}
	return nil
}

// Lookup implements ledger.Tx.
func (t transaction) Lookup(ctx context.Context, query string, args [][]any, scan func(int, ledger.Rows) error) error {
	for i, a := range args {
		rows, err := t.Query(ctx, query, a...)
		if err != nil {
			return err
		}
		for rows.Next() {
			if err := scan(i, rows); err != nil {
				return errors.Join(err, rows.Close())
			}
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return err
		}
	}
	return nil
}

// Refused implements ledger.Driver.
func (d *driver) Refused(err error) bool {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH:
		return true
	}
	return false
}

// Wake implements ledger.Driver: SQLite tells nobody, the ledger's poll must do.
func (d *driver) Wake(context.Context, func()) {}

// Announce implements ledger.Driver.
func (d *driver) Announce(context.Context, ledger.Tx) error { return nil }

// Ping implements ledger.Driver: it commits a row and its removal, which a full
// disk refuses. A row that is written as it was would not reach the disk.
func (d *driver) Ping(ctx context.Context) error {
	return d.Update(ctx, func(tx ledger.Tx) error {
		if err := tx.Do(ctx, `INSERT INTO hours (hour, issued, denied) VALUES (-1, 0, 0)`); err != nil {
			return err
		}
		return tx.Do(ctx, `DELETE FROM hours WHERE hour = -1`)
	})
}

// Close implements ledger.Driver.
func (d *driver) Close() error {
	if d.checkpointer != nil {
		d.checkpointer.close()
	}
	var errs []error
	for _, s := range d.statements {
		errs = append(errs, s.Close())
	}
	if d.writer != nil {
		errs = append(errs, d.writer.Close())
	}
	return errors.Join(append(errs, d.reads.Close(), d.writes.Close())...)
}
