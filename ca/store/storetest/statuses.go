package storetest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// reporter returns the reporter of an engine's machine.
func reporter(engine, name string) store.SessionReporter {
	return store.SessionReporter{Machine: "spiffe://ci.example.com/engine/" + engine + "/fly/1/" + name, Engine: engine}
}

func testStatuses(t *testing.T, o Open) {
	ctx := context.Background()
	s := open(t, o)
	at := time.Now().UTC().Truncate(time.Microsecond)
	want := store.MachineStatus{
		State: "listening", Version: "v1.2.3", EngineVersion: "v0.21.8", EngineSocket: "ok",
		CertificateNotAfter: at.Add(24 * time.Hour), FeedAt: at.Add(-time.Second),
	}
	for _, by := range []store.SessionReporter{{}, {Machine: "spiffe://ci.example.com/engine/default/fly/1/m"}, {Engine: "default"}} {
		if err := s.PutStatus(ctx, by, want); err == nil {
			t.Errorf("a status by %+v is stored", by)
		}
	}
	put := func(by store.SessionReporter, st store.MachineStatus) {
		t.Helper()
		if err := s.PutStatus(ctx, by, st); err != nil {
			t.Fatal(err)
		}
	}
	statuses := func() []store.MachineStatus {
		t.Helper()
		got, err := s.Statuses(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	put(reporter("other", "m"), want)
	put(reporter("default", "m"), want)
	put(reporter("default", "n"), want)
	stopped := want
	stopped.State, stopped.EngineVersion = "stopped", ""
	put(reporter("default", "m"), stopped)
	c := record(t, s, Certificate("1"))
	if _, _, err := s.ReportSessions(ctx, reporter("default", "n"), []store.SessionReport{
		{Kind: "open", ID: "aa", Serial: c.Serial, At: at}, {Kind: "open", ID: "bb", Serial: c.Serial, At: at}, {Kind: "close", ID: "bb", Serial: c.Serial, At: at},
	}); err != nil {
		t.Fatal(err)
	}
	got := statuses()
	for i := range got {
		if d := time.Since(got[i].SeenAt); d < 0 || d > time.Minute {
			t.Errorf("%s was seen %v ago", got[i].Machine, d)
		}
		got[i].SeenAt = time.Time{}
	}
	of := func(by store.SessionReporter, st store.MachineStatus, live int) store.MachineStatus {
		st.Engine, st.Machine, st.LiveSessions = by.Engine, by.Machine, live
		return st
	}
	if diff := cmp.Diff([]store.MachineStatus{
		of(reporter("default", "m"), stopped, 0), of(reporter("default", "n"), want, 1), of(reporter("other", "m"), want, 0),
	}, got); diff != "" {
		t.Errorf("by engine, the newest first (-want +got):\n%s", diff)
	}
	// A status seen after the time stays; one seen before it is deleted.
	if _, err := s.Prune(ctx, got[0].FeedAt); err != nil || len(statuses()) != 3 {
		t.Errorf("%d statuses after pruning what is older, %v", len(statuses()), err)
	}
	if _, err := s.Prune(ctx, time.Now().Add(time.Minute)); err != nil || len(statuses()) != 0 {
		t.Errorf("%d statuses after pruning everything, %v", len(statuses()), err)
	}
}

func testCounts(t *testing.T, o Open) {
	ctx := context.Background()
	s := open(t, o)
	count := func(now time.Time) store.Counts {
		t.Helper()
		c, err := s.Counts(ctx, now)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	now := time.Now()
	if got := count(now); got != (store.Counts{}) {
		t.Errorf("an empty store counts %+v", got)
	}
	client, revoked := record(t, s, Certificate("1")), record(t, s, Certificate("2"))
	server := Certificate("3")
	server.Profile, server.NotAfter = "server", server.IssuedAt.Add(24*time.Hour).Truncate(time.Second)
	record(t, s, server)
	revoke(t, s, store.Revocation{Serial: revoked.Serial})
	var reports []store.SessionReport
	for i, reason := range []string{"", "closed", "draining", "silence", "revoked", "expired", "feed_stale", "max_age"} {
		id := fmt.Sprintf("%032x", i)
		reports = append(reports, store.SessionReport{Kind: "open", ID: id, Serial: client.Serial, At: now})
		if reason != "" {
			reports = append(reports, store.SessionReport{Kind: "close", ID: id, Serial: client.Serial, At: now, Reason: reason})
		}
	}
	if n, refused, err := s.ReportSessions(ctx, reporter("default", "m"), reports); err != nil || n != len(reports) {
		t.Fatalf("%d accepted, %v, %v", n, refused, err)
	}
	for name, c := range map[string]struct {
		now  time.Time
		want store.Counts
	}{
		"now":                        {now, store.Counts{Valid: 2, Live: 1, Cut: 4}},
		"in 3 hours":                 {now.Add(3 * time.Hour), store.Counts{Valid: 1, Cut: 4}},
		"in 25 hours":                {now.Add(25 * time.Hour), store.Counts{}},
		"when the client's has end":  {client.NotAfter, store.Counts{Valid: 2, Cut: 4}},
		"a microsecond after it has": {client.NotAfter.Add(time.Microsecond), store.Counts{Valid: 1, Cut: 4}},
	} {
		if got := count(c.now); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
	cut, _, err := s.Sessions(ctx, store.SessionFilter{Cut: true})
	if err != nil || len(cut) != 4 {
		t.Errorf("%d sessions are listed as cut, %v", len(cut), err)
	}
	before, after := now.Add(-time.Second), now.Add(time.Second)
	for name, c := range map[string]struct {
		f    store.SessionFilter
		want int
	}{
		"since before": {store.SessionFilter{Since: &before}, 8},
		"since after":  {store.SessionFilter{Since: &after}, 0},
		"until before": {store.SessionFilter{Until: &before}, 0},
		"until after":  {store.SessionFilter{Until: &after}, 8},
		"between":      {store.SessionFilter{Since: &before, Until: &after, Live: true}, 1},
		"cut, between": {store.SessionFilter{Since: &before, Until: &after, Cut: true, Engine: "default"}, 4},
		"live and cut": {store.SessionFilter{Live: true, Cut: true}, 0},
		"cut of other": {store.SessionFilter{Cut: true, Engine: "other"}, 0},
	} {
		c.f.Limit = 3
		got := 0
		for {
			page, next, err := s.Sessions(ctx, c.f)
			if err != nil {
				t.Fatal(err)
			}
			got += len(page)
			if c.f.Cursor = next; next == "" {
				break
			}
		}
		if got != c.want {
			t.Errorf("%s: %d sessions, want %d", name, got, c.want)
		}
	}
}
