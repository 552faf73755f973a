package storetest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

func testSessions(t *testing.T, o Open) {
	ctx := context.Background()
	s := open(t, o)
	mine := store.SessionReporter{Machine: "spiffe://ci.example.com/engine/default/fly/1/m", Engine: "default"}
	sibling := store.SessionReporter{Machine: "spiffe://ci.example.com/engine/default/fly/1/n", Engine: "default"}
	foreign := store.SessionReporter{Machine: "spiffe://ci.example.com/engine/other/fly/1/m", Engine: "other"}
	c := record(t, s, Certificate("1"))
	id := strings.Repeat("a", 32)
	report := func(by store.SessionReporter, kind, id, serial string, in int64) (int, string) {
		t.Helper()
		n, refused, err := s.ReportSessions(ctx, by, []store.SessionReport{{Kind: kind, ID: id, Serial: serial, At: time.Now(), BytesIn: in, BytesOut: 2 * in, Reason: kind}})
		if err != nil {
			t.Fatal(err)
		}
		if len(refused) > 0 {
			return n, refused[0].Reason
		}
		return n, ""
	}
	for _, step := range []struct {
		name     string
		by       store.SessionReporter
		kind     string
		serial   string
		accepted bool
	}{
		{"progress before open", mine, "progress", c.Serial, false},
		{"unknown serial", mine, "open", strings.Repeat("0", 32), false},
		{"no serial", mine, "open", "", false},
		{"another engine", foreign, "open", c.Serial, false},
		{"unknown kind", mine, "hold", c.Serial, false},
		{"open", mine, "open", c.Serial, true},
		{"open again", mine, "open", c.Serial, true},
		{"open by a sibling", sibling, "open", c.Serial, false},
		{"progress by a sibling", sibling, "progress", c.Serial, false},
		{"close by another engine", foreign, "close", c.Serial, false},
		{"progress", mine, "progress", c.Serial, true},
	} {
		if n, why := report(step.by, step.kind, id, step.serial, 10); (n == 1) != step.accepted || (why == "") != step.accepted {
			t.Errorf("%s: accepted %d, %q", step.name, n, why)
		}
	}
	live, _, err := s.Sessions(ctx, store.SessionFilter{Live: true})
	if err != nil || len(live) != 1 || live[0].BytesIn != 10 || live[0].BytesOut != 20 || live[0].Run != c.Run || live[0].Repository != c.Repository || live[0].Machine != mine.Machine {
		t.Errorf("live: %+v, %v", live, err)
	}
	if got := revoke(t, s, store.Revocation{Serial: c.Serial, DryRun: true}); got.Sessions != 1 {
		t.Errorf("%d sessions would be cut, want 1", got.Sessions)
	}
	for range 40 { // too many to count one by one
		record(t, s, Certificate("1"))
	}
	if got := revoke(t, s, store.Revocation{Match: store.Match{RunID: "1"}, DryRun: true}); got.Sessions != 1 || len(got.Serials) != 41 {
		t.Errorf("of a run: %d sessions of %d certificates would be cut, want 1 of 41", got.Sessions, len(got.Serials))
	}
	if later, _, err := s.Sessions(ctx, store.SessionFilter{Live: true, Now: time.Now().Add(3 * time.Minute)}); err != nil || len(later) != 0 {
		t.Errorf("silent for three minutes and live: %+v, %v", later, err)
	}
	report(mine, "progress", id, c.Serial, 5)
	if n, why := report(mine, "close", id, c.Serial, 50); n != 1 {
		t.Errorf("close: %s", why)
	}
	if n, why := report(mine, "close", id, c.Serial, 50); n != 1 {
		t.Errorf("close again: %s", why)
	}
	if n, _ := report(mine, "progress", id, c.Serial, 60); n != 0 {
		t.Error("progress after close")
	}
	all, _, err := s.Sessions(ctx, store.SessionFilter{Serial: c.Serial})
	if err != nil || len(all) != 1 || all[0].ClosedAt == nil || all[0].BytesIn != 50 || all[0].Reason != "close" {
		t.Errorf("closed: %+v, %v", all, err)
	}
	if a, b := events(t, s, store.EventConnected), events(t, s, store.EventDisconnected); len(a) != 1 || len(b) != 1 || b[0].Detail["bytes_in"] != "50" || b[0].RunID != "1" {
		t.Errorf("events: %+v %+v", a, b)
	}
	for range 2 { // the second report, as after a lost answer, adds no event
		if n, why := report(mine, "feed_stale", strings.Repeat("f", 32), "", 0); n != 1 {
			t.Errorf("feed stale: %s", why)
		}
	}
	if ev := events(t, s, store.EventFeedStale); len(ev) != 1 || ev[0].By != mine.Machine || ev[0].Detail["engine"] != "default" || ev[0].Reason != "feed_stale" {
		t.Errorf("feed stale: %+v", ev)
	}
	var many []store.SessionReport
	for i := range 30 {
		many = append(many, store.SessionReport{Kind: "open", ID: fmt.Sprintf("%032x", i), Serial: c.Serial, At: time.Now()})
	}
	if n, refused, err := s.ReportSessions(ctx, mine, many); err != nil || n != 30 || len(refused) != 0 {
		t.Errorf("%d, %v, %v", n, refused, err)
	}
	for _, f := range []store.SessionFilter{{Limit: 7}, {Limit: 7, Engine: "default"}, {Limit: 7, RunID: "1"}, {Limit: 7, Repository: c.Repository}, {Limit: 7, Live: true, Serial: c.Serial}} {
		seen := make(map[string]bool)
		for {
			page, next, err := s.Sessions(ctx, f)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range page {
				if seen[x.ID] {
					t.Fatalf("%s twice", x.ID)
				}
				seen[x.ID] = true
			}
			if f.Cursor = next; next == "" {
				break
			}
		}
		want := 31
		if f.Live {
			want = 30
		}
		if len(seen) != want {
			t.Errorf("%+v: %d sessions, want %d", f, len(seen), want)
		}
	}
	if none, _, err := s.Sessions(ctx, store.SessionFilter{RunID: "2"}); err != nil || len(none) != 0 {
		t.Errorf("another run: %v, %v", none, err)
	}
}
