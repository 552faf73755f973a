package storetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"
)

// BenchRows returns how many certificates a benchmark has: MAYFLY_BENCH_ROWS, or a
// million. There are five times as many events.
func BenchRows() int {
	if n, err := strconv.Atoi(os.Getenv("MAYFLY_BENCH_ROWS")); err == nil && n > 0 {
		return n
	}
	return 1_000_000
}

// The kinds of seeded rows. Each has its own repository, repository id, run, actor
// and identity, so that each filter has a value of each kind.
const (
	kindBig     = "big"     // half of all, over all the year, none revoked
	kindRevoked = "revoked" // an eighth, all revoked
	kindHalf    = "half"    // an eighth, every second one revoked
	kindOld     = "old"     // a sixteenth, all in the first eighth of the year
	kindBusy    = "busy"    // a hundredth, of the last day, all expired
	kindLive    = "live"    // a hundredth, of the last hour, all valid
	kindSmall   = "r77"     // one of 5,000, with few each
	kindNone    = "none"    // without any row
)

var kinds = []string{kindBig, kindRevoked, kindHalf, kindOld, kindBusy, kindLive, kindSmall, kindNone}

// These functions return a filter's value for the rows of a kind.
func repositoryOf(kind string) string { return "octo/" + kind }
func runOf(kind string) string        { return "run-" + kind }
func actorOf(kind string) string      { return "actor-" + kind }
func identityOf(kind string) string   { return "spiffe://ci.example.com/github/1/" + kind }

// Seed fills the database of a store that is not open with rows certificates of a
// year, five times as many events, and as many sessions. driver and dsn are those
// of database/sql: "sqlite" or "pgx". SQL within the database makes the rows, and
// then the indexes.
func Seed(b *testing.B, driver, dsn string, rows int) {
	b.Helper()
	start := time.Now()
	s := &seeder{rows: rows, now: time.Now(), random: "randomblob(16)"}
	prepare := []string{"PRAGMA busy_timeout = 10000", "PRAGMA synchronous = OFF", "PRAGMA cache_size = -400000", "PRAGMA temp_store = MEMORY"}
	indexes := `SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL AND tbl_name IN ('certificates', 'events', 'links', 'sessions', 'revocations')`
	if driver != "sqlite" {
		s.random = "uuid_send(gen_random_uuid())"
		prepare = []string{"SET synchronous_commit = off", "SET maintenance_work_mem = '1GB'", "SET max_parallel_maintenance_workers = 2"}
		indexes = `SELECT indexname, indexdef FROM pg_indexes WHERE tablename IN ('certificates', 'events', 'links', 'sessions', 'revocations')
			AND indexname NOT LIKE '%_pkey' AND indexname NOT LIKE '%_key'`
	}
	db, err := sql.Open(driver, dsn)
	if err == nil {
		db.SetMaxOpenConns(1)
		err = s.fill(db, prepare, indexes)
		err = errors.Join(err, db.Close())
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("%d certificates, %d events and %d sessions in %v", rows, 5*rows, rows, time.Since(start).Round(time.Second))
}

// seeder writes the SQL that makes rows.
type seeder struct {
	rows   int
	now    time.Time
	random string // SQL for 16 random bytes
}

// fill deletes events and links before it inserts rows: the chain of events begins
// again.
func (s *seeder) fill(db *sql.DB, prepare []string, indexes string) error {
	ctx := context.Background()
	exec := func(queries ...string) error {
		for _, q := range queries {
			if _, err := db.ExecContext(ctx, q); err != nil {
				return fmt.Errorf("%w: %.300s", err, q)
			}
		}
		return nil
	}
	if err := exec(prepare...); err != nil {
		return err
	}
	drop, create, err := readIndexes(ctx, db, indexes)
	if err != nil {
		return err
	}
	queries := append(drop, "BEGIN", "DELETE FROM events", "DELETE FROM links")
	queries = append(queries, s.certificates()...)
	queries = append(queries, s.events()...)
	queries = append(queries, s.sessions()...)
	queries = append(queries, "COMMIT")
	queries = append(append(queries, create...), "ANALYZE")
	return exec(queries...)
}

// readIndexes returns the statements that drop and create the indexes that query
// selects.
func readIndexes(ctx context.Context, db *sql.DB, query string) (drop, create []string, err error) {
	found, err := db.QueryContext(ctx, query)
	if err != nil {
		return nil, nil, err
	}
	for found.Next() {
		var name, text string
		if err := found.Scan(&name, &text); err != nil {
			return nil, nil, errors.Join(err, found.Close())
		}
		drop, create = append(drop, "DROP INDEX "+name), append(create, text)
	}
	return drop, create, errors.Join(found.Err(), found.Close())
}

// numbered begins a query with a table k of n rows. Each has its number i from 1,
// its kind, its time in microseconds, and whether it is revoked. n is a multiple of
// the number of certificates, and the kinds have the same proportions.
func (s *seeder) numbered(n int) string {
	last, day, hour := n*98/100, n*99/100, n
	now := s.now.UnixMicro()
	at := func(end time.Duration, span time.Duration, from, to int) string {
		return fmt.Sprintf("%d - (%d - i) * %d", now-end.Microseconds(), to, span.Microseconds()/int64(max(1, to-from)))
	}
	return fmt.Sprintf(`WITH RECURSIVE n(i) AS (SELECT CAST(1 AS BIGINT) UNION ALL SELECT i + 1 FROM n WHERE i < %d),
		m(i, kind, at) AS (SELECT i,
			CASE WHEN i > %d THEN 'live' WHEN i > %d THEN 'busy' WHEN i %% 2 = 0 THEN 'big' WHEN i <= %d THEN 'old'
				WHEN i %% 8 = 1 THEN 'revoked' WHEN i %% 8 = 3 THEN 'half' ELSE 'r' || (i %% 5000) END,
			CASE WHEN i > %d THEN %s WHEN i > %d THEN %s ELSE %s END FROM n),
		k(i, kind, at, revoked) AS (SELECT i, kind, at, CASE WHEN kind = 'revoked' THEN 1 WHEN kind = 'half' AND (i / 8) %% 2 = 0 THEN 1
			WHEN kind LIKE 'r%%' AND i %% 50 = 27 THEN 1 ELSE 0 END FROM m) `,
		n, day, last, n/8, day, at(time.Minute, 50*time.Minute, day, hour), last, at(90*time.Minute, 20*time.Hour, last, day),
		at(26*time.Hour, 365*24*time.Hour, 0, last))
}

func (s *seeder) certificates() []string {
	q := s.numbered(s.rows) + `INSERT INTO certificates (id, serial, profile, provider, identity, rule, run, engines, repository, repository_id, run_id, actor,
		token_issuer, token_id, single_use, token_iat, spki, aki, not_before, not_after, event_seq, revoked)
		SELECT at * 1024, ` + s.random + `, CASE WHEN i % 1000 = 0 THEN 'server' ELSE 'client' END, 'github', 'spiffe://ci.example.com/github/1/' || kind, 'rule', 'r', '["default"]',
		'octo/' || kind, kind, CASE WHEN kind LIKE 'r%' AND kind <> 'revoked' AND i % 3 = 0 THEN 'run' || (i / 4) ELSE 'run-' || kind END,
		CASE WHEN kind = 'big' AND i % 3 = 0 THEN 'a' || (i % 700) ELSE 'actor-' || kind END,
		'https://token.example.com', 'id' || i, 1, at, ` + s.random + `, ` + s.random + `, at - 60000000,
		at + CASE WHEN i % 1000 = 0 THEN 86400000000 ELSE 3600000000 END, 0, revoked FROM k`
	return []string{q,
		`INSERT INTO revocations (seq, cert_id, serial, aki, not_after, revoked_at, revoked_by, reason)
			SELECT id, id, serial, aki, not_after, id / 1024, 'ops', 'bench' FROM certificates WHERE revoked = 1`,
		`UPDATE state SET revision = (SELECT MAX(seq) FROM revocations)`,
	}
}

// events makes the events with one link each, as an issuer with little load does.
func (s *seeder) events() []string {
	n := 5 * s.rows
	return []string{
		s.numbered(n) + `INSERT INTO events (seq, time, type, actor, serial, identity, repository, run_id, rule, reason, count, detail)
			SELECT i, at, CASE WHEN kind = 'revoked' OR i % 100 = 0 THEN 'denied' WHEN i % 5000 = 1 THEN 'revoked' ELSE 'issued' END, 'ann', '',
			'spiffe://ci.example.com/github/1/' || kind, 'octo/' || kind, CASE WHEN i % 3 = 0 THEN 'run' || (i / 20) ELSE 'run-' || kind END, 'rule', 'why', 1, '' FROM k`,
		`INSERT INTO links (last_seq, first_seq, newest, hash) SELECT seq, seq, time, ` + s.random + ` FROM events`,
		fmt.Sprintf("UPDATE state SET head_seq = %d, head_time = %d", n, s.now.UnixMicro()),
		"DELETE FROM hours",
		fmt.Sprintf("WITH RECURSIVE n(i) AS (SELECT CAST(0 AS BIGINT) UNION ALL SELECT i + 1 FROM n WHERE i < 48) INSERT INTO hours (hour, issued, denied) SELECT %d - i * 3600000000, i * 1000, i * 3 FROM n",
			s.now.Truncate(time.Hour).UnixMicro()),
	}
}

// seededBlocks is how many blocks Seed makes: more than a page.
const seededBlocks = 200

// seededMachines is how many machines have a status.
const seededMachines = 100

// sessions makes ended sessions, sessions without a reported end, live sessions,
// blocks and statuses. Live sessions have a seen time in the future, longer than a
// benchmark runs.
func (s *seeder) sessions() []string {
	later := s.now.Add(2 * time.Hour).UnixMicro()
	return []string{
		s.numbered(s.rows) + fmt.Sprintf(`INSERT INTO sessions (id, engine, machine, serial, run, run_id, repository, identity, remote_addr, reason, opened_at, seen_at, closed_at, bytes_in, bytes_out)
			SELECT 'c' || i, CASE WHEN i %% 10 = 0 THEN 'other' ELSE 'default' END, 'spiffe://ci.example.com/engine/default/fly/2/m', 'serial-' || CASE WHEN kind LIKE 'r%%' THEN '' || i ELSE kind END,
			'run/1/1', CASE WHEN kind LIKE 'r%%' THEN 'run' || (i / 4) ELSE 'run-' || kind END, 'octo/' || kind, 'spiffe://ci.example.com/github/1/' || kind, '192.0.2.7:4242', CASE WHEN kind = 'half' AND i %% 64 = 11 THEN 'revoked' ELSE 'end' END,
			at, CASE WHEN kind = 'live' AND i %% 2 = 0 THEN %d ELSE at + 1000000 END,
			CASE WHEN kind = 'live' AND i %% 2 = 0 OR kind = 'half' AND i %% 16 = 3 THEN 0 ELSE at + 600000000 END, i, i * 100 FROM k`, later),
		fmt.Sprintf(`WITH RECURSIVE n(i) AS (SELECT CAST(1 AS BIGINT) UNION ALL SELECT i + 1 FROM n WHERE i < %d)
			INSERT INTO blocks (id, created_at, until, match, reason, created_by) SELECT 'b' || i, %d - i, %d, '{"run_id":"run' || i || '"}', 'why', 'ann' FROM n`,
			seededBlocks, s.now.UnixMicro(), s.now.Add(24*time.Hour).UnixMicro()),
		"UPDATE state SET blocks_version = blocks_version + 1",
		fmt.Sprintf(`WITH RECURSIVE n(i) AS (SELECT CAST(1 AS BIGINT) UNION ALL SELECT i + 1 FROM n WHERE i < %d)
			INSERT INTO statuses (engine, machine, state, version, engine_version, engine_socket, certificate_not_after, feed_at, seen_at)
			SELECT 'default', 'spiffe://ci.example.com/engine/default/fly/2/m' || i, 'listening', 'v1.2.3', 'engine:v0.21.8', 'ok', %d, %d, %d + i FROM n`,
			seededMachines, s.now.Add(24*time.Hour).UnixMicro(), s.now.UnixMicro(), s.now.UnixMicro()),
	}
}
