package sqlstore

import (
	"context"
	"crypto/rand"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pressly/goose/v3"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// migrations are SQL files, in the order of their names. Each one changes the
// tables from one version to the next, beginning with version 1.
//
//go:embed migrations/*.sql
var migrations embed.FS

// version is the version of the tables that this program reads and writes.
const version = 5

// kind is the type of a column.
type kind uint8

const (
	kindInt kind = iota
	kindText
	kindBytes
)

// column is one column of a table.
type column struct {
	name string
	kind kind
}

// table holds what insert and the backup need to know about a table.
type table struct {
	name    string
	columns []column

	insertOne  string // adds one row
	insertMany string // adds many; each parameter is a PostgreSQL array of one column
}

func (t *table) columnNames() []string {
	names := make([]string, len(t.columns))
	for i, c := range t.columns {
		names[i] = c.name
	}
	return names
}

// newTable parses a compact description: "name:i name:t name:b".
func newTable(name, columns string) *table {
	t := &table{name: name}
	var arrays []string
	for i, f := range strings.Fields(columns) {
		n, k, _ := strings.Cut(f, ":")
		c := column{n, map[string]kind{"i": kindInt, "t": kindText, "b": kindBytes}[k]}
		t.columns = append(t.columns, c)
		arrays = append(arrays, fmt.Sprintf("$%d::%s[]", i+1, [...]string{kindInt: "bigint", kindText: "text", kindBytes: "bytea"}[c.kind]))
	}
	into := fmt.Sprintf("INSERT INTO %s (%s) ", name, strings.Join(t.columnNames(), ", "))
	t.insertOne = into + "VALUES (?" + strings.Repeat(", ?", len(t.columns)-1) + ")"
	t.insertMany = into + "SELECT * FROM unnest(" + strings.Join(arrays, ", ") + ")"
	return t
}

// The tables, in the order of a backup.
var (
	tableMeta         = newTable("meta", "id:i root_fingerprint:t trust_domain:t created_at:i cursor_key:b")
	tableState        = newTable("state", "id:i floor:i blocks_version:i revision:i head_seq:i head_hash:b head_time:i disorder:i")
	tableCertificates = newTable("certificates", "id:i serial:b profile:t provider:t identity:t rule:t run:t engines:t repository:t repository_id:t run_id:t actor:t token_issuer:t token_id:t single_use:i token_iat:i spki:b aki:b not_before:i not_after:i event_seq:i")
	tableBodies       = newTable("bodies", "id:i claims:b tbs:b signature:b")
	tableTokens       = newTable("tokens", "token:b cert_id:i")
	tableRevocations  = newTable("revocations", "seq:i cert_id:i serial:b aki:b not_after:i revoked_at:i revoked_by:t reason:t")
	tableBlocks       = newTable("blocks", "id:t created_at:i until:i match:t reason:t created_by:t")
	tableCRLState     = newTable("crl_state", "id:i number:i signed_at:i revision:i")
	tableCRLs         = newTable("crls", "number:i aki:b der:b")
	tableEvents       = newTable("events", "seq:i time:i type:t actor:t serial:t identity:t repository:t run_id:t rule:t reason:t count:i detail:t")
	tableLinks        = newTable("links", "last_seq:i first_seq:i newest:i hash:b")
	tableCheckpoints  = newTable("checkpoints", "seq:i hash:b pruned_at:i")
	tableHours        = newTable("hours", "hour:i issued:i denied:i")
	tableSessions     = newTable("sessions", "id:t engine:t machine:t serial:t run:t run_id:t repository:t identity:t remote_addr:t reason:t opened_at:i seen_at:i closed_at:i bytes_in:i bytes_out:i")
	tableLogins       = newTable("logins", "id:t provider:t subject:t claims:b created_at:i expires_at:i mac:b")
)

// migrateExisting migrates the tables of d to version. If there are none, it
// returns store.ErrMissing.
func migrateExisting(ctx context.Context, d database) error {
	db, dialect := d.schema()
	var tables int
	var present int64
	switch err := db.QueryRowContext(ctx, dialect.countTables).Scan(&tables); {
	case err != nil:
		return err
	case tables < 2:
		return store.ErrMissing
	}
	err := db.QueryRowContext(ctx, `SELECT COALESCE(MAX(version_id), 0) FROM goose_db_version WHERE is_applied`).Scan(&present)
	if err != nil || present == version {
		return err
	}
	return migrate(ctx, d, version)
}

// migrate changes the tables of d to version to. It locks out other processes.
// Tables of a later version stay unchanged, and migrate returns store.ErrNewer.
func migrate(ctx context.Context, d database, to int64) (err error) {
	db, dialect := d.schema()
	if dialect.lock != "" {
		c, err := db.Conn(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.Close()) }()
		if _, err := c.ExecContext(ctx, dialect.lock); err != nil {
			return err
		}
		defer func() {
			_, unlock := c.ExecContext(ctx, dialect.unlock)
			err = errors.Join(err, unlock)
		}()
	}
	words := strings.NewReplacer("@int", dialect.integer, "@bytes", dialect.bytes, "@clustered", dialect.clustered, "@bodies", dialect.bodies)
	files, err := migrations.ReadDir("migrations")
	if err != nil {
		return err
	}
	var steps []*goose.Migration
	for i, file := range files {
		text, err := migrations.ReadFile("migrations/" + file.Name())
		if err != nil {
			return err
		}
		step := func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, words.Replace(string(text)))
			return err
		}
		steps = append(steps, goose.NewGoMigration(int64(i+1), &goose.GoFunc{RunTx: step}, nil))
	}
	p, err := goose.NewProvider(dialect.goose, db, nil, goose.WithGoMigrations(steps...), goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return fmt.Errorf("migrate store: %w", err)
	}
	present, err := p.GetDBVersion(ctx) // makes goose's table if it is missing
	if err != nil {
		return fmt.Errorf("migrate store: %w", err)
	}
	if present > version {
		return fmt.Errorf("%w: it has shape %d, this program knows %d: start the mayfly-issuer that it was last used with, or a later one (or make a new store from a backup taken before)",
			store.ErrNewer, present, version)
	}
	if _, err := p.UpTo(ctx, to); err != nil {
		return fmt.Errorf("migrate store: %w", err)
	}
	return nil
}

// insertFirstRows writes the first rows of an empty store.
func insertFirstRows(ctx context.Context, tx transaction, m store.Meta) error {
	if m.RootFingerprint == "" || m.TrustDomain == "" || m.CreatedAt.IsZero() {
		return fmt.Errorf("store needs a root fingerprint, a trust domain and a creation time")
	}
	floor := micro(m.CreatedAt.Truncate(time.Second))
	if err := tx.insert(ctx, tableState, [][]any{{int64(1), floor, int64(1), int64(0), int64(0), make([]byte, 32), int64(0), int64(0)}}); err != nil {
		return err
	}
	if err := tx.insert(ctx, tableCRLState, [][]any{{int64(1), int64(0), int64(0), int64(-1)}}); err != nil {
		return err
	}
	return insertMeta(ctx, tx, m)
}

// insertMeta writes the row that makes a database a store.
func insertMeta(ctx context.Context, tx transaction, m store.Meta) error {
	key := make([]byte, 32)
	rand.Read(key)
	return tx.insert(ctx, tableMeta, [][]any{{int64(1), m.RootFingerprint, m.TrustDomain, micro(m.CreatedAt.Truncate(time.Second)), key}})
}

// readMeta reads the row of insertMeta, or returns nil if there is none.
func readMeta(ctx context.Context, r reader) (*store.Meta, []byte, error) {
	var m store.Meta
	var created int64
	var key []byte
	found, err := queryRow(ctx, r, `SELECT root_fingerprint, trust_domain, created_at, cursor_key FROM meta`, nil,
		&m.RootFingerprint, &m.TrustDomain, &created, &key)
	if err != nil || !found {
		return nil, nil, err
	}
	m.CreatedAt = fromMicro(created)
	return &m, key, nil
}
