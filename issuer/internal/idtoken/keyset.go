package idtoken

import (
	"context"
	"crypto"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Ages of a key set: by the wall clock or the monotonic one, whichever is more,
// since a suspended machine's monotonic clock stands still, and a wall clock
// can be set back.
const (
	// refreshAfter is when a key set is fetched again in the background.
	refreshAfter = 10 * time.Minute
	// staleAfter is when a token waits for a refresh: a key that its provider
	// has dropped serves no longer than this.
	staleAfter = 15 * time.Minute
	// lastGoodFor is how long the last good set serves while its provider
	// does not answer.
	lastGoodFor = 24 * time.Hour
	// askPause is the least time between two fetches that tokens cause.
	askPause = 10 * time.Second
	// firstRetry doubles up to lastRetry after each failed fetch.
	firstRetry = 250 * time.Millisecond
	lastRetry  = 10 * time.Second
)

// fetcher fetches a provider's key set; its owner closes it.
type fetcher interface {
	fetch(context.Context) (keys, error)
	close()
}

// keys are the usable public keys of one set by kid and alg.
type keys map[keyName]crypto.PublicKey

type keyName struct{ kid, alg string }

// find returns the key named kid. A token without kid has the only key of its
// algorithm, where there is only one.
func (k keys) find(kid, alg string) crypto.PublicKey {
	if kid != "" {
		return k[keyName{kid, alg}]
	}
	var only crypto.PublicKey
	for name, key := range k {
		if name.alg != alg {
			continue
		}
		if only != nil {
			return nil
		}
		only = key
	}
	return only
}

// keySet holds one provider's keys and refreshes them until it is stopped.
type keySet struct {
	provider string
	fetcher  fetcher
	logger   *slog.Logger
	current  atomic.Pointer[generation] // the last good set; nil before the first

	stop func() // ends fetching without waiting
	ctx  context.Context
	wg   sync.WaitGroup // the refresher and flights

	mu      sync.Mutex
	fetch   *fetch    // the fetch under way; nil when none is
	asked   time.Time // when a token last caused a fetch
	failure error     // of the newest fetch; nil when it succeeded
	stopped bool
}

// generation is one fetched set.
type generation struct {
	keys keys
	at   time.Time // with its monotonic reading
}

func (g *generation) age(now time.Time) time.Duration {
	return max(now.Sub(g.at), now.Round(0).Sub(g.at.Round(0)))
}

func (g *generation) fresh(now time.Time) bool { return g.age(now) < staleAfter }

func (g *generation) usable(now time.Time) bool { return g.age(now) < lastGoodFor }

type fetch struct {
	done chan struct{}
	err  error // set before done is closed
}

func newKeySet(provider string, f fetcher, logger *slog.Logger) *keySet {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	k := &keySet{provider: provider, fetcher: f, logger: logger, ctx: ctx}
	k.stop = func() {
		k.mu.Lock()
		k.stopped = true
		k.mu.Unlock()
		cancel()
	}
	// The first fetch is under way before anybody can ask, and so is nobody's
	// ask: the pause between asks begins with the first unknown key.
	first := k.startFetch()
	k.wg.Go(func() { k.refresh(first) })
	return k
}

// close stops the set and waits for what it does.
func (k *keySet) close() {
	k.stop()
	k.wg.Wait()
}

// refresh is the background work: a provider that is down at boot, or goes
// down later, heals without anybody asking.
func (k *keySet) refresh(fl *fetch) {
	defer k.fetcher.close()
	retry := firstRetry
	for ; ; fl = k.startFetch() {
		pause := refreshAfter - rand.N(refreshAfter/10)
		if fl != nil {
			<-fl.done
			if fl.err != nil {
				pause = retry/2 + rand.N(retry/2)
				retry = min(2*retry, lastRetry)
			} else {
				retry = firstRetry
			}
		}
		select {
		case <-k.ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// startFetch joins the fetch under way or starts one; nil when the set is stopped.
func (k *keySet) startFetch() *fetch {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.flyLocked()
}

func (k *keySet) flyLocked() *fetch {
	if k.stopped {
		return nil
	}
	if k.fetch == nil {
		fl := &fetch{done: make(chan struct{})}
		k.fetch = fl
		k.wg.Go(func() { k.finishFetch(fl) })
	}
	return k.fetch
}

// finishFetch performs one fetch and publishes what came of it.
func (k *keySet) finishFetch(fl *fetch) {
	ctx, cancel := context.WithTimeout(k.ctx, fetchTimeout)
	defer cancel()
	got, err := k.fetcher.fetch(ctx)
	if err == nil {
		k.current.Store(&generation{keys: got, at: time.Now()})
	}
	k.mu.Lock()
	was := k.failure
	k.fetch, k.failure, fl.err = nil, err, err
	k.mu.Unlock()
	close(fl.done)
	switch {
	case k.ctx.Err() != nil:
	case err != nil && was == nil:
		k.logger.Warn("token provider's keys not fetched", "provider", k.provider, "err", err)
	case err == nil && was != nil:
		k.logger.Info("token provider's keys fetched again", "provider", k.provider, "keys", len(got))
	}
}

// fetchForToken is fly for a token's sake: it starts a fetch at most once per askPause,
// so that made-up key ids cannot have the provider flooded. nil: not now.
func (k *keySet) fetchForToken(now time.Time) *fetch {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fetch != nil {
		return k.fetch
	}
	if !k.asked.IsZero() && now.Sub(k.asked) < askPause {
		return nil
	}
	k.asked = now
	return k.flyLocked()
}

func (k *keySet) lastFailure() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.failure
}

// key returns the public key named kid for alg. Errors: *TokenError for a kid
// that the provider does not publish, *UnavailableError (around ctx's own
// error, where that came first).
func (k *keySet) key(ctx context.Context, kid, alg string) (crypto.PublicKey, error) {
	now := time.Now()
	g := k.current.Load()
	if g != nil && g.fresh(now) {
		if key := g.keys.find(kid, alg); key != nil {
			return key, nil
		}
	}
	known := g != nil && g.keys.find(kid, alg) != nil
	// A set that is past its age, known not to be refreshable, serves on
	// without every token waiting for the provider's time-out.
	if !known || k.lastFailure() == nil {
		if err := k.await(ctx, now); err != nil {
			return nil, err
		}
	}
	g = k.current.Load()
	if g == nil || !g.usable(time.Now()) {
		err := k.lastFailure()
		if err == nil {
			err = errors.New("not fetched yet")
		}
		return nil, &UnavailableError{Provider: k.provider, Err: err}
	}
	if key := g.keys.find(kid, alg); key != nil {
		return key, nil
	}
	return nil, refuse("its key is not among those that provider %s publishes", k.provider)
}

// await waits for a fetch, if one is under way or may be started. A fetch that
// was under way may have read the set before the token's key was published;
// the next token starts another.
func (k *keySet) await(ctx context.Context, now time.Time) error {
	fl := k.fetchForToken(now)
	if fl == nil {
		return nil
	}
	select {
	case <-fl.done:
		return nil
	case <-ctx.Done():
		return &UnavailableError{Provider: k.provider, Err: ctx.Err()}
	}
}
