package ledger

import (
	"context"
	"errors"
	"fmt"
)

// Rows is the answer to a query. *sql.Rows and, wrapped, pgx.Rows are.
type Rows interface {
	Next() bool
	Scan(dest ...any) error
	Err() error
	Close() error
}

// Reader asks. Parameters are $1, $2, ...; values are int64, string and []byte.
type Reader interface {
	Query(ctx context.Context, query string, args ...any) (Rows, error)
}

// Tx is a write transaction under the ledger lock.
type Tx interface {
	Reader
	// Exec changes rows and tells how many.
	Exec(ctx context.Context, query string, args ...any) (int64, error)
	// Do is an Exec that nobody counts. A driver may put it off, in order,
	// until the next Query, Lookup, Exec or the commit; Insert too.
	Do(ctx context.Context, query string, args ...any) error
	// Insert adds rows, each with one value per column of t.
	Insert(ctx context.Context, t *Table, rows [][]any) error
	// Lookup asks one question once for each of args and hands every row of
	// the i-th answer to scan.
	Lookup(ctx context.Context, query string, args [][]any, scan func(i int, r Rows) error) error
}

// Driver is what a database must do for a Ledger.
type Driver interface {
	Dialect() Dialect
	// Snapshot runs f over one consistent state of the database.
	Snapshot(ctx context.Context, f func(Reader) error) error
	// Update takes the ledger lock, which no two callers of any process hold
	// at once, runs f, and commits durably before it returns nil. An error,
	// of f or of the commit, leaves nothing; but for an *UncertainError.
	// f sees every Update that returned before it was called.
	Update(ctx context.Context, f func(Tx) error) error
	// Refused tells whether err came of what was written (a constraint, a
	// value), so that the same transaction without it may succeed.
	Refused(err error) bool
	// Wake, where the database can tell, calls f whenever another process
	// may have published CRLs. It returns when ctx ends.
	Wake(ctx context.Context, f func())
	// Announce tells other processes' Wake, after the commit of tx.
	Announce(ctx context.Context, tx Tx) error
	// Ping tells whether the database answers and can be written.
	Ping(ctx context.Context) error
	Close() error
}

// UncertainError is a commit whose answer was lost: it may have happened.
type UncertainError struct{ Err error }

func (e *UncertainError) Error() string { return "commit with unknown outcome: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *UncertainError) Unwrap() error { return e.Err }

// Dialect is where the SQL of two databases differs.
type Dialect struct {
	// Int, Bytes, Clustered and Bodies replace the words of the migrations.
	Int, Bytes, Clustered, Bodies string
	// IndexHints says that a query names its index, and joins in the order
	// in which it is written (SQLite, which keeps no statistics); else the
	// form of the query has to lead the planner.
	IndexHints bool
}

// collect reads every row of a query.
func collect[T any](ctx context.Context, r Reader, scan func(Rows) (T, error), query string, args ...any) ([]T, error) {
	rows, err := r.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, errors.Join(err, rows.Close())
		}
		out = append(out, v)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, err
	}
	return out, nil
}

// one scans the first row of a query and tells whether there was one.
func one(ctx context.Context, r Reader, query string, args []any, dest ...any) (bool, error) {
	rows, err := r.Query(ctx, query, args...)
	if err != nil {
		return false, err
	}
	found := rows.Next()
	if found {
		err = rows.Scan(dest...)
	}
	return found, errors.Join(err, rows.Err(), rows.Close())
}

// values joins parameters $from to $from+n-1 with commas.
func values(from, n int) string {
	b := make([]byte, 0, n*5)
	for i := range n {
		if i > 0 {
			b = append(b, ',')
		}
		b = fmt.Appendf(b, "$%d", from+i)
	}
	return string(b)
}
