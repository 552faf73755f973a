package issuer

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// TestServerTimeouts checks that every timeout of the servers is set, against slow
// handshakes, headers, bodies and responses.
func TestServerTimeouts(t *testing.T) {
	t.Parallel()
	svc := &Service{logger: slog.New(slog.DiscardHandler)}
	s := svc.httpServer(http.NotFoundHandler())
	for name, d := range map[string]time.Duration{"read header": s.ReadHeaderTimeout, "read": s.ReadTimeout, "write": s.WriteTimeout, "idle": s.IdleTimeout} {
		if d <= 0 || d > 2*time.Minute {
			t.Errorf("%s timeout is %v", name, d)
		}
	}
	if s.WriteTimeout <= wire.CRLWait {
		t.Error("a held crl/wait could not be answered")
	}
	if s.MaxHeaderBytes != wire.MaxHeaderBytes {
		t.Errorf("a header may have %d bytes", s.MaxHeaderBytes)
	}
}

// TestWaitersAreBounded checks the number of waiting requests, per address and in all.
// One over the bound is answered at once, and one that leaves makes room.
func TestWaitersAreBounded(t *testing.T) {
	t.Parallel()
	w := waiters{byAddress: map[string]int{}}
	for range maxWaitersPerAddress {
		if !w.enter("192.0.2.1") {
			t.Fatal("refused within the bound")
		}
	}
	if w.enter("192.0.2.1") {
		t.Error("one address holds more than its share")
	}
	for n := 0; w.total < maxWaiters; n++ {
		if !w.enter(strconv.Itoa(n)) {
			t.Fatal("another address is refused within the bound")
		}
	}
	if w.enter("198.51.100.7") {
		t.Error("all together hold more than the bound")
	}
	w.leave("192.0.2.1")
	if !w.enter("198.51.100.7") {
		t.Error("who left made no room")
	}
	for w.byAddress["192.0.2.1"] > 0 {
		w.leave("192.0.2.1")
	}
	if _, ok := w.byAddress["192.0.2.1"]; ok {
		t.Error("an address that holds nothing is remembered")
	}
}

// TestReadinessIsShared checks that one result answers all requests for a second.
func TestReadinessIsShared(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var c readinessCache
		asked, state := 0, error(nil)
		ready := func(ctx context.Context) error { asked++; return errors.Join(state, ctx.Err()) }
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		for range 100 {
			if err := c.ask(gone, ready); err != nil { // the first client may have disconnected
				t.Fatal(err)
			}
		}
		if asked != 1 {
			t.Errorf("asked the store %d times", asked)
		}
		state = io.ErrClosedPipe
		time.Sleep(readinessAge + time.Millisecond) // the bubble's clock
		if err := c.ask(t.Context(), ready); !errors.Is(err, state) || asked != 2 {
			t.Errorf("a second later: %v, asked %d times", err, asked)
		}
	})
}

// TestIsAddress checks addresses in reports: a zone could hold any text.
func TestIsAddress(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"192.0.2.1": true, "192.0.2.1:99": true, "2001:db8::1": true, "[2001:db8::1]:99": true,
		"fe80::1%\x1b[2J": false, "[fe80::1%eth0]:99": false, "example.com:99": false, "<script>": false, "192.0.2.1:99999": false,
	} {
		if got := isAddress(text); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// prunedStore records the calls of Prune.
type prunedStore struct {
	store.Store
	before []time.Time
}

func (p *prunedStore) Prune(_ context.Context, before time.Time) (int64, error) {
	p.before = append(p.before, before)
	return 0, nil
}

// TestPrune checks that pruning runs soon after the start, since a machine may be
// stopped within its first hour, and then hourly.
func TestPrune(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := &prunedStore{}
		svc := &Service{config: Config{Retention: 72 * time.Hour}, logger: slog.New(slog.DiscardHandler), store: st}
		begun := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour+2*firstPrune)
		defer cancel()
		svc.prune(ctx) // in the bubble's time
		if len(st.before) != 3 {
			t.Fatalf("pruned at %v", st.before)
		}
		for n, want := range []time.Duration{firstPrune, firstPrune + time.Hour, firstPrune + 2*time.Hour} {
			if got := st.before[n].Add(72 * time.Hour).Sub(begun); got != want {
				t.Errorf("prune %d after %v, want %v", n, got, want)
			}
		}
	})
}
