package sqlstore

import (
	"context"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// maxDenials bounds the events of denials in one minute. Further denials are summed
// in one event.
const maxDenials = 256

// denialKey holds the fields that equal denials share.
type denialKey struct{ kind, identity, reason string }

// denials sums denials in memory. Denied is the only method that returns before it
// has written: a crash loses the counts of the last minute.
type denials struct {
	ledger *ledger

	mu      sync.Mutex
	pending map[denialKey]*store.Event
	order   []denialKey
	other   *store.Event // the sum of the denials beyond maxDenials
	written int          // in this minute
	closed  bool
}

func newDenials(l *ledger) *denials {
	return &denials{ledger: l, pending: make(map[denialKey]*store.Event)}
}

// Denied implements store.Store.
func (l *ledger) Denied(_ context.Context, ev store.Event) error {
	return l.denials.add(ev)
}

func (d *denials) add(ev store.Event) error {
	if ev.Type == "" {
		ev.Type = store.EventDenied
	}
	if ev.Time.IsZero() {
		ev.Time = time.Now()
	}
	ev.Count = max(ev.Count, 1)
	ev.Identity, ev.Reason = sanitize(ev.Identity), sanitize(ev.Reason)
	key := denialKey{ev.Type, ev.Identity, ev.Reason}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch sum, ok := d.pending[key]; {
	case d.closed:
		return errClosed
	case ok:
		sum.Count += ev.Count
	case d.written+len(d.pending) >= maxDenials:
		if d.other == nil {
			d.other = &store.Event{Type: store.EventDenied, Time: ev.Time, Reason: "other denials of this minute"}
		}
		d.other.Count += ev.Count
	default:
		d.pending[key] = &ev
		d.order = append(d.order, key)
	}
	return nil
}

// flush writes the pending denials. At the end of a minute it also writes the sum
// of the others and resets the counters. A denial that cannot be written stays
// pending.
func (d *denials) flush(ctx context.Context, minute bool) error {
	d.mu.Lock()
	events := make([]store.Event, 0, len(d.order)+1)
	for _, k := range d.order {
		events = append(events, *d.pending[k])
	}
	d.written += len(d.order)
	clear(d.pending)
	d.order = d.order[:0]
	other := d.other
	if minute {
		d.written, d.other = 0, nil
		if other != nil {
			events = append(events, *other)
		}
	}
	d.mu.Unlock()
	if len(events) == 0 {
		return nil
	}
	err := d.ledger.committer.do(ctx, &pendingWrite{events: events})
	if err != nil {
		for _, ev := range events { // put back
			_ = d.add(ev) // add refuses only after close, when no flush follows
		}
	}
	return err
}

func (d *denials) run(ctx context.Context) {
	for {
		now := time.Now()
		timer := time.NewTimer(now.Truncate(time.Minute).Add(time.Minute).Sub(now))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		_ = d.flush(ctx, true) // stays pending; the next minute tries again
	}
}

// close writes the pending denials and refuses further ones.
func (d *denials) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	err := d.flush(ctx, true)
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	return err
}
