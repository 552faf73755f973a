package ledger

import (
	"context"
	"crypto/rand"
	"database/sql"
	_ "embed"
	"fmt"
	"strings"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"

	"github.com/mayfly-ca/mayfly/ca/store"
)

var (
	//go:embed migrations/0001_init.sql
	migrationInit string
	//go:embed migrations/0002_event_kinds.sql
	migrationEventKinds string
	//go:embed migrations/0003_revoked_lists.sql
	migrationRevokedLists string
	//go:embed migrations/0004_login_macs.sql
	migrationLoginMACs string
	//go:embed migrations/0005_statuses.sql
	migrationStatuses string
)

// migrations are the versions of the shape, in order.
var migrations = []struct {
	version int64
	text    string
}{{1, migrationInit}, {2, migrationEventKinds}, {3, migrationRevokedLists}, {4, migrationLoginMACs}, {5, migrationStatuses}}

// Version is the version of the shape that this program reads and writes.
const Version = 5

// Kind is the type of a column.
type Kind uint8

// The three kinds of values that a store holds.
const (
	Int Kind = iota
	Text
	Bytes
)

// Column is one column of a Table.
type Column struct {
	Name string
	Kind Kind
}

// Table is what Insert needs to know, and Backup.
type Table struct {
	Name    string
	Columns []Column

	insertOne, insertMany string
}

// Names joins the column names with commas.
func (t *Table) Names() string {
	names := make([]string, len(t.Columns))
	for i, c := range t.Columns {
		names[i] = c.Name
	}
	return strings.Join(names, ", ")
}

// table reads a compact description: "name:i name:t name:b".
func table(name, columns string) *Table {
	t := &Table{Name: name}
	for _, f := range strings.Fields(columns) {
		n, k, _ := strings.Cut(f, ":")
		t.Columns = append(t.Columns, Column{n, map[string]Kind{"i": Int, "t": Text, "b": Bytes}[k]})
	}
	t.insertOne = fmt.Sprintf("INSERT INTO %s (%s) VALUES (?%s)", t.Name, t.Names(), strings.Repeat(", ?", len(t.Columns)-1))
	arrays := make([]string, len(t.Columns))
	for i, c := range t.Columns {
		arrays[i] = fmt.Sprintf("$%d::%s[]", i+1, [...]string{Int: "bigint", Text: "text", Bytes: "bytea"}[c.Kind])
	}
	t.insertMany = fmt.Sprintf("INSERT INTO %s (%s) SELECT * FROM unnest(%s)", t.Name, t.Names(), strings.Join(arrays, ", "))
	return t
}

// The tables, in the order in which a backup writes them.
var (
	tableMeta         = table("meta", "id:i root_fingerprint:t trust_domain:t created_at:i cursor_key:b")
	tableState        = table("state", "id:i floor:i blocks_version:i revision:i head_seq:i head_hash:b head_time:i disorder:i")
	tableCertificates = table("certificates", "id:i serial:b profile:t provider:t identity:t rule:t run:t engines:t repository:t repository_id:t run_id:t actor:t token_issuer:t token_id:t single_use:i token_iat:i spki:b aki:b not_before:i not_after:i event_seq:i")
	tableBodies       = table("bodies", "id:i claims:b tbs:b signature:b")
	tableTokens       = table("tokens", "token:b cert_id:i")
	tableRevocations  = table("revocations", "seq:i cert_id:i serial:b aki:b not_after:i revoked_at:i revoked_by:t reason:t")
	tableBlocks       = table("blocks", "id:t created_at:i until:i match:t reason:t created_by:t")
	tableCRLState     = table("crl_state", "id:i number:i signed_at:i revision:i")
	tableCRLs         = table("crls", "number:i aki:b der:b")
	tableEvents       = table("events", "seq:i time:i type:t actor:t serial:t identity:t repository:t run_id:t rule:t reason:t count:i detail:t")
	tableLinks        = table("links", "last_seq:i first_seq:i newest:i hash:b")
	tableCheckpoints  = table("checkpoints", "seq:i hash:b pruned_at:i")
	tableHours        = table("hours", "hour:i issued:i denied:i")
	tableSessions     = table("sessions", "id:t engine:t machine:t serial:t run:t run_id:t repository:t identity:t remote_addr:t reason:t opened_at:i seen_at:i closed_at:i bytes_in:i bytes_out:i")
	tableLogins       = table("logins", "id:t provider:t subject:t claims:b created_at:i expires_at:i mac:b")
)

// ParseRow reads a line of a backup that is a row of table.
func ParseRow(table string, line []byte) ([]any, error) {
	for _, t := range backupTables {
		if t.Name == table {
			return t.parse(line)
		}
	}
	return nil, fmt.Errorf("unknown table %q", table)
}

// Migrate brings the shape to Version. The caller keeps others out. A shape of
// a later version is store.ErrNewer and stays as it is.
func Migrate(ctx context.Context, dialect database.Dialect, db *sql.DB, d Dialect) error {
	return MigrateTo(ctx, dialect, db, d, Version)
}

// MigrateTo is Migrate to an earlier version than Version, as tests need.
func MigrateTo(ctx context.Context, dialect database.Dialect, db *sql.DB, d Dialect, version int64) error {
	words := strings.NewReplacer("@int", d.Int, "@bytes", d.Bytes, "@clustered", d.Clustered, "@bodies", d.Bodies)
	var steps []*goose.Migration
	for _, m := range migrations {
		text := words.Replace(m.text)
		steps = append(steps, goose.NewGoMigration(m.version, &goose.GoFunc{
			RunTx: func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, text)
				return err
			},
		}, nil))
	}
	p, err := goose.NewProvider(dialect, db, nil,
		goose.WithGoMigrations(steps...),
		goose.WithDisableGlobalRegistry(true),
		goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return fmt.Errorf("migrate store: %w", err)
	}
	there, err := p.GetDBVersion(ctx) // makes goose's table where it is missing
	if err != nil {
		return fmt.Errorf("migrate store: %w", err)
	}
	if there > Version {
		return fmt.Errorf("%w: it has shape %d, this program knows %d: start the mayfly-issuer that it was last used with, or a later one (or make a new store from a backup taken before)",
			store.ErrNewer, there, Version)
	}
	if _, err := p.UpTo(ctx, version); err != nil {
		return fmt.Errorf("migrate store: %w", err)
	}
	return nil
}

// SchemaVersion reads the version of the shape of db.
func SchemaVersion(ctx context.Context, db *sql.DB) (int64, error) {
	var v int64
	err := db.QueryRowContext(ctx, `SELECT COALESCE(MAX(version_id), 0) FROM goose_db_version WHERE is_applied`).Scan(&v)
	if err != nil {
		return 0, fmt.Errorf("read version of store: %w", err)
	}
	return v, nil
}

// Found writes the first rows of an empty store.
func Found(ctx context.Context, tx Tx, m store.Meta) error {
	if m.RootFingerprint == "" || m.TrustDomain == "" || m.CreatedAt.IsZero() {
		return fmt.Errorf("store needs a root fingerprint, a trust domain and a creation time")
	}
	floor := micro(m.CreatedAt.Truncate(second))
	if err := tx.Insert(ctx, tableState, [][]any{{int64(1), floor, int64(1), int64(0), int64(0), make([]byte, 32), int64(0), int64(0)}}); err != nil {
		return err
	}
	if err := tx.Insert(ctx, tableCRLState, [][]any{{int64(1), int64(0), int64(0), int64(-1)}}); err != nil {
		return err
	}
	return insertMeta(ctx, tx, m)
}

// insertMeta writes the row whose presence makes a database a store.
func insertMeta(ctx context.Context, tx Tx, m store.Meta) error {
	key := make([]byte, 32)
	rand.Read(key)
	return tx.Insert(ctx, tableMeta, [][]any{{int64(1), m.RootFingerprint, m.TrustDomain, micro(m.CreatedAt.Truncate(second)), key}})
}

// readMeta reads what insertMeta wrote; nil when there is none.
func readMeta(ctx context.Context, r Reader) (*store.Meta, []byte, error) {
	var m store.Meta
	var created int64
	var key []byte
	found, err := one(ctx, r, `SELECT root_fingerprint, trust_domain, created_at, cursor_key FROM meta`, nil,
		&m.RootFingerprint, &m.TrustDomain, &created, &key)
	if err != nil || !found {
		return nil, nil, err
	}
	m.CreatedAt = fromMicro(created)
	return &m, key, nil
}

// InsertMany is the statement that adds many rows, its parameters one
// PostgreSQL array per column.
func (t *Table) InsertMany() string { return t.insertMany }

// InsertOne is the statement that adds one row.
func (t *Table) InsertOne() string { return t.insertOne }
