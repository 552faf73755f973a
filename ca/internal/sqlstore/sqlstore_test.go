package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/catest"
	"github.com/mayfly-ca/mayfly/ca/internal/sqlstore"
	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/ca/store/storetest"
)

// onBoth runs f as a subtest for each database. place returns the DSN of a place
// for a store that is not made yet.
func onBoth[T interface {
	testing.TB
	Run(string, func(T)) bool
}](t T, f func(t T, place func(t testing.TB) (dsn string))) {
	t.Run("sqlite", func(t T) {
		f(t, func(t testing.TB) string { return filepath.Join(t.TempDir(), "data", "store") })
	})
	t.Run("postgres", func(t T) { f(t, catest.StartPostgres(t).Database) })
}

// create makes a store and returns its DSN.
func create(t testing.TB, place func(testing.TB) string) string {
	t.Helper()
	dsn := place(t)
	if err := sqlstore.Create(context.Background(), dsn, storetest.Meta()); err != nil {
		t.Fatal(err)
	}
	return dsn
}

func handle(t testing.TB, dsn string) store.Store {
	t.Helper()
	s, err := sqlstore.Open(context.Background(), dsn, storetest.Meta().RootFingerprint, storetest.StateKey)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func handles(dsn string) storetest.Open {
	return func(t testing.TB) store.Store { return handle(t, dsn) }
}

func TestConformance(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, place func(testing.TB) string) {
		t.Parallel()
		storetest.Run(t, func(t testing.TB) storetest.Open { return handles(create(t, place)) })
	})
}

func BenchmarkRecord(b *testing.B) {
	onBoth(b, func(b *testing.B, place func(testing.TB) string) {
		storetest.BenchmarkRecord(b, func(t testing.TB) storetest.Open { return handles(create(t, place)) })
	})
}

func BenchmarkLists(b *testing.B) {
	onBoth(b, func(b *testing.B, place func(testing.TB) string) {
		dsn := create(b, place)
		storetest.BenchmarkLists(b, driverName(dsn), dsn, handles(dsn))
	})
}

// driverName returns the name of dsn's driver in database/sql.
func driverName(dsn string) string {
	if sqlstore.IsPostgres(dsn) {
		return "pgx"
	}
	return "sqlite"
}

// execute returns a function that changes a database without its store.
func execute(dsn string) func(t testing.TB, query string) {
	return func(t testing.TB, query string) {
		t.Helper()
		db, err := sql.Open(driverName(dsn), dsn)
		if err != nil {
			t.Fatal(err)
		}
		if !sqlstore.IsPostgres(dsn) {
			query = "PRAGMA busy_timeout = 10000; PRAGMA legacy_alter_table = ON; " + query
		}
		if _, err := db.ExecContext(context.Background(), query); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func database(place func(testing.TB) string, dsn string) storetest.Database {
	return storetest.Database{
		Open: handles(dsn),
		Try: func(t testing.TB, key store.StateKey) (store.Store, error) {
			return sqlstore.Open(t.Context(), dsn, "", key)
		},
		Exec: execute(dsn),
		Restore: func(t testing.TB, r io.Reader) (storetest.Open, time.Time, error) {
			elsewhere := place(t)
			floor, err := sqlstore.Restore(context.Background(), elsewhere, r, storetest.Meta().RootFingerprint, store.Event{})
			if err != nil {
				noStore(t, elsewhere)
			}
			return handles(elsewhere), floor, err
		},
	}
}

// noStore checks that a failed restore left nothing behind.
func noStore(t testing.TB, dsn string) {
	t.Helper()
	if _, err := sqlstore.Open(context.Background(), dsn, "", store.StateKey{}); !errors.Is(err, store.ErrMissing) {
		t.Errorf("a failed restore left a store: %v", err)
	}
	if _, err := os.Stat(dsn); err == nil {
		t.Error("a failed restore left a file")
	}
}

func TestDamage(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, place func(testing.TB) string) {
		t.Parallel()
		storetest.RunDamage(t, func(t testing.TB) storetest.Database { return database(place, create(t, place)) })
	})
}

func TestUpgrade(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, place func(testing.TB) string) {
		t.Parallel()
		storetest.RunUpgrade(t, sqlstore.Version, func(t testing.TB, version int64) storetest.Older {
			dsn := place(t)
			if !sqlstore.IsPostgres(dsn) {
				emptyFile(t, dsn)
			}
			if err := sqlstore.CreateVersion(t.Context(), dsn, version); err != nil {
				t.Fatal(err)
			}
			return storetest.Older{Database: database(place, dsn), Driver: driverName(dsn), DSN: dsn, ParseRow: sqlstore.ParseRow}
		})
	})
}

func emptyFile(t testing.TB, path string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
}

// Killing a recording process loses no acknowledged record.
func TestCrash(t *testing.T) {
	if dsn := storetest.CrashChild(); dsn != "" {
		storetest.RecordForEver(handle(t, dsn))
	}
	onBoth(t, func(t *testing.T, place func(testing.TB) string) {
		storetest.RunCrash(t, "TestCrash", create(t, place), 20, handle)
	})
}

// Open, Create and Restore refuse the same things for both databases.
func TestRefused(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, place func(testing.TB) string) {
		t.Parallel()
		ctx := t.Context()
		dsn := place(t)
		if _, err := sqlstore.Open(ctx, dsn, "", store.StateKey{}); !errors.Is(err, store.ErrMissing) {
			t.Errorf("missing: %v", err)
		}
		errs := make(chan error, 2)
		for range 2 {
			go func() { errs <- sqlstore.Create(ctx, dsn, storetest.Meta()) }()
		}
		if a, b := <-errs, <-errs; (a == nil) == (b == nil) || !errors.Is(errors.Join(a, b), store.ErrExists) {
			t.Errorf("two at once: %v, %v", a, b)
		}
		s := handle(t, dsn)
		var backup strings.Builder
		if err := errors.Join(s.Backup(ctx, &backup), s.Close()); err != nil {
			t.Error(err)
		}
		if _, err := sqlstore.Open(ctx, dsn, "bb22", store.StateKey{}); !errors.Is(err, store.ErrOtherRoot) {
			t.Errorf("of another root: %v", err)
		}
		if _, err := sqlstore.Restore(ctx, dsn, strings.NewReader(backup.String()), "aa11", store.Event{}); !errors.Is(err, store.ErrExists) {
			t.Errorf("restore over a store: %v", err)
		}
		elsewhere := place(t)
		if _, err := sqlstore.Restore(ctx, elsewhere, strings.NewReader(backup.String()), "bb22", store.Event{}); !errors.Is(err, store.ErrOtherRoot) {
			t.Errorf("restore of another root: %v", err)
		}
		noStore(t, elsewhere)
	})
}

func TestPostgresURL(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	if _, err := sqlstore.Open(ctx, catest.StartPostgres(t).Database(t)+"&dbname=nothing", "", store.StateKey{}); !errors.Is(err, store.ErrMissing) {
		t.Errorf("no such database: %v", err)
	}
	for _, bad := range []string{"postgres://ann:secret@%zz", "postgres://ann:secret@127.0.0.1:1/x", "postgres://ann:secret@localhost:1,127.0.0.1:1/x?sslmode=maybe"} {
		if _, err := sqlstore.Open(ctx, bad, "", store.StateKey{}); err == nil || errors.Is(err, store.ErrMissing) || strings.Contains(err.Error(), "secret") {
			t.Errorf("malformed, or no server: %v", err)
		}
	}
}

func TestSQLiteFile(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "data", "store")
	if err := sqlstore.Create(ctx, path, storetest.Meta()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700 | os.ModeDir} {
		if info, err := os.Stat(name); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if err := sqlstore.Create(ctx, path, storetest.Meta()); !errors.Is(err, store.ErrExists) {
		t.Errorf("create again: %v", err)
	}
	if s := handle(t, path); s.Close() != nil {
		t.Error("close")
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	missing := filepath.Join(t.TempDir(), "store")
	if _, err := sqlstore.Open(ctx, missing, "", store.StateKey{}); !errors.Is(err, store.ErrMissing) {
		t.Errorf("missing: %v", err)
	}
	if _, err := os.Stat(missing); err == nil {
		t.Error("Open made a file")
	}
	emptyFile(t, missing)
	if _, err := sqlstore.Open(ctx, missing, "", store.StateKey{}); !errors.Is(err, store.ErrMissing) {
		t.Errorf("empty: %v", err)
	}
	if err := sqlstore.Create(ctx, missing, storetest.Meta()); !errors.Is(err, store.ErrExists) {
		t.Errorf("create over an empty file: %v", err)
	}
	if err := os.WriteFile(missing, []byte("this is no database, whatever it may be called"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlstore.Open(ctx, missing, "", store.StateKey{}); err == nil {
		t.Error("opened something else")
	}
	odd := filepath.Join(t.TempDir(), "a b?mode=memory#%41", "store")
	if err := sqlstore.Create(ctx, odd, storetest.Meta()); err != nil {
		t.Errorf("a strange path: %v", err)
	}
	if info, err := os.Stat(odd); err != nil || info.Size() == 0 {
		t.Errorf("a strange path: %v", err)
	}
}

// The revoked certificates of a repository that has many, selected by each filter
// that fits: all of them, no others, newest first.
func TestRevokedOfMany(t *testing.T) {
	t.Parallel()
	path := create(t, func(t testing.TB) string { return filepath.Join(t.TempDir(), "store") })
	execute(path)(t, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6000)
		INSERT INTO certificates SELECT i * 1024, randomblob(16), 'client', 'github', 'spiffe://td/' || (i % 2), 'rule', 'r', '[]',
		'octo/' || (i % 2), i % 2, 'run' || (i % 2), 'actor' || (i % 2), 'iss', 'id' || i, 1, i, randomblob(32), randomblob(20), i, i, 0, CASE WHEN i % 5 = 0 THEN 1 ELSE 0 END FROM n;
		INSERT INTO revocations SELECT id, id, serial, aki, not_after, id / 1024, 'ann', 'why' FROM certificates WHERE id / 1024 % 5 = 0`)
	s := handle(t, path)
	defer s.Close()
	for name, m := range map[string]store.Match{
		"repository": {Repository: "octo/0"}, "repository id": {RepositoryID: "0"}, "run": {RunID: "run0"}, "actor": {Actor: "actor0"},
		"identity": {Identity: "spiffe://td/0"}, "two": {Repository: "octo/0", Actor: "actor0"}, "none": {Repository: "octo/0", Actor: "actor1"},
	} {
		want := 600 // of 6000, every second is of the repository and every fifth is revoked
		if name == "none" {
			want = 0
		}
		f := store.CertificateFilter{Match: m, Status: "revoked", Limit: 250}
		n, last := 0, time.Now()
		for {
			page, next, err := s.Certificates(t.Context(), f)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range page {
				if c.RevokedAt == nil || c.Repository != "octo/0" || !c.IssuedAt.Before(last) {
					t.Fatalf("%s: %+v after %v", name, c, last)
				}
				last = c.IssuedAt
			}
			n += len(page)
			if f.Cursor = next; next == "" {
				break
			}
		}
		if n != want {
			t.Errorf("%s: %d, want %d", name, n, want)
		}
	}
}
