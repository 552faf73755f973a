package idtoken_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

// scripted is a provider in a synctest bubble.
type scripted struct {
	mu      sync.Mutex
	kids    []string
	err     error
	delay   time.Duration
	fetches int
}

func (s *scripted) fetch(ctx context.Context) ([]string, error) {
	s.mu.Lock()
	s.fetches++
	kids, err, delay := s.kids, s.err, s.delay
	s.mu.Unlock()
	select {
	case <-time.After(delay):
		return kids, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *scripted) set(err error, kids ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kids, s.err = kids, err
}

func (s *scripted) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fetches
}

var errDown = errors.New("connection refused")

func wantUnavailable(t *testing.T, err error) {
	t.Helper()
	var u *idtoken.UnavailableError
	if !errors.As(err, &u) {
		t.Errorf("got %v, want an *UnavailableError", err)
	}
}

// bubble runs f in a synctest bubble with a key set of p.
func bubble(t *testing.T, p *scripted, f func(t *testing.T, set *idtoken.TestSet)) {
	synctest.Test(t, func(t *testing.T) {
		set := idtoken.NewTestSet(p.fetch)
		defer set.Close()
		f(t, set)
	})
}

// TestKidFlood is ATTACKS 17.
func TestKidFlood(t *testing.T) {
	p := &scripted{kids: []string{"a"}}
	bubble(t, p, func(t *testing.T, set *idtoken.TestSet) {
		if err := set.Key(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		begin := p.count()
		for i := range 100 {
			wantRefused(t, set.Key(t.Context(), "made-up"), "not among those")
			if i == 50 {
				time.Sleep(9 * time.Second)
			}
		}
		if n := p.count() - begin; n != 1 {
			t.Errorf("100 tokens of unknown keys within 10 s caused %d fetches, want 1", n)
		}
		// The twin: a new key is found once the pause is over.
		p.set(nil, "a", "b")
		wantRefused(t, set.Key(t.Context(), "b"), "not among those")
		time.Sleep(time.Second + time.Millisecond)
		if err := set.Key(t.Context(), "b"); err != nil {
			t.Error(err)
		}
		if err := set.Key(t.Context(), "a"); err != nil {
			t.Error(err)
		}
	})
}

// TestUnknownKeyAtOnce checks that the fetch at boot does not start the pause.
func TestUnknownKeyAtOnce(t *testing.T) {
	p := &scripted{kids: []string{"a"}}
	bubble(t, p, func(t *testing.T, set *idtoken.TestSet) {
		if err := set.Key(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		p.set(nil, "b")
		if err := set.Key(t.Context(), "b"); err != nil {
			t.Error(err)
		}
	})
}

// TestDroppedKey is ATTACKS 60: a key that its provider no longer publishes works for
// at most 15 minutes.
func TestDroppedKey(t *testing.T) {
	p := &scripted{kids: []string{"a", "b"}}
	bubble(t, p, func(t *testing.T, set *idtoken.TestSet) {
		if err := set.Key(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		p.set(nil, "b")
		time.Sleep(15 * time.Minute)
		wantRefused(t, set.Key(t.Context(), "a"), "not among those")
		if err := set.Key(t.Context(), "b"); err != nil {
			t.Error(err)
		}
		p.set(nil)
		time.Sleep(15 * time.Minute)
		wantRefused(t, set.Key(t.Context(), "b"), "not among those")
	})
}

// TestOutage is ATTACKS 29 and 31: the last good set works for 24 hours, and a
// provider recovers without a token's request.
func TestOutage(t *testing.T) {
	p := &scripted{kids: []string{"a"}}
	bubble(t, p, func(t *testing.T, set *idtoken.TestSet) {
		if err := set.Key(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		p.set(errDown)
		p.mu.Lock()
		p.delay = 8 * time.Second // fails slowly, too
		p.mu.Unlock()
		for _, after := range []time.Duration{16 * time.Minute, time.Hour, 23*time.Hour + 59*time.Minute} {
			time.Sleep(time.Until(began.Add(after)))
			asked := time.Now()
			if err := set.Key(t.Context(), "a"); err != nil {
				t.Fatalf("after %v: %v", after, err)
			}
			if waited := time.Since(asked); waited > 0 {
				t.Errorf("after %v a token waited for %v", after, waited)
			}
		}
		time.Sleep(time.Until(began.Add(24*time.Hour + time.Second)))
		wantUnavailable(t, set.Key(t.Context(), "a"))
		p.mu.Lock()
		p.delay = 0
		p.mu.Unlock()
		p.set(nil, "c")
		time.Sleep(20 * time.Second)
		if err := set.Key(t.Context(), "c"); err != nil {
			t.Error(err)
		}
		wantRefused(t, set.Key(t.Context(), "a"), "not among those")
	})
}

func TestDownAtBoot(t *testing.T) {
	p := &scripted{err: errDown}
	bubble(t, p, func(t *testing.T, set *idtoken.TestSet) {
		err := set.Key(t.Context(), "a")
		wantUnavailable(t, err)
		if !errors.Is(err, errDown) {
			t.Errorf("the cause is hidden: %v", err)
		}
		time.Sleep(time.Hour)
		before := p.count()
		wantUnavailable(t, set.Key(t.Context(), "a"))
		p.set(nil, "a")
		time.Sleep(10 * time.Second)
		begin := time.Now()
		if err := set.Key(t.Context(), "a"); err != nil || time.Since(begin) > 0 {
			t.Errorf("healed: %v after %v", err, time.Since(begin))
		}
		if before > 800 {
			t.Errorf("a provider that is down was asked %d times in an hour", before)
		}
	})
}

// TestManyWaitForOneFetch checks that tokens before the first keys share one fetch.
func TestManyWaitForOneFetch(t *testing.T) {
	p := &scripted{kids: []string{"a"}, delay: 3 * time.Second}
	bubble(t, p, func(t *testing.T, set *idtoken.TestSet) {
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if err := set.Key(t.Context(), "a"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := p.count(); n != 1 {
			t.Errorf("%d fetches, want 1", n)
		}
	})
}

// TestSlowProvider is ATTACKS 29: the set's and the caller's deadline apply.
func TestSlowProvider(t *testing.T) {
	p := &scripted{kids: []string{"a"}, delay: time.Hour}
	bubble(t, p, func(t *testing.T, set *idtoken.TestSet) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := set.Key(ctx, "a")
		wantUnavailable(t, err)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the cause is hidden: %v", err)
		}
		begin := time.Now()
		wantUnavailable(t, set.Key(t.Context(), "a"))
		if d := time.Since(begin); d > 10*time.Second {
			t.Errorf("a token waited for %v", d)
		}
	})
}

func TestStoppedSet(t *testing.T) {
	p := &scripted{kids: []string{"a"}}
	synctest.Test(t, func(t *testing.T) {
		set := idtoken.NewTestSet(p.fetch)
		if err := set.Key(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		set.Close()
		if err := set.Key(t.Context(), "a"); err != nil {
			t.Errorf("what it knows: %v", err)
		}
		begin := p.count()
		wantRefused(t, set.Key(t.Context(), "b"), "not among those")
		time.Sleep(25 * time.Hour)
		wantUnavailable(t, set.Key(t.Context(), "a"))
		if p.count() != begin {
			t.Error("a stopped set was fetched")
		}
	})
}

// TestTokensWithoutKid checks that a token without kid gets the provider's only key.
func TestTokensWithoutKid(t *testing.T) {
	p := &scripted{kids: []string{"a"}}
	bubble(t, p, func(t *testing.T, set *idtoken.TestSet) {
		if err := set.Key(t.Context(), ""); err != nil {
			t.Error(err)
		}
		p.set(nil, "a", "b")
		time.Sleep(15 * time.Minute)
		wantRefused(t, set.Key(t.Context(), ""), "not among those")
	})
}
