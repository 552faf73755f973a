package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mayfly-ca/mayfly/ca/store"
)

func testRecord(t *testing.T, o Open) {
	ctx := context.Background()
	s := open(t, o)
	c := Certificate("1")
	if got := record(t, s, c); got != c {
		t.Error("Record of a new certificate returns another")
	}
	got, err := s.Certificate(ctx, c.Serial)
	if err != nil {
		t.Fatal(err)
	}
	got.Signature = nil // nil or empty
	if diff := cmp.Diff(c, got); diff != "" {
		t.Errorf("what was recorded is not what is read (-want +got):\n%s", diff)
	}
	ev := events(t, s, store.EventIssued)
	if len(ev) != 1 || ev[0].Serial != c.Serial || ev[0].RunID != "1" || ev[0].By != c.Identity || !ev[0].Time.Equal(c.IssuedAt) {
		t.Errorf("events: %+v", ev)
	}
	if _, err := s.Certificate(ctx, strings.Repeat("0", 32)); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("unknown serial: %v", err)
	}
	if m := s.Meta(); m.TrustDomain != "ci.example.com" {
		t.Errorf("meta: %+v", m)
	}
}

func testReplay(t *testing.T, o Open) {
	ctx := context.Background()
	s := open(t, o)
	first := record(t, s, Certificate("1"))
	again := func(spki []byte, of *store.Certificate) (*store.Certificate, error) {
		c := Certificate(of.RunID)
		c.TokenID, c.SPKI = of.TokenID, spki
		return s.Record(ctx, c, store.Event{})
	}
	got, err := again(first.SPKI, first)
	if err != nil || got.Serial != first.Serial || string(got.TBS) != string(first.TBS) {
		t.Errorf("the same key again: %+v, %v", got, err)
	}
	var replay *store.ReplayError
	if _, err := again(random(32), first); !errors.As(err, &replay) || replay.Serial != first.Serial || replay.Why != "another key" {
		t.Errorf("another key: %v", err)
	}
	// The same id from another issuer is another token.
	other := Certificate("1")
	other.TokenID, other.TokenIssuer = first.TokenID, "https://token.example.com"
	record(t, s, other)

	revoke(t, s, store.Revocation{Serial: first.Serial})
	if _, err := again(first.SPKI, first); !errors.As(err, &replay) || replay.Why != "revoked" {
		t.Errorf("revoked: %v", err)
	}
	old := Certificate("2")
	old.IssuedAt, old.NotBefore, old.NotAfter = old.IssuedAt.Add(-10*time.Minute), old.NotBefore.Add(-10*time.Minute), time.Now().Add(-time.Second).UTC()
	record(t, s, old)
	if _, err := again(old.SPKI, old); !errors.As(err, &replay) || replay.Why != "expired" {
		t.Errorf("expired: %v", err)
	}
	// Reusable tokens are never a replay.
	many := Certificate("3")
	many.SingleUse = false
	record(t, s, many)
	more := Certificate("3")
	more.SingleUse, more.TokenID = false, many.TokenID
	record(t, s, more)
	if n := len(events(t, s, store.EventIssued)); n != 5 {
		t.Errorf("%d issued events, want 5: a repeated answer is no issuance", n)
	}
}

func testRefusedRecords(t *testing.T, o Open) {
	s := open(t, o)
	record(t, s, Certificate("allowed"))
	for name, spoil := range map[string]func(*store.Certificate){
		"serial":         func(c *store.Certificate) { c.Serial = "abc" },
		"serial case":    func(c *store.Certificate) { c.Serial = strings.ToUpper("ab" + c.Serial[2:]) },
		"spki":           func(c *store.Certificate) { c.SPKI = nil },
		"no token id":    func(c *store.Certificate) { c.TokenID = "" },
		"no TBS":         func(c *store.Certificate) { c.TBS = nil },
		"lifetime":       func(c *store.Certificate) { c.NotAfter = c.IssuedAt.Add(26 * time.Hour) },
		"backwards":      func(c *store.Certificate) { c.NotAfter = c.NotBefore },
		"NUL":            func(c *store.Certificate) { c.Actor = "a\x00b" },
		"no UTF-8":       func(c *store.Certificate) { c.Actor = "\xff" },
		"huge":           func(c *store.Certificate) { c.Actor = strings.Repeat("a", 1<<20) },
		"no issued time": func(c *store.Certificate) { c.IssuedAt = time.Time{} },
		"no identity":    func(c *store.Certificate) { c.Identity = "" },
		"aki":            func(c *store.Certificate) { c.AKI = "xyz" },
	} {
		c := Certificate("refused")
		spoil(c)
		if _, err := s.Record(context.Background(), c, store.Event{}); err == nil {
			t.Errorf("%s: recorded", name)
		}
	}
	if got, _, err := s.Certificates(context.Background(), store.CertificateFilter{}); err != nil || len(got) != 1 {
		t.Errorf("%d certificates, %v; want the allowed one", len(got), err)
	}
}

func testOneBadRecord(t *testing.T, o Open) {
	ctx := context.Background()
	s := open(t, o)
	taken := record(t, s, Certificate("1"))
	var wg sync.WaitGroup
	errs := make([]error, 64)
	for i := range errs {
		wg.Go(func() {
			c := Certificate("2")
			if i == 17 {
				c.Serial = taken.Serial
			}
			_, errs[i] = s.Record(ctx, c, store.Event{})
		})
	}
	wg.Wait()
	for i, err := range errs {
		if (err != nil) != (i == 17) {
			t.Errorf("record %d: %v", i, err)
		}
	}
	if n := len(events(t, s, store.EventIssued)); n != 64 {
		t.Errorf("%d issued events, want 64", n)
	}
	if _, err := s.VerifyEvents(ctx); err != nil {
		t.Error(err)
	}
}

func testWithdrawnRecord(t *testing.T, o Open) {
	s := open(t, o)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	c := Certificate("1")
	if _, err := s.Record(ctx, c, store.Event{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled record: %v", err)
	}
	if _, err := s.Certificate(context.Background(), c.Serial); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a cancelled record is visible: %v", err)
	}
	// Whenever the context ends: an error means that nothing was recorded.
	for i := range 50 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i)*20*time.Microsecond)
		c := Certificate("2")
		_, err := s.Record(ctx, c, store.Event{})
		cancel()
		_, read := s.Certificate(context.Background(), c.Serial)
		if (err == nil) != (read == nil) {
			t.Fatalf("record says %v, read says %v", err, read)
		}
	}
}

func testRestart(t *testing.T, o Open) {
	ctx := context.Background()
	s := o(t)
	c := record(t, s, Certificate("1"))
	gone := record(t, s, Certificate("2"))
	revoke(t, s, store.Revocation{Serial: gone.Serial, Block: time.Hour})
	set := publish(t, s, 0)
	if err := s.Denied(ctx, store.Event{Identity: "x", Reason: "no rule"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, o)
	if _, err := s.Certificate(ctx, c.Serial); err != nil {
		t.Error(err)
	}
	var blocked *store.BlockedError
	if _, err := s.Record(ctx, Certificate("2"), store.Event{}); !errors.As(err, &blocked) {
		t.Errorf("the block is gone: %v", err)
	}
	again := Certificate("1")
	again.TokenID = c.TokenID
	var replay *store.ReplayError
	if _, err := s.Record(ctx, again, store.Event{}); !errors.As(err, &replay) {
		t.Errorf("the token is good again: %v", err)
	}
	if got, err := s.CRLs(ctx); err != nil || got.Number != set.Number || !holds(listed(t, got), gone.Serial) {
		t.Errorf("CRLs: %+v, %v", got, err)
	}
	if next := publish(t, s, 0); next.Number <= set.Number {
		t.Errorf("number %d after %d", next.Number, set.Number)
	}
	if n := len(events(t, s, store.EventDenied)); n != 1 {
		t.Errorf("%d denials written by Close, want 1", n)
	}
	if _, err := s.VerifyEvents(ctx); err != nil {
		t.Error(err)
	}
}

func testEach(t *testing.T, o Open) {
	ctx := context.Background()
	s := open(t, o)
	want := make(map[string]bool)
	for i := range 20 {
		want[record(t, s, Certificate(fmt.Sprint(i))).Serial] = true
	}
	last := ""
	if err := s.Each(ctx, func(c *store.Certificate) error {
		if c.Serial <= last || len(c.TBS) == 0 {
			t.Errorf("%s after %s, TBS of %d bytes", c.Serial, last, len(c.TBS))
		}
		last = c.Serial
		delete(want, c.Serial)
		return nil
	}); err != nil || len(want) != 0 {
		t.Errorf("Each left out %d: %v", len(want), err)
	}
	stop := errors.New("stop")
	if err := s.Each(ctx, func(*store.Certificate) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("Each returns %v", err)
	}
}

func testClose(t *testing.T, o Open) {
	ctx := context.Background()
	s := o(t)
	if err := s.Ping(ctx); err != nil {
		t.Error(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var acknowledged []string
	for range 8 {
		wg.Go(func() {
			for {
				c := Certificate("1")
				if _, err := s.Record(ctx, c, store.Event{}); err != nil {
					return
				}
				mu.Lock()
				acknowledged = append(acknowledged, c.Serial)
				mu.Unlock()
			}
		})
	}
	for len(events(t, s, store.EventIssued)) < 10 {
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if err := s.Ping(ctx); err == nil {
		t.Error("a closed store answers")
	}
	s = open(t, o)
	for _, serial := range acknowledged {
		if _, err := s.Certificate(ctx, serial); err != nil {
			t.Errorf("acknowledged, but %v", err)
		}
	}
}
