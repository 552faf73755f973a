package storetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// Database gives the tests of damage access to a database.
type Database struct {
	Open Open
	// Try opens the store with a state key, or returns why it cannot.
	Try func(t testing.TB, key store.StateKey) (store.Store, error)
	// Exec changes the database without the store.
	Exec func(t testing.TB, query string)
	// Restore makes another store from a backup and returns how to open it.
	Restore func(t testing.TB, r io.Reader) (Open, time.Time, error)
}

// RunDamage runs the tests that damage a database.
func RunDamage(t *testing.T, create func(t testing.TB) Database) {
	for _, part := range []struct {
		name string
		f    func(*testing.T, Database)
	}{
		{"failing insert", testFailingInsert},
		{"tampered chain", testTamper},
		{"backup and restore", testBackup},
		{"set back beneath a process", testSetBack},
		{"forged logins", testForgedLogins},
		{"state key replaced", testStateKeys},
	} {
		t.Run(part.name, func(t *testing.T) {
			t.Parallel()
			part.f(t, create(t))
		})
	}
}

// testFailingInsert: if any INSERT of a record fails, the call fails and nothing of
// it is visible. After the repair, the same token is good.
func testFailingInsert(t *testing.T, d Database) {
	ctx := context.Background()
	for _, table := range []string{"certificates", "bodies", "tokens", "events", "links", "hours", "state"} {
		s := open(t, d.Open)
		kept := record(t, s, Certificate("1"))
		c := Certificate("2")
		d.Exec(t, "ALTER TABLE "+table+" RENAME TO broken")
		if _, err := s.Record(ctx, c, store.Event{}); err == nil {
			t.Errorf("%s is gone, and the record is acknowledged", table)
		}
		d.Exec(t, "ALTER TABLE broken RENAME TO "+table)
		if _, err := s.Certificate(ctx, c.Serial); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: part of the record is visible: %v", table, err)
		}
		if _, err := s.Record(ctx, c, store.Event{}); err != nil {
			t.Errorf("%s: repaired, but: %v", table, err)
		}
		if _, err := s.Certificate(ctx, kept.Serial); err != nil {
			t.Error(err)
		}
		if _, err := s.VerifyEvents(ctx); err != nil {
			t.Errorf("%s: %v", table, err)
		}
	}
}

// testTamper: VerifyEvents names the first broken link, whatever was changed in the
// chain.
func testTamper(t *testing.T, d Database) {
	ctx := context.Background()
	s := open(t, d.Open)
	for range 9 {
		if err := s.Append(ctx, store.Event{Type: store.EventLogin, By: "ann"}, store.Event{Type: store.EventLogout, By: "ann"}); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := s.VerifyEvents(ctx); err != nil || n != 18 {
		t.Fatalf("%d, %v", n, err)
	}
	for _, damage := range []struct{ name, query, undo, want string }{
		{"changed", "UPDATE events SET actor = 'bob' WHERE seq = 7", "UPDATE events SET actor = 'ann' WHERE seq = 7", "events 7 to 8"},
		{"count", "UPDATE events SET count = 2 WHERE seq = 4", "UPDATE events SET count = 1 WHERE seq = 4", "events 3 to 4"},
		{"moved text", "UPDATE events SET actor = '', serial = 'ann' WHERE seq = 7", "UPDATE events SET actor = 'ann', serial = '' WHERE seq = 7", "events 7 to 8"},
		{"swapped", "UPDATE events SET seq = -seq WHERE seq IN (5, 6)", "UPDATE events SET seq = -seq WHERE seq < 0", "events 5 to 6"},
		{"link cut out", "UPDATE links SET last_seq = -last_seq WHERE last_seq = 10", "UPDATE links SET last_seq = -last_seq WHERE last_seq < 0", "events 11 to 12"},
		{"end cut off", "UPDATE links SET last_seq = -last_seq WHERE last_seq = 18", "UPDATE links SET last_seq = -last_seq WHERE last_seq < 0", "ends with event 16"},
		{"added", "INSERT INTO events SELECT 19, time, type, actor, serial, identity, repository, run_id, rule, reason, count, detail FROM events WHERE seq = 18", "DELETE FROM events WHERE seq = 19", "event 19"},
	} {
		d.Exec(t, damage.query)
		if _, err := s.VerifyEvents(ctx); err == nil || !strings.Contains(err.Error(), damage.want) {
			t.Errorf("%s: %v, want %q", damage.name, err, damage.want)
		}
		d.Exec(t, damage.undo)
		if _, err := s.VerifyEvents(ctx); err != nil {
			t.Errorf("%s, undone: %v", damage.name, err)
		}
	}
}

// testSetBack: a process that keeps blocks in memory also sees the next block after
// the database was set back, as PostgreSQL's own tools do.
func testSetBack(t *testing.T, d Database) {
	ctx := context.Background()
	kept := open(t, d.Open)
	revoke(t, kept, store.Revocation{Match: store.Match{RunID: "1"}, Block: time.Hour})
	record(t, kept, Certificate("2")) // this also reads the blocks
	d.Exec(t, "UPDATE state SET blocks_version = blocks_version - 1")
	d.Exec(t, "DELETE FROM blocks")
	revoke(t, open(t, d.Open), store.Revocation{Match: store.Match{RunID: "2"}, Block: time.Hour})
	var blocked *store.BlockedError
	if _, err := kept.Record(ctx, Certificate("2"), store.Event{}); !errors.As(err, &blocked) {
		t.Errorf("a block made after the database was set back: %v", err)
	}
	record(t, kept, Certificate("1"))
}

// testBackup: revoked certificates stay refused, tokens stay used, the floor is
// raised, CRL numbers continue, and a damaged backup makes no store.
func testBackup(t *testing.T, d Database) {
	ctx := context.Background()
	s := open(t, d.Open)
	c, gone := record(t, s, Certificate("1")), record(t, s, Certificate("2"))
	revoke(t, s, store.Revocation{Serial: gone.Serial, Block: time.Hour})
	set := publish(t, s, 0)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() { // so that the store is in use
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				record(t, s, Certificate("3"))
			}
		}
	}()
	var backup bytes.Buffer
	err := s.Backup(ctx, &backup)
	close(stop)
	<-done
	if err != nil {
		t.Fatal(err)
	}
	late := record(t, s, Certificate("4"))

	for name, damaged := range map[string][]byte{
		"empty":     nil,
		"cut":       backup.Bytes()[:backup.Len()*2/3],
		"no end":    backup.Bytes()[:bytes.LastIndex(backup.Bytes(), []byte(`{"end"`))],
		"changed":   bytes.Replace(backup.Bytes(), []byte("octocat"), []byte("octodog"), 1),
		"more":      append(bytes.Clone(backup.Bytes()), "[1]\n"...),
		"no backup": []byte(`{"format":"tar"}` + "\n"),
	} {
		if _, _, err := d.Restore(t, bytes.NewReader(damaged)); err == nil {
			t.Errorf("%s: restored", name)
		}
	}
	again, floor, err := d.Restore(t, bytes.NewReader(backup.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	r := open(t, again)
	if r.Meta() != s.Meta() {
		t.Errorf("meta %+v, was %+v", r.Meta(), s.Meta())
	}
	if f, err := r.Floor(ctx); err != nil || !f.Equal(floor) || !f.After(c.IssuedAt) {
		t.Errorf("floor %v, %v", f, err)
	}
	want, err := s.Certificate(ctx, c.Serial)
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.Certificate(ctx, c.Serial)
	if err != nil {
		t.Fatal(err)
	}
	if got.RevokedAt == nil {
		t.Error("what the floor refuses counts as valid")
	}
	got.RevokedAt, got.RevokedBy, got.Reason = nil, "", ""
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("restored (-want +got):\n%s", diff)
	}
	if _, err := r.Certificate(ctx, late.Serial); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("recorded after the backup: %v", err)
	}
	early := Certificate("9")
	early.TokenIAT, early.IssuedAt = floor.Add(-time.Second), floor
	if _, err := r.Record(ctx, early, store.Event{}); !errors.Is(err, store.ErrBeforeFloor) {
		t.Errorf("a token from before the restore: %v", err)
	}
	later := func(run string) *store.Certificate {
		c := Certificate(run)
		c.IssuedAt, c.TokenIAT = floor, floor
		return c
	}
	if !refused(t, r, later("2")) {
		t.Error("the block is gone")
	}
	replayed := later("1")
	replayed.TokenID = c.TokenID
	var replay *store.ReplayError
	if _, err := r.Record(ctx, replayed, store.Event{}); !errors.As(err, &replay) {
		t.Errorf("the token is good again: %v", err)
	}
	record(t, r, later("5"))
	if next := publish(t, r, time.Hour); next.Number <= set.Number || !holds(listed(t, next), gone.Serial) {
		t.Errorf("CRL %d after %d", next.Number, set.Number)
	}
	if _, err := r.VerifyEvents(ctx); err != nil {
		t.Error(err)
	}
	if n := len(events(t, r, store.EventRestored)); n != 1 {
		t.Errorf("%d restored events", n)
	}
}
