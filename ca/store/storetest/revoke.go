package storetest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// refused reports whether a new certificate of run is blocked.
func refused(t testing.TB, s store.Store, c *store.Certificate) bool {
	t.Helper()
	_, err := s.Record(context.Background(), c, store.Event{})
	var blocked *store.BlockedError
	if err != nil && !errors.As(err, &blocked) {
		t.Fatal(err)
	}
	return err != nil
}

// statuses returns the serials of certificates with a status.
func statuses(t testing.TB, s store.Store, status string) map[string]bool {
	t.Helper()
	list, _, err := s.Certificates(context.Background(), store.CertificateFilter{Status: status, Limit: 500})
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]bool)
	for _, c := range list {
		out[c.Serial] = true
	}
	return out
}

func testRevokeSerial(t *testing.T, o Open) {
	ctx := context.Background()
	s := open(t, o)
	one, two, other := record(t, s, Certificate("1")), record(t, s, Certificate("1")), record(t, s, Certificate("2"))

	dry := revoke(t, s, store.Revocation{Serial: one.Serial, Block: time.Hour, DryRun: true})
	if len(dry.Serials) != 2 || len(dry.BlockIDs) != 0 || len(statuses(t, s, "revoked")) != 0 {
		t.Errorf("dry run: %+v", dry)
	}
	got := revoke(t, s, store.Revocation{Serial: one.Serial, Block: time.Hour})
	if len(got.Serials) != 2 || len(got.BlockIDs) != 1 {
		t.Errorf("the run's other certificate stays: %+v", got)
	}
	if r := statuses(t, s, "revoked"); !r[one.Serial] || !r[two.Serial] || r[other.Serial] {
		t.Errorf("revoked: %v", r)
	}
	if !refused(t, s, Certificate("1")) {
		t.Error("the run got another certificate")
	}
	if refused(t, s, Certificate("2")) {
		t.Error("another run is blocked")
	}
	foreign := Certificate("1")
	foreign.TokenIssuer = "https://ghe.example.com"
	if refused(t, s, foreign) {
		t.Error("the same numbers of another issuer are blocked")
	}
	// Once more: the serial is named, so it is listed, but nothing is written
	// twice.
	if again := revoke(t, s, store.Revocation{Serial: one.Serial}); len(again.Serials) != 1 {
		t.Errorf("again: %+v", again)
	}
	if n := len(events(t, s, store.EventRevoked)); n != 2 {
		t.Errorf("%d revoked events, want 2", n)
	}
	c, err := s.Certificate(ctx, one.Serial)
	if err != nil || c.RevokedAt == nil || c.RevokedBy != "ops@example.com" || c.Reason != "a test" {
		t.Errorf("revoked certificate: %+v, %v", c, err)
	}
	if _, err := s.Revoke(ctx, store.Revocation{Serial: strings.Repeat("0", 32)}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("unknown serial: %v", err)
	}
	// Other providers: the block is of the identity.
	person := Certificate("")
	person.Identity, person.RepositoryID, person.RunID, person.SingleUse = "spiffe://ci.example.com/staff/ann", "", "", false
	record(t, s, person)
	revoke(t, s, store.Revocation{Serial: person.Serial, Block: time.Hour})
	next := Certificate("")
	next.Identity, next.RepositoryID, next.RunID = person.Identity, "", ""
	if !refused(t, s, next) {
		t.Error("the identity got another certificate")
	}
	next.Identity = "spiffe://ci.example.com/staff/bob"
	if refused(t, s, next) {
		t.Error("another identity is blocked")
	}
	// A relay may still use an expired certificate.
	old := Certificate("9")
	old.IssuedAt, old.NotBefore, old.NotAfter = old.IssuedAt.Add(-30*time.Minute), old.NotBefore.Add(-30*time.Minute), time.Now().Add(-time.Second).UTC()
	record(t, s, old)
	revoke(t, s, store.Revocation{Serial: old.Serial})
	if !holds(listed(t, publish(t, s, 0)), old.Serial) {
		t.Error("a revoked, expired certificate is not on the CRL")
	}
	for name, bad := range map[string]store.Revocation{
		"nothing":  {},
		"two":      {Serial: one.Serial, All: true},
		"negative": {Serial: one.Serial, Block: -1},
		"no time":  {Match: store.Match{Since: &one.IssuedAt, Until: &one.IssuedAt}},
	} {
		if _, err := s.Revoke(ctx, bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// An engine's own certificate: which sessions are cut, and until when the machine
// gets no other.
func testRevokeMachine(t *testing.T, o Open) {
	ctx := context.Background()
	s := open(t, o)
	machine := func(name string) *store.Certificate {
		c := Certificate("")
		c.Profile, c.Provider, c.Rule, c.Run = "server", "fly", "engine", ""
		c.Identity = "spiffe://ci.example.com/engine/default/fly/1/" + name
		c.Repository, c.RepositoryID, c.RunID, c.Actor = "", "", "", ""
		return c
	}
	job, own, other := record(t, s, Certificate("1")), record(t, s, machine("a")), record(t, s, machine("b"))
	for i, at := range []*store.Certificate{own, own, other} {
		by := store.SessionReporter{Machine: at.Identity, Engine: "default"}
		n, refused, err := s.ReportSessions(ctx, by, []store.SessionReport{{Kind: "open", ID: strings.Repeat(string('a'+rune(i)), 32), Serial: job.Serial, At: time.Now()}})
		if n != 1 || err != nil {
			t.Fatal(n, refused, err)
		}
	}
	for _, tt := range []struct {
		name     string
		order    store.Revocation
		sessions int
		machines []string
		blocked  bool
	}{
		{"a job's", store.Revocation{Serial: job.Serial, Block: time.Hour}, 3, nil, false},
		{"a machine's", store.Revocation{Serial: own.Serial, Block: time.Hour}, 2, []string{own.Identity}, true},
		{"a machine's, without a block", store.Revocation{Serial: own.Serial}, 2, []string{own.Identity}, false},
		{"all machines", store.Revocation{Match: store.Match{Profile: "server"}, Block: time.Hour}, 3, []string{own.Identity, other.Identity}, true},
		{"all, which blocks clients only", store.Revocation{All: true, Block: time.Hour}, 3, []string{own.Identity, other.Identity}, false},
		{"a time, which blocks clients only", store.Revocation{Match: store.Match{Since: &job.NotBefore}, Block: time.Hour}, 3, []string{own.Identity, other.Identity}, false},
	} {
		tt.order.DryRun = true
		got := revoke(t, s, tt.order)
		if got.Sessions != tt.sessions || !slices.Equal(got.Machines, tt.machines) || got.MachinesUntil.IsZero() == tt.blocked {
			t.Errorf("%s: %+v", tt.name, got)
		}
	}
	before := time.Now()
	got := revoke(t, s, store.Revocation{Serial: own.Serial, Block: time.Hour})
	if got.MachinesUntil.Before(before.Add(time.Hour)) || !refused(t, s, machine("a")) || refused(t, s, machine("b")) {
		t.Errorf("revoked: %+v", got)
	}
	for range 40 { // too many to count one by one
		record(t, s, machine("b"))
	}
	if got := revoke(t, s, store.Revocation{Match: store.Match{Profile: "server"}, DryRun: true}); got.Sessions != 3 {
		t.Errorf("of many: %d sessions", got.Sessions)
	}
}

func testRevokeMatch(t *testing.T, o Open) {
	s := open(t, o)
	one, other := record(t, s, Certificate("1")), Certificate("2")
	other.Repository, other.RepositoryID, other.Identity = "octo/other", "5", "spiffe://ci.example.com/github/1/5"
	record(t, s, other)
	got := revoke(t, s, store.Revocation{Match: store.Match{RepositoryID: "1339936803", Actor: "octocat"}, Block: time.Hour})
	if len(got.Serials) != 1 || got.Serials[0] != one.Serial || len(got.BlockIDs) != 1 {
		t.Errorf("%+v", got)
	}
	if !refused(t, s, Certificate("3")) {
		t.Error("what matches is issued")
	}
	somebody := Certificate("3")
	somebody.Actor = "somebody"
	if refused(t, s, somebody) {
		t.Error("another actor is blocked: the block must compare every field")
	}
	for _, m := range []store.Match{{Repository: "octo/other"}, {Identity: other.Identity}, {RunID: "2"}, {Profile: "client", RepositoryID: "5"}, {TokenIssuer: other.TokenIssuer, RepositoryID: "5"}} {
		if got := revoke(t, s, store.Revocation{Match: m, DryRun: true}); len(got.Serials) != 1 {
			t.Errorf("%+v selects %v", m, got.Serials)
		}
	}
	if got := revoke(t, s, store.Revocation{Match: store.Match{Repository: "octo/nothing"}, Block: time.Hour}); len(got.Serials) != 0 || len(got.BlockIDs) != 1 {
		t.Errorf("a match of nothing yet blocks what comes: %+v", got)
	}
}

func testRevokeTimes(t *testing.T, o Open) {
	s := open(t, o)
	at := func(run, repo string, age time.Duration) *store.Certificate {
		c := Certificate(run)
		c.IssuedAt, c.RepositoryID = c.IssuedAt.Add(-age), repo
		return record(t, s, c)
	}
	old, mid, recent := at("1", "7", 30*time.Minute), at("2", "7", 20*time.Minute), at("3", "7", 10*time.Minute)
	since, until := mid.IssuedAt, recent.IssuedAt
	window := store.Match{RepositoryID: "7", Since: &since, Until: &until}
	if got := revoke(t, s, store.Revocation{Match: window}); len(got.Serials) != 1 || got.Serials[0] != mid.Serial {
		t.Errorf("without a block the window alone: %+v", got)
	}
	// A match of times alone blocks the holders of the certificates that it
	// revoked.
	if got := revoke(t, s, store.Revocation{Match: store.Match{Since: &since, Until: &until}, Block: time.Hour}); len(got.BlockIDs) != 1 {
		t.Errorf("times alone: %+v", got)
	}
	next := Certificate("2")
	next.RepositoryID = "7"
	if !refused(t, s, next) {
		t.Error("the holder got another certificate")
	}
	if refused(t, s, Certificate("4")) {
		t.Error("a stretch of the past blocks everybody")
	}
	// With other fields, the block covers those fields at any time.
	got := revoke(t, s, store.Revocation{Match: window, Block: time.Hour})
	if r := statuses(t, s, "revoked"); len(got.Serials) != 2 || !r[old.Serial] || !r[recent.Serial] {
		t.Errorf("what the block covers is not revoked: %+v", got)
	}
	next = Certificate("5")
	next.RepositoryID = "7"
	if !refused(t, s, next) {
		t.Error("what the block covers is issued")
	}
}

func testRevokeAll(t *testing.T, o Open) {
	ctx := context.Background()
	s := open(t, o)
	one := record(t, s, Certificate("1"))
	server := Certificate("")
	server.Profile, server.Identity, server.RepositoryID, server.RunID, server.Repository = "server", "spiffe://ci.example.com/engine/default/fly/1/2", "", "", ""
	record(t, s, server)
	ahead := Certificate("2") // from a replica with a fast clock
	ahead.IssuedAt = ahead.IssuedAt.Add(3 * time.Second)
	record(t, s, ahead)
	got := revoke(t, s, store.Revocation{All: true, Block: time.Hour})
	if !got.Floor.After(ahead.IssuedAt) || got.Floor.Sub(ahead.IssuedAt) > time.Second || got.Floor.Nanosecond() != 0 {
		t.Errorf("floor %v, newest issuance %v", got.Floor, ahead.IssuedAt)
	}
	if len(got.Serials) != 3 || len(got.BlockIDs) != 2 {
		t.Errorf("%d serials, %d blocks; want 3, and the two clients", len(got.Serials), len(got.BlockIDs))
	}
	if f, err := s.Floor(ctx); err != nil || !f.Equal(got.Floor) {
		t.Errorf("floor is %v, %v", f, err)
	}
	later := func(c *store.Certificate) *store.Certificate {
		c.IssuedAt, c.TokenIAT = got.Floor, got.Floor
		return c
	}
	early := later(Certificate("3"))
	early.IssuedAt = got.Floor.Add(-time.Microsecond)
	if _, err := s.Record(ctx, early, store.Event{}); !errors.Is(err, store.ErrBeforeFloor) {
		t.Errorf("issued before the floor: %v", err)
	}
	early = later(Certificate("3"))
	early.TokenIAT = got.Floor.Add(-time.Second)
	if _, err := s.Record(ctx, early, store.Event{}); !errors.Is(err, store.ErrBeforeFloor) {
		t.Errorf("an earlier token: %v", err)
	}
	if !refused(t, s, later(Certificate("1"))) {
		t.Error("a client that held a certificate got another")
	}
	if refused(t, s, later(Certificate("3"))) {
		t.Error("a client that held none is blocked")
	}
	engine := later(Certificate(""))
	engine.Profile, engine.Identity, engine.RepositoryID, engine.RunID = "server", server.Identity, "", ""
	if refused(t, s, engine) {
		t.Error("an engine is blocked")
	}
	if state := listed(t, publish(t, s, 0)); !state.Floor.Equal(got.Floor) || !holds(state, one.Serial) || !holds(state, server.Serial) {
		t.Errorf("CRL: %+v", state)
	}
}

func testRevokeNoBlock(t *testing.T, o Open) {
	s := open(t, o)
	one, two := record(t, s, Certificate("1")), record(t, s, Certificate("1"))
	got := revoke(t, s, store.Revocation{Serial: one.Serial})
	if len(got.Serials) != 1 || len(got.BlockIDs) != 0 {
		t.Errorf("%+v", got)
	}
	if statuses(t, s, "revoked")[two.Serial] {
		t.Error("more than what was named is revoked")
	}
	if refused(t, s, Certificate("1")) {
		t.Error("blocked, though no block was asked for")
	}
}

func testUnblock(t *testing.T, o Open) {
	ctx := context.Background()
	s, peer := open(t, o), open(t, o)
	c := record(t, s, Certificate("1"))
	got := revoke(t, s, store.Revocation{Serial: c.Serial, Block: time.Hour})
	if !refused(t, peer, Certificate("1")) {
		t.Error("another handle does not see the block")
	}
	blocks, err := peer.Blocks(ctx, time.Now())
	if err != nil || len(blocks) != 1 || blocks[0].ID != got.BlockIDs[0] || blocks[0].By != "ops@example.com" || blocks[0].Match.RunID != "1" {
		t.Errorf("blocks: %+v, %v", blocks, err)
	}
	if later, err := s.Blocks(ctx, time.Now().Add(2*time.Hour)); err != nil || len(later) != 0 {
		t.Errorf("a block that has ended is listed: %+v, %v", later, err)
	}
	if err := peer.Unblock(ctx, got.BlockIDs[0], "ops@example.com"); err != nil {
		t.Fatal(err)
	}
	if refused(t, s, Certificate("1")) {
		t.Error("the block outlives its removal")
	}
	if err := s.Unblock(ctx, got.BlockIDs[0], "ops@example.com"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("unblock again: %v", err)
	}
	short := revoke(t, s, store.Revocation{Match: store.Match{RunID: "2"}, Block: time.Millisecond})
	if len(short.BlockIDs) != 1 {
		t.Errorf("blocks: %+v", short)
	}
	for refused(t, s, Certificate("2")) { // until the block has ended
	}
}

func testFloor(t *testing.T, o Open) {
	ctx := context.Background()
	s := open(t, o)
	first, err := s.Floor(ctx)
	if err != nil || !first.Equal(s.Meta().CreatedAt) {
		t.Errorf("first floor %v, %v", first, err)
	}
	c := record(t, s, Certificate("1"))
	early := Certificate("1")
	early.TokenIAT = first.Add(-time.Second)
	if _, err := s.Record(ctx, early, store.Event{}); !errors.Is(err, store.ErrBeforeFloor) {
		t.Errorf("a token from before the store: %v", err)
	}
	floor, err := s.RaiseFloor(ctx, store.Event{Type: store.EventRestored, By: "host"})
	if err != nil || !floor.After(c.IssuedAt) {
		t.Fatalf("floor %v, %v", floor, err)
	}
	again := Certificate("1")
	again.TokenID, again.SPKI, again.TokenIAT = c.TokenID, c.SPKI, c.TokenIAT
	if _, err := s.Record(ctx, again, store.Event{}); !errors.Is(err, store.ErrBeforeFloor) {
		t.Errorf("a replay from before the floor: %v", err)
	}
	if ev := events(t, s, store.EventRestored); len(ev) != 1 || ev[0].By != "host" || ev[0].Detail["floor"] == "" {
		t.Errorf("events: %+v", ev)
	}
	if !statuses(t, s, "revoked")[c.Serial] {
		t.Error("what the floor refuses counts as valid")
	}
	if next, err := s.RaiseFloor(ctx, store.Event{}); err != nil || next.Before(floor) {
		t.Errorf("floor fell to %v, %v", next, err)
	}
}
