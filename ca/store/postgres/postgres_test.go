package postgres_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/ca/store/postgres"
	"github.com/mayfly-ca/mayfly/ca/store/postgres/postgrestest"
	"github.com/mayfly-ca/mayfly/ca/store/storetest"
)

func create(t testing.TB, server *postgrestest.Server) (url string) {
	t.Helper()
	url = server.Database(t)
	if err := postgres.Create(context.Background(), url, storetest.Meta()); err != nil {
		t.Fatal(err)
	}
	return url
}

func handle(t testing.TB, url string) store.Store {
	t.Helper()
	s, err := postgres.Open(context.Background(), url, storetest.Meta().RootFingerprint, storetest.StateKey)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	t.Parallel()
	server := postgrestest.Start(t)
	storetest.Run(t, func(t testing.TB) storetest.Open {
		url := create(t, server)
		return func(t testing.TB) store.Store { return handle(t, url) }
	})
}

func TestCreateAndOpen(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := postgrestest.Start(t)
	url := server.Database(t)
	if _, err := postgres.Open(ctx, url, "", store.StateKey{}); !errors.Is(err, store.ErrMissing) {
		t.Errorf("empty: %v", err)
	}
	errs := make(chan error, 2)
	for range 2 {
		go func() { errs <- postgres.Create(ctx, url, storetest.Meta()) }()
	}
	if a, b := <-errs, <-errs; (a == nil) == (b == nil) || !errors.Is(errors.Join(a, b), store.ErrExists) {
		t.Errorf("two at once: %v, %v", a, b)
	}
	if err := handle(t, url).Close(); err != nil {
		t.Error(err)
	}
	if _, err := postgres.Open(ctx, url, "bb22", store.StateKey{}); !errors.Is(err, store.ErrOtherRoot) {
		t.Errorf("another root's: %v", err)
	}
	if _, err := postgres.Open(ctx, url+"&dbname=nothing", "", store.StateKey{}); !errors.Is(err, store.ErrMissing) {
		t.Errorf("no such database: %v", err)
	}
	for _, bad := range []string{"postgres://ann:secret@%zz", "postgres://ann:secret@127.0.0.1:1/x", "postgres://ann:secret@localhost:1,127.0.0.1:1/x?sslmode=maybe"} {
		if _, err := postgres.Open(ctx, bad, "", store.StateKey{}); err == nil || errors.Is(err, store.ErrMissing) || strings.Contains(err.Error(), "secret") {
			t.Errorf("malformed, or nobody there: %v", err)
		}
	}
}

func BenchmarkRecord(b *testing.B) {
	server := postgrestest.Start(b)
	storetest.BenchmarkRecord(b, func(t testing.TB) storetest.Open {
		url := create(t, server)
		return func(t testing.TB) store.Store { return handle(t, url) }
	})
}

// execute changes the database behind the store's back.
func execute(url string) func(t testing.TB, query string) {
	return func(t testing.TB, query string) {
		t.Helper()
		ctx := context.Background()
		c, err := pgx.Connect(ctx, url)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Exec(ctx, query); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

func database(server *postgrestest.Server, url string) storetest.Database {
	return storetest.Database{
		Open: func(t testing.TB) store.Store { return handle(t, url) },
		Try: func(t testing.TB, key store.StateKey) (store.Store, error) {
			return postgres.Open(t.Context(), url, "", key)
		},
		Exec: execute(url),
		Restore: func(t testing.TB, r io.Reader) (storetest.Open, time.Time, error) {
			elsewhere := server.Database(t)
			_, floor, err := postgres.Restore(context.Background(), elsewhere, r, store.Event{})
			if _, open := postgres.Open(context.Background(), elsewhere, "", store.StateKey{}); err != nil && !errors.Is(open, store.ErrMissing) {
				t.Errorf("a failed restore left a store: %v", open)
			}
			return func(t testing.TB) store.Store { return handle(t, elsewhere) }, floor, err
		},
	}
}

func TestDamage(t *testing.T) {
	t.Parallel()
	server := postgrestest.Start(t)
	storetest.RunDamage(t, func(t testing.TB) storetest.Database { return database(server, create(t, server)) })
}

func TestUpgrade(t *testing.T) {
	t.Parallel()
	server := postgrestest.Start(t)
	storetest.RunUpgrade(t, func(t testing.TB, version int64) storetest.Older {
		url := server.Database(t)
		if err := postgres.Shape(t.Context(), url, version); err != nil {
			t.Fatal(err)
		}
		return storetest.Older{Database: database(server, url), Driver: "pgx", DSN: url}
	})
}

func TestCrash(t *testing.T) {
	url := ""
	if !storetest.IsCrashChild() {
		url = create(t, postgrestest.Start(t))
	}
	storetest.RunCrash(t, "TestCrash", url, 20, handle)
}

func BenchmarkLists(b *testing.B) {
	url := create(b, postgrestest.Start(b))
	storetest.BenchmarkLists(b, "pgx", url, func(t testing.TB) store.Store { return handle(t, url) })
}
