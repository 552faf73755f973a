// Package storetest is the conformance suite of store.Store.
// ca/internal/sqlstore runs it over SQLite and over PostgreSQL. Only tests import it.
package storetest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// Open opens a handle on one database. Each call opens another handle, as another
// process would. The test closes it.
type Open func(t testing.TB) store.Store

// StateKey is the key of every store of a test that sets no other.
var StateKey = store.NewStateKey()

// Meta returns the Meta of a new store for a test. Its floor is an hour ago, so
// that tokens from the test's own past are good.
func Meta() store.Meta {
	return store.Meta{RootFingerprint: "aa11", TrustDomain: "ci.example.com", CreatedAt: time.Now().Add(-time.Hour).UTC().Truncate(time.Second)}
}

// Run runs the suite. create makes a new, empty database with Meta and returns how
// to open it.
func Run(t *testing.T, create func(t testing.TB) Open) {
	for _, part := range []struct {
		name string
		f    func(*testing.T, Open)
	}{
		{"record", testRecord},
		{"replay", testReplay},
		{"refused records", testRefusedRecords},
		{"batch with one bad record", testOneBadRecord},
		{"withdrawn record", testWithdrawnRecord},
		{"durable over restart", testRestart},
		{"lists", testLists},
		{"cursors", testCursors},
		{"revoke serial", testRevokeSerial},
		{"revoke a machine", testRevokeMachine},
		{"revoke match", testRevokeMatch},
		{"revoke a stretch of time", testRevokeTimes},
		{"revoke all", testRevokeAll},
		{"revoke without block", testRevokeNoBlock},
		{"unblock", testUnblock},
		{"floor", testFloor},
		{"crls", testCRLs},
		{"crl change", testCRLChanged},
		{"events", testEvents},
		{"event times", testEventTimes},
		{"denials", testDenials},
		{"sessions", testSessions},
		{"statuses", testStatuses},
		{"counts", testCounts},
		{"logins", testLogins},
		{"one login, many takers", testTakeLogin},
		{"prune", testPrune},
		{"each", testEach},
		{"one token, many racers", testTokenRace},
		{"crl numbers of two handles", testCRLRace},
		{"issuing while revoking", testRevokeRace},
		{"ping and close", testClose},
	} {
		t.Run(part.name, func(t *testing.T) {
			t.Parallel()
			part.f(t, create(t))
		})
	}
}

// Certificate returns a record that every store accepts: of run, with its own
// token, issued now.
func Certificate(run string) *store.Certificate {
	now := time.Now().UTC().Truncate(time.Microsecond)
	serial := random(16)
	serial[0] |= 1
	return &store.Certificate{
		Serial: hex.EncodeToString(serial), Profile: "client", Provider: "github",
		Identity: "spiffe://ci.example.com/github/285964/1339936803", Rule: "app-main", Run: run + "/1/1", Engines: []string{"default"},
		Repository: "octo/app", RepositoryID: "1339936803", RunID: run, Actor: "octocat",
		TokenIssuer: "https://token.actions.githubusercontent.com", TokenID: hex.EncodeToString(random(16)), SingleUse: true,
		TokenIAT: now.Truncate(time.Second), SPKI: random(32), AKI: "0badc0de",
		Claims: json.RawMessage(fmt.Sprintf(`{"run_id":%q,"repository":"octo/app"}`, run)), TBS: random(600),
		NotBefore: now.Add(-time.Minute).Truncate(time.Second), NotAfter: now.Add(time.Hour).Truncate(time.Second), IssuedAt: now,
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// open opens a handle that the test closes.
func open(t testing.TB, o Open) store.Store {
	t.Helper()
	s := o(t)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// record records c. The store must accept it.
func record(t testing.TB, s store.Store, c *store.Certificate) *store.Certificate {
	t.Helper()
	got, err := s.Record(context.Background(), c, store.Event{By: c.Identity})
	if err != nil {
		t.Fatalf("record: %v", err)
	}
	return got
}

// revoke runs r, which must succeed.
func revoke(t testing.TB, s store.Store, r store.Revocation) *store.RevocationResult {
	t.Helper()
	if r.By == "" {
		r.By, r.Reason = "ops@example.com", "a test"
	}
	got, err := s.Revoke(context.Background(), r)
	if err != nil {
		t.Fatalf("revoke: %v", err)
	}
	return got
}

// publish signs a set of one CRL that lists the serials of the state.
func publish(t testing.TB, s store.Store, maxAge time.Duration) *store.CRLSet {
	t.Helper()
	set, err := s.PublishCRLs(context.Background(), maxAge, sign)
	if err != nil {
		t.Fatalf("publish: %v", err)
	}
	return set
}

// sign makes a set whose one CRL is the state in JSON.
func sign(state store.CRLState) ([]store.SignedCRL, error) {
	der, err := json.Marshal(state)
	return []store.SignedCRL{{AKI: "0badc0de", DER: der}}, err
}

// listed decodes what sign wrote.
func listed(t testing.TB, set *store.CRLSet) store.CRLState {
	t.Helper()
	var state store.CRLState
	if err := json.Unmarshal(set.CRLs[0].DER, &state); err != nil {
		t.Fatal(err)
	}
	return state
}

// holds reports whether a set lists serial.
func holds(state store.CRLState, serial string) bool {
	for _, entries := range state.Entries {
		for _, e := range entries {
			if e.Serial == serial {
				return true
			}
		}
	}
	return false
}

// events returns every event of type kind, newest first.
func events(t testing.TB, s store.Store, kind string) []store.Event {
	t.Helper()
	out, _, err := s.Events(context.Background(), store.EventFilter{Type: kind, Limit: 500})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
