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

// Ages of a key set. An age is the larger of wall clock time and monotonic time: the
// monotonic clock of a suspended machine stops, and a wall clock can be set back.
const (
	// refreshAfter is when a key set is fetched again in the background.
	refreshAfter = 10 * time.Minute
	// staleAfter is when a token waits for a refresh. A key that its provider has
	// removed is used no longer than this.
	staleAfter = 15 * time.Minute
	// lastGoodFor is how long the last good set is used while its provider does not
	// answer.
	lastGoodFor = 24 * time.Hour
	// askPause is the minimum time between two fetches caused by tokens.
	askPause = 10 * time.Second
	// firstRetry is the first pause after a failed fetch. It doubles up to lastRetry.
	firstRetry = 250 * time.Millisecond
	lastRetry  = 10 * time.Second
)

// fetcher fetches a provider's key set. Its owner closes it.
type fetcher interface {
	fetch(context.Context) (keys, error)
	close()
}

// keys holds the usable public keys of one set by kid and alg.
type keys map[keyName]crypto.PublicKey

type keyName struct{ kid, alg string }

// find returns the key named kid. For a token without kid, it returns the key of alg
// if there is only one.
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
	wg   sync.WaitGroup // for the goroutines of refresh and finishFetch

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
	// The first fetch is not caused by a token, so it does not start askPause.
	first := k.startFetch()
	k.wg.Go(func() { k.refresh(first) })
	return k
}

// close stops the set and waits for its goroutines.
func (k *keySet) close() {
	k.stop()
	k.wg.Wait()
}

// refresh fetches the keys in the background, with retries. A provider that was down
// recovers without a token's request.
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

// startFetch returns the running fetch or starts one. It returns nil when the set is
// stopped.
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

// finishFetch performs one fetch and publishes its result.
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

// fetchForToken is startFetch for a token. It starts a fetch at most once per
// askPause, so that made-up key ids cannot flood the provider. Within askPause it
// returns nil.
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

// key returns the public key named kid for alg. Errors: *TokenError for a kid that the
// provider does not publish; *UnavailableError, which wraps ctx's error if ctx ended
// first.
func (k *keySet) key(ctx context.Context, kid, alg string) (crypto.PublicKey, error) {
	now := time.Now()
	g := k.current.Load()
	if g != nil && g.fresh(now) {
		if key := g.keys.find(kid, alg); key != nil {
			return key, nil
		}
	}
	known := g != nil && g.keys.find(kid, alg) != nil
	// A stale set whose refresh failed stays in use. Tokens do not each wait for the
	// provider's timeout.
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

// await waits for a running fetch, or starts one if that is allowed. A running fetch
// may have read the set before the token's key was published; the next token starts
// another.
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
