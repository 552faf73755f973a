package sqlstore

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// readConns bounds the connections that read concurrently.
const readConns = 4

var sqliteDialect = dialect{
	goose: goose.DialectSQLite3, integer: "INTEGER", bytes: "BLOB", clustered: "WITHOUT ROWID", indexHints: true,
	countTables: `SELECT COUNT(*) FROM sqlite_master WHERE name IN ('meta', 'goose_db_version')`,
}

// sqliteDB is one SQLite file. One connection writes, under a lock shared with
// other processes (`mayfly-issuer revoke` on the host of a running serve). A pool
// reads. The journal is a write-ahead log with synchronous=FULL: an acknowledged
// write survives a power cut.
type sqliteDB struct {
	writes *sql.DB
	reads  *sql.DB

	turn       chan struct{} // holds one value: the turn to write
	writer     *sql.Conn
	statements map[string]*sql.Stmt // of writer, each prepared once

	checkpointer *checkpointer // nil during the creation of the store
}

// buildFile makes an empty file next to path, calls build to make a store in it,
// and gives the store the name path. The store exists whole or not at all. If
// anything is at path already, it returns store.ErrExists.
func buildFile(path string, build func(unfinished string) error) (err error) {
	for _, taken := range []string{path, path + "-wal"} {
		if _, err := os.Lstat(taken); err == nil {
			return store.ErrExists
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
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
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := build(unfinished); err != nil {
		return err
	}
	if err := os.Link(unfinished, path); errors.Is(err, fs.ErrExist) {
		return store.ErrExists
	} else if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// openFile opens the file at path, which must not be empty, with a checkpointer.
func openFile(ctx context.Context, path string) (database, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, store.ErrMissing
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("not a file")
	case info.Size() == 0:
		return nil, fmt.Errorf("it is empty: %w", store.ErrMissing)
	}
	d, err := connectSQLite(ctx, path)
	if err != nil {
		return nil, err
	}
	d.checkpointer = startCheckpointer(d, checkpointEvery, restartAfter)
	return d, nil
}

// sqliteURL returns the driver's URL of the file: read and write, never create.
func sqliteURL(path string, pragmas ...string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	q := url.Values{"mode": {"rw"}, "_pragma": append([]string{"busy_timeout(10000)", "temp_store(MEMORY)"}, pragmas...)}
	return (&url.URL{Scheme: "file", Path: abs, RawQuery: q.Encode()}).String(), nil
}

// connectSQLite opens the writing and the reading connections.
func connectSQLite(ctx context.Context, path string) (*sqliteDB, error) {
	w, err := sqliteURL(path, "journal_mode(WAL)", "synchronous(FULL)", "cache_size(-32000)", fmt.Sprintf("wal_autocheckpoint(%d)", inlineCheckpoint))
	if err != nil {
		return nil, err
	}
	r, err := sqliteURL(path, "query_only(1)", "cache_size(-8000)")
	if err != nil {
		return nil, err
	}
	d := &sqliteDB{turn: make(chan struct{}, 1), statements: make(map[string]*sql.Stmt)}
	if d.writes, err = sql.Open("sqlite", w); err != nil {
		return nil, err
	}
	d.writes.SetMaxOpenConns(2) // the writer itself, and one to migrate and ping
	if d.reads, err = sql.Open("sqlite", r); err != nil {
		return nil, errors.Join(err, d.writes.Close())
	}
	d.reads.SetMaxOpenConns(readConns)
	d.reads.SetMaxIdleConns(readConns)
	if d.writer, err = d.writes.Conn(ctx); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

func (d *sqliteDB) schema() (*sql.DB, *dialect) { return d.writes, &sqliteDialect }

func (d *sqliteDB) snapshot(ctx context.Context, f func(reader) error) (err error) {
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
	return f(sqliteReader{c})
}

// sqliteReader reads with one connection of the pool.
type sqliteReader struct{ conn *sql.Conn }

func (r sqliteReader) query(ctx context.Context, query string, args []any, scan func(row) error) error {
	rows, err := r.conn.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	return scanSQLite(rows, scan)
}

// scanSQLite calls scan with every row and closes rows.
func scanSQLite(rows *sql.Rows, scan func(row) error) error {
	for rows.Next() {
		if err := scan(rows); err != nil {
			return errors.Join(err, rows.Close())
		}
	}
	return errors.Join(rows.Err(), rows.Close())
}

// update implements database. ctx ends the wait for the turn. A transaction that
// has begun runs to its end: an interruptible statement costs a goroutine.
func (d *sqliteDB) update(ctx context.Context, f func(transaction) error) error {
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	tx := sqliteTx{d}
	if _, err := tx.exec(ctx, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	err := f(tx)
	if err == nil {
		if _, err = tx.exec(ctx, "COMMIT"); err == nil {
			if d.checkpointer != nil {
				d.checkpointer.changed.set()
			}
			return nil
		}
	}
	if _, undo := tx.exec(ctx, "ROLLBACK"); undo != nil && !strings.Contains(undo.Error(), "no transaction is active") {
		err = errors.Join(err, undo)
	}
	return err
}

type sqliteTx struct{ db *sqliteDB }

// prepared returns the prepared statement of a query and prepares it on first use.
// The texts are constants, except for a few that contain a limit.
func (t sqliteTx) prepared(query string) (*sql.Stmt, error) {
	if s, ok := t.db.statements[query]; ok {
		return s, nil
	}
	s, err := t.db.writer.PrepareContext(context.Background(), query)
	if err != nil {
		return nil, err
	}
	if len(t.db.statements) >= 256 {
		for q, old := range t.db.statements {
			delete(t.db.statements, q)
			if err := old.Close(); err != nil {
				return nil, errors.Join(err, s.Close())
			}
		}
	}
	t.db.statements[query] = s
	return s, nil
}

func (t sqliteTx) query(_ context.Context, query string, args []any, scan func(row) error) error {
	s, err := t.prepared(query)
	if err != nil {
		return err
	}
	rows, err := s.QueryContext(context.Background(), args...)
	if err != nil {
		return err
	}
	return scanSQLite(rows, scan)
}

func (t sqliteTx) exec(_ context.Context, query string, args ...any) (int64, error) {
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

func (t sqliteTx) do(ctx context.Context, query string, args ...any) error {
	_, err := t.exec(ctx, query, args...)
	return err
}

func (t sqliteTx) insert(ctx context.Context, to *table, rows [][]any) error {
	for _, row := range rows {
		if err := t.do(ctx, to.insertOne, row...); err != nil {
			return err
		}
	}
	return nil
}

func (t sqliteTx) lookup(ctx context.Context, query string, args [][]any, scan func(int, row) error) error {
	for i, a := range args {
		if err := t.query(ctx, query, a, func(r row) error { return scan(i, r) }); err != nil {
			return err
		}
	}
	return nil
}

func (d *sqliteDB) refused(err error) bool {
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

// watch implements database. SQLite reports nothing, so the watcher polls.
func (d *sqliteDB) watch(context.Context, func()) {}

func (d *sqliteDB) announce(context.Context, transaction) error { return nil }

// ping implements database. It commits a row and its removal, which a full disk
// refuses. An unchanged row would not reach the disk.
func (d *sqliteDB) ping(ctx context.Context) error {
	return d.update(ctx, func(tx transaction) error {
		if err := tx.do(ctx, `INSERT INTO hours (hour, issued, denied) VALUES (-1, 0, 0)`); err != nil {
			return err
		}
		return tx.do(ctx, `DELETE FROM hours WHERE hour = -1`)
	})
}

func (d *sqliteDB) close() error {
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
