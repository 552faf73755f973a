package sqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/ca/store/sqlite"
	"github.com/mayfly-ca/mayfly/ca/store/storetest"
)

// create makes a store in a folder of the test's.
func create(t testing.TB) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "data", "store")
	if err := sqlite.Create(context.Background(), path, storetest.Meta()); err != nil {
		t.Fatal(err)
	}
	return path
}

func handle(t testing.TB, path string) store.Store {
	t.Helper()
	s, err := sqlite.Open(context.Background(), path, storetest.Meta().RootFingerprint, storetest.StateKey)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t testing.TB) storetest.Open {
		path := create(t)
		return func(t testing.TB) store.Store { return handle(t, path) }
	})
}

func TestCreateAndOpen(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	path := create(t)
	for name, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700 | os.ModeDir} {
		if info, err := os.Stat(name); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if err := sqlite.Create(ctx, path, storetest.Meta()); !errors.Is(err, store.ErrExists) {
		t.Errorf("create again: %v", err)
	}
	if s := handle(t, path); s.Close() != nil {
		t.Error("close")
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if _, err := sqlite.Open(ctx, path, "bb22", store.StateKey{}); !errors.Is(err, store.ErrOtherRoot) {
		t.Errorf("another root's: %v", err)
	}
	missing := filepath.Join(t.TempDir(), "store")
	if _, err := sqlite.Open(ctx, missing, "", store.StateKey{}); !errors.Is(err, store.ErrMissing) {
		t.Errorf("missing: %v", err)
	}
	if _, err := os.Stat(missing); err == nil {
		t.Error("Open made a file")
	}
	if err := os.WriteFile(missing, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlite.Open(ctx, missing, "", store.StateKey{}); !errors.Is(err, store.ErrMissing) {
		t.Errorf("empty: %v", err)
	}
	if err := sqlite.Create(ctx, missing, storetest.Meta()); !errors.Is(err, store.ErrExists) {
		t.Errorf("create over an empty file: %v", err)
	}
	if err := os.WriteFile(missing, []byte("this is no database, whatever it may be called"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlite.Open(ctx, missing, "", store.StateKey{}); err == nil {
		t.Error("opened something else")
	}
	odd := filepath.Join(t.TempDir(), "a b?mode=memory#%41", "store")
	if err := sqlite.Create(ctx, odd, storetest.Meta()); err != nil {
		t.Errorf("a strange path: %v", err)
	}
	if info, err := os.Stat(odd); err != nil || info.Size() == 0 {
		t.Errorf("a strange path: %v", err)
	}
}

func BenchmarkRecord(b *testing.B) {
	storetest.BenchmarkRecord(b, func(t testing.TB) storetest.Open {
		path := create(t)
		return func(t testing.TB) store.Store { return handle(t, path) }
	})
}

// execute changes the file behind the store's back.
func execute(path string) func(t testing.TB, query string) {
	return func(t testing.TB, query string) {
		t.Helper()
		db, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec("PRAGMA busy_timeout = 10000; PRAGMA legacy_alter_table = ON; " + query); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func database(path string) storetest.Database {
	return storetest.Database{
		Open: func(t testing.TB) store.Store { return handle(t, path) },
		Try: func(t testing.TB, key store.StateKey) (store.Store, error) {
			return sqlite.Open(t.Context(), path, "", key)
		},
		Exec: execute(path),
		Restore: func(t testing.TB, r io.Reader) (storetest.Open, time.Time, error) {
			elsewhere := filepath.Join(t.TempDir(), "store")
			_, floor, err := sqlite.Restore(context.Background(), elsewhere, r, store.Event{})
			if _, there := os.Stat(elsewhere); err != nil && there == nil {
				t.Error("a failed restore left a store")
			}
			return func(t testing.TB) store.Store { return handle(t, elsewhere) }, floor, err
		},
	}
}

func TestDamage(t *testing.T) {
	t.Parallel()
	storetest.RunDamage(t, func(t testing.TB) storetest.Database { return database(create(t)) })
}

func TestUpgrade(t *testing.T) {
	t.Parallel()
	storetest.RunUpgrade(t, func(t testing.TB, version int64) storetest.Older {
		path := filepath.Join(t.TempDir(), "store")
		if err := sqlite.Shape(t.Context(), path, version); err != nil {
			t.Fatal(err)
		}
		return storetest.Older{Database: database(path), Driver: "sqlite", DSN: path}
	})
}

// The revoked ones of a repository that has many, by every way to say which it
// is: all of them, no others, newest first.
func TestRevokedOfMany(t *testing.T) {
	t.Parallel()
	path := create(t)
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
		want := 600 // of 6000 every second is of the repository, every fifth revoked
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

func TestCrash(t *testing.T) {
	path := ""
	if !storetest.IsCrashChild() {
		path = create(t)
	}
	storetest.RunCrash(t, "TestCrash", path, 20, handle)
}

func BenchmarkLists(b *testing.B) {
	path := create(b)
	storetest.BenchmarkLists(b, "sqlite", path, func(t testing.TB) store.Store { return handle(t, path) })
}
