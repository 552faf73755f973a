package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mayfly-ca/mayfly/ca/store/internal/ledger"
)

// channel is what NOTIFY tells of a new set of CRLs by.
const channel = "mayfly_crls"

// Rows of up to 8 kB stay whole and uncompressed: compression would cost more
// than all else that a record does.
var dialect = ledger.Dialect{Int: "BIGINT", Bytes: "BYTEA", Bodies: "WITH (toast_tuple_target = 8160)"}

// driver implements ledger.Driver.
type driver struct {
	pool   *pgxpool.Pool
	config *pgx.ConnConfig
	turn   chan struct{} // holds one: whose turn in this process it is to write
}

// Dialect implements ledger.Driver.
func (d *driver) Dialect() ledger.Dialect { return dialect }

// rows is a pgx.Rows whose Close tells what went wrong.
type rows struct{ pgx.Rows }

// Close implements ledger.Rows.
func (r rows) Close() error {
	r.Rows.Close()
	return r.Rows.Err()
}

// beginSnapshot begins a read. Lists are planned for the values they ask for:
// a plan for any value walks past a million events in search of a rare type.
// And they are planned by how many rows they look at (an operator each), with
// joins row by row, not by where those rows lie: the server believes that a
// common value lies everywhere, and would look for it along the primary key,
// past a million rows where it does not.
const beginSnapshot = `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
	SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL cpu_operator_cost = 100; SET LOCAL jit = off;
	SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off`

// Snapshot implements ledger.Driver.
func (d *driver) Snapshot(ctx context.Context, f func(ledger.Reader) error) error {
	return pgx.BeginTxFunc(ctx, d.pool, pgx.TxOptions{BeginQuery: beginSnapshot}, func(tx pgx.Tx) error {
		return f(reader{tx})
	})
}

type reader struct{ tx pgx.Tx }

// Query implements ledger.Reader.
func (r reader) Query(ctx context.Context, query string, args ...any) (ledger.Rows, error) {
	got, err := r.tx.Query(ctx, query, args...)
	return rows{got}, err
}

// Update implements ledger.Driver. Each statement sees what was committed
// before it began (read committed, whatever the server's default), and all
// but the first begin with the lock held.
func (d *driver) Update(ctx context.Context, f func(ledger.Tx) error) error {
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	c, err := d.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer c.Release()
	t := &transaction{conn: c.Conn()}
	t.queue(`BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE`)
	t.queue(`SELECT pg_advisory_xact_lock($1)`, int64(commitLock))
	if _, err = t.flush(ctx); err == nil {
		err = f(t)
	}
	if err == nil {
		err = t.commit(ctx)
	}
	if err != nil && !c.Conn().IsClosed() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if _, rollback := c.Exec(undo, `ROLLBACK`); rollback != nil {
			err = errors.Join(err, c.Conn().Close(undo)) // the pool makes another
		}
	}
	return err
}

// transaction is what f of Update writes through. What nobody waits for is
// sent with what comes next, in one round trip.
type transaction struct {
	conn  *pgx.Conn
	batch pgx.Batch
}

func (t *transaction) queue(query string, args ...any) { t.batch.Queue(query, args...) }

// flush sends what is queued and returns the tag of the last of it.
func (t *transaction) flush(ctx context.Context) (last pgconn.CommandTag, err error) {
	n := t.batch.Len()
	if n == 0 {
		return last, nil
	}
	results := t.conn.SendBatch(ctx, &t.batch)
	for range n {
		if last, err = results.Exec(); err != nil {
			break
		}
	}
	t.batch = pgx.Batch{}
	return last, errors.Join(err, results.Close())
}

// commit ends the transaction. Only the server's own word that it did not
// commit counts as certain.
func (t *transaction) commit(ctx context.Context) error {
	t.queue(`COMMIT`)
	tag, err := t.flush(ctx)
	var e *pgconn.PgError
	switch {
	case err == nil && tag.String() != "COMMIT":
		return fmt.Errorf("commit was answered with %s", tag)
	case err == nil, errors.As(err, &e) && e.Severity == "ERROR":
		return err
	}
	return &ledger.UncertainError{Err: err}
}

// Query implements ledger.Reader.
func (t *transaction) Query(ctx context.Context, query string, args ...any) (ledger.Rows, error) {
	if _, err := t.flush(ctx); err != nil {
		return nil, err
	}
	got, err := t.conn.Query(ctx, query, args...)
	return rows{got}, err
}

// Exec implements ledger.Tx.
func (t *transaction) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	t.queue(query, args...)
	tag, err := t.flush(ctx)
	return tag.RowsAffected(), err
}

// Do implements ledger.Tx.
func (t *transaction) Do(_ context.Context, query string, args ...any) error {
	t.queue(query, args...)
	return nil
}

// Insert implements ledger.Tx: one statement, one array per column.
func (t *transaction) Insert(_ context.Context, table *ledger.Table, added [][]any) error {
	args := make([]any, len(table.Columns))
	for i, c := range table.Columns {
		var err error
		switch c.Kind {
		case ledger.Int:
			args[i], err = column[int64](added, i)
		case ledger.Text:
			args[i], err = column[string](added, i)
		case ledger.Bytes:
			args[i], err = column[[]byte](added, i)
		}
		if err != nil {
			return fmt.Errorf("insert into %s: %s: %w", table.Name, c.Name, err)
		}
	}
	t.queue(table.InsertMany(), args...)
	return nil
}

// column returns the i-th value of every row.
func column[T any](added [][]any, i int) ([]T, error) {
	out := make([]T, len(added))
	for j, row := range added {
		v, ok := row[i].(T)
		if !ok {
			return nil, fmt.Errorf("a value is %T", row[i])
		}
		out[j] = v
	}
	return out, nil
}

// Lookup implements ledger.Tx: all questions in one round trip.
func (t *transaction) Lookup(ctx context.Context, query string, args [][]any, scan func(int, ledger.Rows) error) error {
	if _, err := t.flush(ctx); err != nil {
		return err
	}
	var b pgx.Batch
	for _, a := range args {
		b.Queue(query, a...)
	}
	results := t.conn.SendBatch(ctx, &b)
	for i := range args {
		got, err := results.Query()
		for err == nil && got.Next() {
			err = scan(i, rows{got})
		}
		if got != nil {
			got.Close()
			err = errors.Join(err, got.Err())
		}
		if err != nil {
			return errors.Join(err, results.Close())
		}
	}
	return results.Close()
}

// Refused implements ledger.Driver.
func (d *driver) Refused(err error) bool {
	var e *pgconn.PgError
	if !errors.As(err, &e) || len(e.Code) != 5 {
		return false
	}
	switch e.Code[:2] {
	case "22", "23", "54", "P0": // data, constraint, a limit of the program, raised by a trigger
		return true
	}
	return false
}

// Wake implements ledger.Driver.
func (d *driver) Wake(ctx context.Context, f func()) {
	for ctx.Err() == nil {
		d.listen(ctx, f)
		select { // the ledger polls meanwhile
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// listen calls f at every notification until the connection breaks.
func (d *driver) listen(ctx context.Context, f func()) {
	c, err := pgx.ConnectConfig(ctx, d.config)
	if err != nil {
		return
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = c.Close(end) // nothing was written over it
	}()
	if _, err := c.Exec(ctx, `LISTEN `+channel); err != nil {
		return
	}
	for {
		f()
		if _, err := c.WaitForNotification(ctx); err != nil {
			return
		}
	}
}

// Announce implements ledger.Driver.
func (d *driver) Announce(ctx context.Context, tx ledger.Tx) error {
	return tx.Do(ctx, `SELECT pg_notify('`+channel+`', '')`)
}

// Ping implements ledger.Driver.
func (d *driver) Ping(ctx context.Context) error {
	var readOnly bool
	err := d.pool.QueryRow(ctx, `SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean`).Scan(&readOnly)
	if err == nil && readOnly {
		err = errors.New("the database is read only")
	}
	return err
}

// Close implements ledger.Driver.
func (d *driver) Close() error {
	d.pool.Close()
	return nil
}
