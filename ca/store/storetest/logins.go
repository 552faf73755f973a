package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mayfly-ca/mayfly/ca/store"
)

func testLogins(t *testing.T, o Open) {
	ctx := context.Background()
	s := open(t, o)
	now := time.Now().UTC().Truncate(time.Microsecond)
	want := store.Login{ID: "cafe", Provider: "staff", Subject: "ann", Claims: json.RawMessage(`{"sub":"ann"}`), CreatedAt: now, ExpiresAt: now.Add(time.Hour)}
	if err := s.PutLogin(ctx, want); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Login(ctx, "cafe", now); err != nil || got.Subject != "ann" || string(got.Claims) != string(want.Claims) || !got.ExpiresAt.Equal(want.ExpiresAt) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := s.RaiseFloor(ctx, store.Event{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Login(ctx, "cafe", now); err != nil {
		t.Errorf("the floor ends a login: %v", err)
	}
	if _, err := s.Login(ctx, "cafe", want.ExpiresAt); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("expired: %v", err)
	}
	if _, err := s.Login(ctx, "beef", now); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}
	if err := s.DeleteLogin(ctx, "cafe"); err != nil {
		t.Error(err)
	}
	if _, err := s.Login(ctx, "cafe", now); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}
}

// login returns a login that lasts an hour.
func login(id string) store.Login {
	now := time.Now().UTC().Truncate(time.Microsecond)
	return store.Login{ID: id, Provider: "staff", Subject: "ann", Claims: json.RawMessage(`{"sub":"ann"}`), CreatedAt: now, ExpiresAt: now.Add(time.Hour)}
}

// putLogin stores a login. The store must accept it.
func putLogin(t testing.TB, s store.Store, g store.Login) {
	t.Helper()
	if err := s.PutLogin(context.Background(), g); err != nil {
		t.Fatal(err)
	}
}

// testTakeLogin: only one of many callers at two handles takes a login.
func testTakeLogin(t *testing.T, o Open) {
	ctx := context.Background()
	one, two := open(t, o), open(t, o)
	want := login("cafe")
	putLogin(t, one, want)
	putLogin(t, one, login("other"))
	var taken, refused atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		for _, s := range []store.Store{one, two} {
			wg.Go(func() {
				got, err := s.TakeLogin(ctx, "cafe", time.Now())
				switch {
				case errors.Is(err, store.ErrNotFound):
					refused.Add(1)
				case err != nil:
					t.Error(err)
				default:
					taken.Add(1)
					if diff := cmp.Diff(&want, got); diff != "" {
						t.Errorf("taken (-want +got):\n%s", diff)
					}
				}
			})
		}
	}
	wg.Wait()
	if taken.Load() != 1 || refused.Load() != 7 {
		t.Errorf("%d took the login and %d were refused", taken.Load(), refused.Load())
	}
	if _, err := one.TakeLogin(ctx, "other", time.Now().Add(time.Hour)); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("take an expired login: %v", err)
	}
	if _, err := two.Login(ctx, "other", time.Now()); err != nil {
		t.Errorf("another login: %v", err)
	}
}

// testForgedLogins: a row written or changed by hand is not a login, and is neither
// read nor taken. An unchanged login stays good.
func testForgedLogins(t *testing.T, d Database) {
	ctx := context.Background()
	s := open(t, d.Open)
	admin := login("admin")
	admin.Claims, admin.Subject = json.RawMessage(`{"sub":"root","email":"ops@example.com"}`), "root"
	putLogin(t, s, admin)
	short := login("short")
	short.ExpiresAt = short.CreatedAt.Add(time.Minute)
	putLogin(t, s, short)
	for _, c := range []struct{ name, query string }{
		{"written with the MAC of another", "INSERT INTO logins SELECT 'forged', provider, subject, claims, created_at, expires_at, mac FROM logins WHERE id = 'admin'"},
		{"written without a MAC", "INSERT INTO logins (id, provider, subject, claims, created_at, expires_at) SELECT 'forged', provider, subject, claims, created_at, expires_at FROM logins WHERE id = 'admin'"},
		{"claims", "UPDATE logins SET claims = (SELECT claims FROM logins WHERE id = 'admin') WHERE id = 'forged'"},
		{"claims and subject", "UPDATE logins SET subject = 'root', claims = (SELECT claims FROM logins WHERE id = 'admin') WHERE id = 'forged'"},
		{"all but the id", "UPDATE logins SET subject = 'root', claims = (SELECT claims FROM logins WHERE id = 'admin'), mac = (SELECT mac FROM logins WHERE id = 'admin') WHERE id = 'forged'"},
		{"expiry", "UPDATE logins SET expires_at = expires_at + 1 WHERE id = 'forged'"},
		{"creation", "UPDATE logins SET created_at = created_at - 1 WHERE id = 'forged'"},
		{"provider", "UPDATE logins SET provider = '' WHERE id = 'forged'"},
		{"text moved to another column", "UPDATE logins SET provider = 'staffann', subject = '' WHERE id = 'forged'"},
		{"MAC of another", "UPDATE logins SET mac = (SELECT mac FROM logins WHERE id = 'admin') WHERE id = 'forged'"},
		{"no MAC", "UPDATE logins SET mac = '' WHERE id = 'forged'"},
		{"hashes swapped between two rows", "UPDATE logins SET id = 'swap' WHERE id = 'short'; UPDATE logins SET id = 'short' WHERE id = 'forged'; UPDATE logins SET id = 'forged' WHERE id = 'swap'"},
	} {
		if err := s.DeleteLogin(ctx, "forged"); err != nil {
			t.Fatal(err)
		}
		if c.query[0] == 'U' {
			putLogin(t, s, login("forged"))
			if _, err := s.Login(ctx, "forged", time.Now()); err != nil {
				t.Fatalf("%s: before: %v", c.name, err)
			}
		}
		d.Exec(t, c.query)
		if _, err := s.Login(ctx, "forged", time.Now()); !errors.Is(err, store.ErrForged) {
			t.Errorf("%s: %v, want %v", c.name, err, store.ErrForged)
		}
		if _, err := s.TakeLogin(ctx, "forged", time.Now()); !errors.Is(err, store.ErrForged) {
			t.Errorf("%s: take: %v, want %v", c.name, err, store.ErrForged)
		}
	}
	if got, err := s.Login(ctx, "admin", time.Now()); err != nil || cmp.Diff(&admin, got) != "" {
		t.Errorf("the unchanged login: %v\n%s", err, cmp.Diff(&admin, got))
	}
}

// testStateKeys: a login stays good while the key that signed it is in the list,
// and ends when the key is removed.
func testStateKeys(t *testing.T, d Database) {
	ctx := context.Background()
	old, next := newStateKey(t), newStateKey(t)
	with := func(texts ...string) store.Store {
		key, err := store.ParseStateKey(texts...)
		if err != nil {
			t.Fatal(err)
		}
		s, err := d.Try(t, key)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		return s
	}
	before, both, after := with(old), with(next, old), with(next)
	putLogin(t, before, login("before"))
	putLogin(t, both, login("during"))
	for _, c := range []struct {
		name, id string
		s        store.Store
		want     error
	}{
		{"signed before, read by both keys", "before", both, nil},
		{"signed before, read by the new key alone", "before", after, store.ErrForged},
		{"the first of the list signs", "during", after, nil},
		{"signed by the new key, read by the old alone", "during", before, store.ErrForged},
		{"no key: one of the process's own", "during", with(), store.ErrForged},
	} {
		if _, err := c.s.Login(ctx, c.id, time.Now()); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	own := with()
	putLogin(t, own, login("own"))
	if _, err := own.Login(ctx, "own", time.Now()); err != nil {
		t.Errorf("a key of the process's own: %v", err)
	}
	if _, err := with().Login(ctx, "own", time.Now()); !errors.Is(err, store.ErrForged) {
		t.Errorf("after a restart without a key: %v, want %v", err, store.ErrForged)
	}
}

func newStateKey(t testing.TB) string {
	t.Helper()
	return store.EncodeStateKey(store.NewStateKey())
}
