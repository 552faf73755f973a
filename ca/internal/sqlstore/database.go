package sqlstore

import (
	"context"
	"database/sql"

	"github.com/pressly/goose/v3"
)

// row is one row of a result. *sql.Rows and pgx.Rows implement it.
type row interface{ Scan(dest ...any) error }

// reader runs queries. Parameters are $1, $2, ...; values are int64, string and
// []byte.
type reader interface {
	// query calls scan with every row of the result until scan returns an error.
	query(ctx context.Context, query string, args []any, scan func(row) error) error
}

// transaction is a write transaction under the ledger lock.
type transaction interface {
	reader
	// exec runs a statement and returns how many rows it changed.
	exec(ctx context.Context, query string, args ...any) (int64, error)
	// do runs a statement whose number of rows is not needed. A database may delay
	// do and insert, in order, until the next query, lookup, exec or the commit.
	do(ctx context.Context, query string, args ...any) error
	// insert adds rows, each with one value per column of t.
	insert(ctx context.Context, t *table, rows [][]any) error
	// lookup runs query once for each of args, and calls scan with every row of the
	// i-th result.
	lookup(ctx context.Context, query string, args [][]any, scan func(i int, r row) error) error
}

// database is the part in which SQLite and PostgreSQL differ.
type database interface {
	// schema returns a handle for migrations and their dialect.
	schema() (*sql.DB, *dialect)
	// snapshot runs f over one consistent state of the database.
	snapshot(ctx context.Context, f func(reader) error) error
	// update takes the ledger lock, which only one caller in all processes can
	// hold. It runs f and commits durably before it returns nil. After an error of
	// f or of the commit, nothing is written, unless the error is an
	// *uncertainError. f sees every update that returned before f was called.
	update(ctx context.Context, f func(transaction) error) error
	// refused reports whether the written data (a constraint, a value) caused err,
	// so that the same transaction without it may succeed.
	refused(err error) bool
	// watch calls f when another process may have published CRLs, if the database
	// reports that. It returns when ctx ends.
	watch(ctx context.Context, f func())
	// announce makes watch in other processes call f, after the commit of tx.
	announce(ctx context.Context, tx transaction) error
	// ping returns an error if the database does not answer or cannot be written.
	ping(ctx context.Context) error
	close() error
}

// uncertainError means that the answer to a commit was lost: the commit may have
// happened.
type uncertainError struct{ err error }

func (e *uncertainError) Error() string { return "commit with unknown outcome: " + e.err.Error() }

func (e *uncertainError) Unwrap() error { return e.err }

// dialect holds the differences in SQL between two databases.
type dialect struct {
	goose goose.Dialect
	// integer, bytes, clustered and bodies replace words in the migrations.
	integer, bytes, clustered, bodies string
	// countTables returns 2 if the tables meta and goose_db_version exist.
	countTables string
	// lock and unlock, if set, keep other processes from migrating.
	lock, unlock string
	// indexHints means that a query names its index, and that tables are joined in
	// the order of the query (SQLite, which keeps no statistics). Otherwise the
	// form of the query must guide the planner.
	indexHints bool
}

// collect returns every row of a query.
func collect[T any](ctx context.Context, r reader, scan func(row) (T, error), query string, args ...any) ([]T, error) {
	var out []T
	err := r.query(ctx, query, args, func(r row) error {
		v, err := scan(r)
		out = append(out, v)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// queryRow scans the first row of a query and reports whether there was one.
func queryRow(ctx context.Context, r reader, query string, args []any, dest ...any) (found bool, err error) {
	err = r.query(ctx, query, args, func(r row) error {
		if found {
			return nil
		}
		found = true
		return r.Scan(dest...)
	})
	return found, err
}
