package storetest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

func testCRLs(t *testing.T, o Open) {
	ctx := context.Background()
	s := open(t, o)
	if _, err := s.CRLs(ctx); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("before the first: %v", err)
	}
	before := time.Now().UnixMilli()
	first := publish(t, s, time.Minute)
	if first.Number < before {
		t.Errorf("number %d is below the clock %d", first.Number, before)
	}
	if got := publish(t, s, time.Minute); got.Number != first.Number || len(got.CRLs) != 1 || string(got.CRLs[0].DER) != string(first.CRLs[0].DER) {
		t.Errorf("a fresh set is signed again: %+v", got)
	}
	if got := publish(t, s, 0); got.Number <= first.Number {
		t.Errorf("maxAge 0: number %d after %d", got.Number, first.Number)
	}
	c := record(t, s, Certificate("1"))
	other := Certificate("2")
	other.AKI = "feed"
	record(t, s, other)
	newest := publish(t, s, time.Minute)
	revoke(t, s, store.Revocation{Serial: c.Serial})
	revoke(t, s, store.Revocation{Serial: other.Serial})
	got := publish(t, s, time.Minute)
	state := listed(t, got)
	if got.Number <= newest.Number || len(state.Entries["0badc0de"]) != 1 || len(state.Entries["feed"]) != 1 {
		t.Errorf("a revocation is not published: %+v", state)
	}
	if e := state.Entries["0badc0de"][0]; e.Serial != c.Serial || !e.NotAfter.Equal(c.NotAfter) || e.RevokedAt.IsZero() {
		t.Errorf("entry %+v", e)
	}
	cause := errors.New("no key")
	if _, err := s.PublishCRLs(ctx, 0, func(store.CRLState) ([]store.SignedCRL, error) { return nil, cause }); !errors.Is(err, cause) {
		t.Errorf("a failed signature: %v", err)
	}
	if kept, err := s.CRLs(ctx); err != nil || kept.Number != got.Number {
		t.Errorf("a failed signature changed the set: %+v, %v", kept, err)
	}
	if _, err := s.PublishCRLs(ctx, 0, func(store.CRLState) ([]store.SignedCRL, error) { return nil, nil }); err == nil {
		t.Error("an empty set was published")
	}
	// Issuing continues while a set is being signed.
	if _, err := s.PublishCRLs(ctx, 0, func(state store.CRLState) ([]store.SignedCRL, error) {
		record(t, s, Certificate("3"))
		return sign(state)
	}); err != nil {
		t.Error(err)
	}
}

func testCRLChanged(t *testing.T, o Open) {
	s, peer := open(t, o), open(t, o)
	first := publish(t, s, 0)
	closed := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	if !closed(s.CRLChanged(0)) {
		t.Error("who knows an older number waits")
	}
	wait := s.CRLChanged(first.Number)
	far := peer.CRLChanged(first.Number)
	if closed(wait) || closed(far) {
		t.Error("the newest number counts as another")
	}
	start := time.Now()
	publish(t, s, 0)
	<-wait
	<-far
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("another handle heard after %v", d)
	}
	<-s.CRLChanged(1 << 60) // no set has that number
}

func testCRLRace(t *testing.T, o Open) {
	handles := []store.Store{open(t, o), open(t, o)}
	var wg sync.WaitGroup
	var mu sync.Mutex
	numbers := make(map[int64]int)
	for i := range 8 {
		s := handles[i%2]
		wg.Go(func() {
			for range 15 {
				c := record(t, s, Certificate("1"))
				revoke(t, s, store.Revocation{Serial: c.Serial})
				set := publish(t, s, 0)
				if !holds(listed(t, set), c.Serial) {
					t.Errorf("set %d lacks %s, revoked before it", set.Number, c.Serial)
				}
				mu.Lock()
				numbers[set.Number]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for n, times := range numbers {
		if times != 1 {
			t.Errorf("number %d was used %d times", n, times)
		}
	}
	last, err := handles[0].CRLs(context.Background())
	if err != nil || len(listed(t, last).Entries["0badc0de"]) != 8*15 {
		t.Errorf("the last set lacks some: %v", err)
	}
}

func testTokenRace(t *testing.T, o Open) {
	handles := []store.Store{open(t, o), open(t, o)}
	for round := range 200 {
		const racers = 8
		var wg sync.WaitGroup
		token := Certificate("1").TokenID
		won := make([]bool, racers)
		for i := range racers {
			wg.Go(func() {
				c := Certificate("1")
				c.TokenID = token
				_, err := handles[i%2].Record(context.Background(), c, store.Event{})
				var replay *store.ReplayError
				if err != nil && !errors.As(err, &replay) {
					t.Error(err)
				}
				won[i] = err == nil
			})
		}
		wg.Wait()
		winners := 0
		for _, w := range won {
			if w {
				winners++
			}
		}
		if winners != 1 {
			t.Fatalf("round %d: %d winners", round, winners)
		}
	}
	if n, err := handles[0].VerifyEvents(context.Background()); err != nil || n != 200 {
		t.Errorf("chain of %d events: %v", n, err)
	}
}

// testRevokeRace: a certificate issued while its run is revoked is either refused
// or in the list.
func testRevokeRace(t *testing.T, o Open) {
	handles := []store.Store{open(t, o), open(t, o)}
	for range 25 {
		run := Certificate("").TokenID
		first := record(t, handles[0], Certificate(run))
		var wg sync.WaitGroup
		var mu sync.Mutex
		issued := []string{first.Serial}
		for i := range 8 {
			wg.Go(func() {
				for range 4 {
					c := Certificate(run)
					_, err := handles[i%2].Record(context.Background(), c, store.Event{})
					var blocked *store.BlockedError
					switch {
					case err == nil:
						mu.Lock()
						issued = append(issued, c.Serial)
						mu.Unlock()
					case !errors.As(err, &blocked):
						t.Error(err)
					}
				}
			})
		}
		wg.Go(func() { revoke(t, handles[1], store.Revocation{Serial: first.Serial, Block: time.Hour}) })
		wg.Wait()
		state := listed(t, publish(t, handles[0], 0))
		for _, serial := range issued {
			if !holds(state, serial) {
				t.Fatalf("%s was issued and is not on the list", serial)
			}
		}
	}
}
