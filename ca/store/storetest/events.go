package storetest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mayfly-ca/mayfly/ca/store"
)

func testEvents(t *testing.T, o Open) {
	ctx := context.Background()
	s := open(t, o)
	now := time.Now().UTC().Truncate(time.Microsecond)
	var want []store.Event
	for i := range 30 {
		want = append(want, store.Event{
			Seq: int64(i + 1), Time: now.Add(time.Duration(i) * time.Second), Type: []string{store.EventLogin, store.EventForbidden}[i%2], By: "ann",
			Serial: fmt.Sprintf("%032x", i%3), Identity: "spiffe://x/y", Repository: fmt.Sprintf("r%d", i%4), RunID: fmt.Sprint(i % 5), Rule: "rule", Reason: "because", Count: 1,
			Detail: map[string]string{"k": fmt.Sprint(i), "<a>": "\x1b[31m\u202e"},
		})
	}
	if err := s.Append(ctx, want[:7]...); err != nil {
		t.Fatal(err)
	}
	for _, ev := range want[7:] {
		if err := s.Append(ctx, ev); err != nil {
			t.Fatal(err)
		}
	}
	since, until := want[10].Time, want[20].Time
	for name, f := range map[string]struct {
		filter store.EventFilter
		keep   func(store.Event) bool
	}{
		"all":        {store.EventFilter{}, func(store.Event) bool { return true }},
		"type":       {store.EventFilter{Type: store.EventLogin}, func(e store.Event) bool { return e.Type == store.EventLogin }},
		"serial":     {store.EventFilter{Serial: want[1].Serial}, func(e store.Event) bool { return e.Serial == want[1].Serial }},
		"repository": {store.EventFilter{Repository: "r2"}, func(e store.Event) bool { return e.Repository == "r2" }},
		"both":       {store.EventFilter{Repository: "r2", Type: store.EventLogin}, func(e store.Event) bool { return e.Repository == "r2" && e.Type == store.EventLogin }},
		"neither":    {store.EventFilter{Repository: "r2", Type: store.EventForbidden}, func(store.Event) bool { return false }},
		"run id":     {store.EventFilter{RunID: "3", Type: store.EventLogin}, func(e store.Event) bool { return e.RunID == "3" && e.Type == store.EventLogin }},
		"times":      {store.EventFilter{Since: &since, Until: &until}, func(e store.Event) bool { return !e.Time.Before(since) && e.Time.Before(until) }},
	} {
		for _, limit := range []int{3, 500} {
			var down, up, expect []store.Event
			for _, e := range want {
				if f.keep(e) {
					expect = append(expect, e)
				}
			}
			q := f.filter
			for q.Limit = limit; ; {
				page, next, err := s.Events(ctx, q)
				if err != nil {
					t.Fatal(err)
				}
				down = append(down, page...)
				if q.Cursor = next; next == "" {
					break
				}
			}
			for i, j := 0, len(down)-1; i < j; i, j = i+1, j-1 {
				down[i], down[j] = down[j], down[i]
			}
			if diff := cmp.Diff(expect, down); diff != "" {
				t.Errorf("%s by %d (-want +got):\n%s", name, limit, diff)
			}
			q = f.filter
			for q.Limit, q.After = limit, 1; ; q.After = up[len(up)-1].Seq {
				page, _, err := s.Events(ctx, q)
				if err != nil {
					t.Fatal(err)
				}
				if len(page) == 0 {
					break
				}
				up = append(up, page...)
			}
			if len(expect) > 0 && expect[0].Seq == 1 {
				expect = expect[1:]
			}
			if diff := cmp.Diff(expect, up); diff != "" {
				t.Errorf("%s, following by %d (-want +got):\n%s", name, limit, diff)
			}
		}
	}
	if err := s.Append(ctx, store.Event{Type: store.EventLogin, Reason: "NUL \x00 and \xff", By: strings.Repeat("x", 1<<20)}); err != nil {
		t.Errorf("an event of strange texts: %v", err)
	}
	if err := s.Append(ctx, store.Event{}); err == nil {
		t.Error("an event without a type was written")
	}
	if n, err := s.VerifyEvents(ctx); err != nil || n != 31 {
		t.Errorf("chain of %d: %v", n, err)
	}
}

// testEventTimes: events with times out of order are still found.
func testEventTimes(t *testing.T, o Open) {
	ctx := context.Background()
	s := open(t, o)
	base := time.Now().UTC().Truncate(time.Second).Add(-100 * time.Hour)
	for _, h := range []int{5, 1, 9, 3, 50, 2, 8, 8, 0, 60, 4} {
		if err := s.Append(ctx, store.Event{Type: store.EventIssued, Time: base.Add(time.Duration(h) * time.Hour)}); err != nil {
			t.Fatal(err)
		}
	}
	for a := range 12 {
		for b := a + 1; b < 12; b++ {
			since, until := base.Add(time.Duration(a)*time.Hour), base.Add(time.Duration(b)*time.Hour)
			want := 0
			for _, h := range []int{5, 1, 9, 3, 50, 2, 8, 8, 0, 60, 4} {
				if h >= a && h < b {
					want++
				}
			}
			got, _, err := s.Events(ctx, store.EventFilter{Since: &since, Until: &until})
			if err != nil || len(got) != want {
				t.Errorf("from %d to %d: %d events, want %d: %v", a, b, len(got), want, err)
			}
		}
	}
	hours, err := s.Hours(ctx, base.Add(8*time.Hour))
	if err != nil || len(hours) != 4 || hours[0].Issued != 2 || hours[3].Issued != 1 {
		t.Errorf("hours: %+v, %v", hours, err)
	}
}

func testDenials(t *testing.T, o Open) {
	ctx := context.Background()
	s := open(t, o)
	for range 100 {
		if err := s.Denied(ctx, store.Event{Identity: "spiffe://x/a", Reason: "no rule", Rule: "r"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Denied(ctx, store.Event{Type: store.EventReplay, Identity: "spiffe://x/a", Reason: "no rule"}); err != nil {
		t.Fatal(err)
	}
	got := events(t, s, store.EventDenied)
	if len(got) != 1 || got[0].Count != 100 || got[0].Rule != "r" {
		t.Errorf("denials: %+v", got)
	}
	if n := len(events(t, s, store.EventReplay)); n != 1 {
		t.Errorf("%d replays", n)
	}
	// Denials of ten thousand names write only a few hundred rows.
	peer := o(t)
	for i := range 10000 {
		if err := peer.Denied(ctx, store.Event{Identity: fmt.Sprint(i), Reason: "stranger"}); err != nil {
			t.Fatal(err)
		}
		if i%100 == 0 {
			events(t, peer, store.EventDenied)
		}
	}
	if err := peer.Close(); err != nil {
		t.Fatal(err)
	}
	n, err := s.VerifyEvents(ctx)
	if err != nil || n > 1000 {
		t.Errorf("%d events: %v", n, err)
	}
	hours, err := s.Hours(ctx, time.Now().Add(-2*time.Hour))
	total := int64(0)
	for _, h := range hours {
		total += h.Denied
	}
	if err != nil || total != 10101 {
		t.Errorf("%d denials counted, want 10101: %v", total, err)
	}
	if err := peer.Denied(ctx, store.Event{}); err == nil {
		t.Error("a closed store takes denials that are never written")
	}
}

func testPrune(t *testing.T, o Open) {
	ctx := context.Background()
	s := open(t, o)
	floor := s.Meta().CreatedAt
	old := Certificate("1")
	old.IssuedAt, old.TokenIAT, old.NotBefore, old.NotAfter = floor, floor, floor.Add(-time.Minute), floor.Add(time.Minute)
	record(t, s, old)
	kept := record(t, s, Certificate("2"))
	for i := range 5 {
		if err := s.Append(ctx, store.Event{Type: store.EventLogin, Time: floor.Add(time.Duration(i-10) * time.Hour)}); err != nil {
			t.Fatal(err)
		}
	}
	before := s.Meta().CreatedAt.Add(30 * time.Minute)
	if _, err := s.Prune(ctx, before); err != nil {
		t.Fatal(err)
	}
	// It expired less than a day ago: it is still on the CRL if revoked, and its
	// token is used.
	if _, err := s.Certificate(ctx, old.Serial); err != nil {
		t.Errorf("pruned too early: %v", err)
	}
	if _, err := s.Certificate(ctx, kept.Serial); err != nil {
		t.Error(err)
	}
	n, err := s.VerifyEvents(ctx)
	if err != nil {
		t.Errorf("chain after pruning: %v", err)
	}
	if ev := events(t, s, store.EventPruned); len(ev) == 1 {
		t.Logf("%d events left, %v", n, ev[0].Detail)
	}
	if _, err := s.Prune(ctx, time.Now().Add(time.Hour)); err != nil { // a time in the future counts as now
		t.Fatal(err)
	}
	pruned := events(t, s, store.EventPruned)
	if len(pruned) == 0 || pruned[0].Detail["hash"] == "" {
		t.Errorf("no event of pruning: %+v", pruned)
	}
	if left := events(t, s, store.EventLogin); len(left) != 0 {
		t.Errorf("%d old events left", len(left))
	}
	if err := s.Append(ctx, store.Event{Type: store.EventLogin}); err != nil {
		t.Fatal(err)
	}
	if n, err := s.VerifyEvents(ctx); err != nil || n < 2 {
		t.Errorf("chain of %d after pruning: %v", n, err)
	}
}
