package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/mayfly-ca/mayfly/ca/store"
)

const (
	// minConns is the size of the pool if the URL has no pool_max_conns.
	minConns = 8
	// commitLock and migrationLock are the advisory locks of commits and of
	// migrations.
	commitLock    = 0x6d6179666c79_0001
	migrationLock = 0x6d6179666c79_0002
	// crlChannel is the NOTIFY channel of new sets of CRLs.
	crlChannel = "mayfly_crls"
)

// Rows of up to 8 kB stay whole and uncompressed: compression would cost more than
// all other work of a record.
var postgresDialect = dialect{
	goose: goose.DialectPostgres, integer: "BIGINT", bytes: "BYTEA", bodies: "WITH (toast_tuple_target = 8160)",
	countTables: `SELECT COUNT(to_regclass('meta')) + COUNT(to_regclass('goose_db_version'))`,
	lock:        fmt.Sprintf(`SELECT pg_advisory_lock(%d)`, migrationLock),
	unlock:      fmt.Sprintf(`SELECT pg_advisory_unlock(%d)`, migrationLock),
}

// postgresDB is one PostgreSQL database, shared by several issuers. They agree
// because every commit takes one advisory lock. Tokens, blocks, revocations, the
// floor and the chain of events are read and written under this lock.
type postgresDB struct {
	pool       *pgxpool.Pool
	migrations *sql.DB // over pool
	config     *pgx.ConnConfig
	turn       chan struct{} // holds one value: this process's turn to write
}

// connectPostgres opens the pool. If the database does not exist, it returns
// store.ErrMissing.
func connectPostgres(ctx context.Context, url string) (database, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, errors.New("the database URL is malformed") // err would quote the URL with its password
	}
	if !strings.Contains(url, "pool_max_conns") {
		cfg.MaxConns = max(cfg.MaxConns, minConns)
	}
	cfg.AfterConnect = configureConn
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		var e *pgconn.PgError
		if errors.As(err, &e) && e.Code == "3D000" { // no such database
			return nil, fmt.Errorf("%w: %w", store.ErrMissing, err)
		}
		return nil, err
	}
	return &postgresDB{pool: pool, migrations: stdlib.OpenDBFromPool(pool), config: cfg.ConnConfig.Copy(), turn: make(chan struct{}, 1)}, nil
}

// configureConn makes commits durable, whatever the server's default. It also keeps
// a replica that hangs in a commit from blocking the others.
func configureConn(ctx context.Context, c *pgx.Conn) error {
	_, err := c.Exec(ctx, `SET idle_in_transaction_session_timeout = '15s';
		SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') IN ('off', 'local')`)
	return err
}

func (d *postgresDB) schema() (*sql.DB, *dialect) { return d.migrations, &postgresDialect }

// beginSnapshot begins a read. PostgreSQL plans each list for its actual values: a
// generic plan would walk past a million events to find a rare type. The cost
// settings make the planner count rows and join row by row, and ignore where rows
// lie. By default the planner assumes that a common value is spread evenly. It
// would then search along the primary key, past a million rows without that value.
const beginSnapshot = `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
	SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL cpu_operator_cost = 100; SET LOCAL jit = off;
	SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off`

func (d *postgresDB) snapshot(ctx context.Context, f func(reader) error) error {
	return pgx.BeginTxFunc(ctx, d.pool, pgx.TxOptions{BeginQuery: beginSnapshot}, func(tx pgx.Tx) error {
		return f(postgresReader{tx})
	})
}

type postgresReader struct{ tx pgx.Tx }

func (r postgresReader) query(ctx context.Context, query string, args []any, scan func(row) error) error {
	rows, err := r.tx.Query(ctx, query, args...)
	if err != nil {
		return err
	}
	return scanPostgres(rows, scan)
}

// scanPostgres calls scan with every row and closes rows.
func scanPostgres(rows pgx.Rows, scan func(row) error) error {
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// update implements database. Each statement sees everything that was committed
// before it began (read committed, whatever the server's default). All statements
// after the first begin with the lock held.
func (d *postgresDB) update(ctx context.Context, f func(transaction) error) error {
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
	t := &postgresTx{conn: c.Conn()}
	t.batch.Queue(`BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE`)
	if _, err = t.exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(commitLock)); err == nil {
		err = f(t)
	}
	if err == nil {
		err = t.commit(ctx)
	}
	if err != nil && !c.Conn().IsClosed() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if _, rollback := c.Exec(undo, `ROLLBACK`); rollback != nil {
			err = errors.Join(err, c.Conn().Close(undo)) // the pool opens another
		}
	}
	return err
}

// postgresTx queues statements whose result is not needed at once, and sends them
// with the next one in one round trip.
type postgresTx struct {
	conn  *pgx.Conn
	batch pgx.Batch
}

// flush sends the queued statements and returns the tag of the last one.
func (t *postgresTx) flush(ctx context.Context) (last pgconn.CommandTag, err error) {
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

// commit ends the transaction. It treats a failure as certain only if the server
// itself reports it.
func (t *postgresTx) commit(ctx context.Context) error {
	t.batch.Queue(`COMMIT`)
	tag, err := t.flush(ctx)
	var e *pgconn.PgError
	switch {
	case err == nil && tag.String() != "COMMIT":
		return fmt.Errorf("commit was answered with %s", tag)
	case err == nil, errors.As(err, &e) && e.Severity == "ERROR":
		return err
	}
	return &uncertainError{err}
}

func (t *postgresTx) query(ctx context.Context, query string, args []any, scan func(row) error) error {
	if _, err := t.flush(ctx); err != nil {
		return err
	}
	rows, err := t.conn.Query(ctx, query, args...)
	if err != nil {
		return err
	}
	return scanPostgres(rows, scan)
}

func (t *postgresTx) exec(ctx context.Context, query string, args ...any) (int64, error) {
	t.batch.Queue(query, args...)
	tag, err := t.flush(ctx)
	return tag.RowsAffected(), err
}

func (t *postgresTx) do(_ context.Context, query string, args ...any) error {
	t.batch.Queue(query, args...)
	return nil
}

// insert implements transaction: one statement, one array per column.
func (t *postgresTx) insert(_ context.Context, to *table, rows [][]any) error {
	if len(rows) == 0 {
		return nil
	}
	args := make([]any, len(to.columns))
	for i, c := range to.columns {
		var err error
		switch c.kind {
		case kindInt:
			args[i], err = columnValues[int64](rows, i)
		case kindText:
			args[i], err = columnValues[string](rows, i)
		case kindBytes:
			args[i], err = columnValues[[]byte](rows, i)
		}
		if err != nil {
			return fmt.Errorf("insert into %s: %s: %w", to.name, c.name, err)
		}
	}
	t.batch.Queue(to.insertMany, args...)
	return nil
}

// columnValues returns the i-th value of every row.
func columnValues[T any](rows [][]any, i int) ([]T, error) {
	out := make([]T, len(rows))
	for j, row := range rows {
		v, ok := row[i].(T)
		if !ok {
			return nil, fmt.Errorf("a value is %T", row[i])
		}
		out[j] = v
	}
	return out, nil
}

// lookup implements transaction: all queries in one round trip.
func (t *postgresTx) lookup(ctx context.Context, query string, args [][]any, scan func(int, row) error) error {
	if _, err := t.flush(ctx); err != nil {
		return err
	}
	var b pgx.Batch
	for _, a := range args {
		b.Queue(query, a...)
	}
	results := t.conn.SendBatch(ctx, &b)
	for i := range args {
		rows, err := results.Query()
		if err == nil {
			err = scanPostgres(rows, func(r row) error { return scan(i, r) })
		}
		if err != nil {
			return errors.Join(err, results.Close())
		}
	}
	return results.Close()
}

func (d *postgresDB) refused(err error) bool {
	var e *pgconn.PgError
	if !errors.As(err, &e) || len(e.Code) != 5 {
		return false
	}
	switch e.Code[:2] {
	case "22", "23", "54", "P0": // data, constraint, program limit, raised by a trigger
		return true
	}
	return false
}

func (d *postgresDB) watch(ctx context.Context, f func()) {
	for ctx.Err() == nil {
		d.listen(ctx, f)
		select { // the watcher polls meanwhile
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// listen calls f at every notification until the connection breaks.
func (d *postgresDB) listen(ctx context.Context, f func()) {
	c, err := pgx.ConnectConfig(ctx, d.config)
	if err != nil {
		return
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = c.Close(end) // no writes are lost
	}()
	if _, err := c.Exec(ctx, `LISTEN `+crlChannel); err != nil {
		return
	}
	for {
		f()
		if _, err := c.WaitForNotification(ctx); err != nil {
			return
		}
	}
}

func (d *postgresDB) announce(ctx context.Context, tx transaction) error {
	return tx.do(ctx, `SELECT pg_notify('`+crlChannel+`', '')`)
}

func (d *postgresDB) ping(ctx context.Context) error {
	var readOnly bool
	err := d.pool.QueryRow(ctx, `SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean`).Scan(&readOnly)
	if err == nil && readOnly {
		err = errors.New("the database is read only")
	}
	return err
}

func (d *postgresDB) close() error {
	err := d.migrations.Close()
	d.pool.Close()
	return err
}
