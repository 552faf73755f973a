package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

const (
	// maxBatch bounds the writes of one commit, and so how long the ledger lock is
	// held.
	maxBatch = 256
	// maxWait bounds how long a commit waits for calls that have not arrived yet.
	maxWait = 2 * time.Millisecond
	// commitTimeout ends a commit that the database does not answer.
	commitTimeout = 15 * time.Second
)

// pendingWrite is one call that may share a commit with others: a certificate with
// its events, or events alone.
type pendingWrite struct {
	cert   *store.Certificate
	events []store.Event

	taken  atomic.Bool // set by the committer, or by a caller that gave up
	done   chan struct{}
	result *store.Certificate
	err    error

	id      int64 // of cert
	serial  []byte
	aki     []byte
	engines string // JSON
	token   []byte // tokenHash
}

// committer writes all waiting calls in one commit.
type committer struct {
	ledger *ledger
	wake   signal // queue or closed has changed

	mu     sync.Mutex
	queue  []*pendingWrite
	closed bool
}

func newCommitter(l *ledger) *committer {
	return &committer{ledger: l, wake: newSignal()}
}

// do queues p and waits for its commit. If ctx ends before the commit has begun, do
// withdraws p, and nothing of p is written. After that, do waits for the outcome,
// even if ctx ends.
func (c *committer) do(ctx context.Context, p *pendingWrite) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p.done = make(chan struct{})
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return errClosed
	}
	c.queue = append(c.queue, p)
	c.mu.Unlock()
	c.wake.set()
	select {
	case <-p.done:
	case <-ctx.Done():
		if p.taken.CompareAndSwap(false, true) {
			return ctx.Err()
		}
		<-p.done
	}
	return p.err
}

// close refuses further calls. run returns when the queue is empty.
func (c *committer) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.wake.set()
}

func (c *committer) run() {
	for range c.wake {
		for {
			c.waitForMore()
			batch, last := c.take()
			if len(batch) > 0 {
				c.commit(batch)
				continue
			}
			if last {
				return
			}
			break
		}
	}
}

// waitForMore yields the processor to other goroutines while they queue further
// calls, which then share the cost of one commit. On an idle processor it returns
// at once.
func (c *committer) waitForMore() {
	for n, until := c.waiting(), time.Now().Add(maxWait); n > 0 && n < maxBatch; {
		runtime.Gosched()
		more := c.waiting()
		if more == n || time.Now().After(until) {
			return
		}
		n = more
	}
}

func (c *committer) waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.queue)
}

// take returns up to maxBatch writes that were not withdrawn. last reports whether
// the committer is closed and its queue empty.
func (c *committer) take() (batch []*pendingWrite, last bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, p := range c.queue {
		if len(batch) == maxBatch {
			break
		}
		n++
		if p.taken.CompareAndSwap(false, true) {
			batch = append(batch, p)
		}
	}
	c.queue = append(c.queue[:0], c.queue[n:]...)
	clear(c.queue[len(c.queue):cap(c.queue)])
	return batch, c.closed && len(c.queue) == 0
}

// commit writes batch and answers all its calls. If the database refuses the data
// of one call, each call gets its own commit.
func (c *committer) commit(batch []*pendingWrite) {
	err := c.attempt(batch, false)
	var uncertain *uncertainError
	switch {
	case err == nil:
	case errors.As(err, &uncertain):
		c.resolveUncertain(batch, err)
	case c.ledger.db.refused(err):
		for _, p := range batch {
			p.result, p.err = nil, nil
			if err := c.attempt([]*pendingWrite{p}, true); err != nil {
				p.err = err
			}
		}
	default:
		for _, p := range batch {
			p.result, p.err = nil, err
		}
	}
	for _, p := range batch {
		close(p.done)
	}
}

func (c *committer) attempt(batch []*pendingWrite, careful bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	return c.ledger.update(ctx, "commit", func(tx transaction, h *chainHead) ([]store.Event, error) {
		return c.ledger.apply(ctx, tx, h, batch, careful)
	})
}

// resolveUncertain finds out whether a commit happened after its answer was lost.
// It looks for the first certificate of batch, since a commit writes all or
// nothing. A batch without a certificate remains an error.
func (c *committer) resolveUncertain(batch []*pendingWrite, cause error) {
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	committed := false
	err := c.ledger.db.update(ctx, func(tx transaction) error { // this holds the lock, so the lost commit has ended
		for _, p := range batch {
			if p.cert == nil || p.result != p.cert {
				continue
			}
			recorded, err := certificateBySerial(ctx, tx, p.serial)
			if err != nil {
				return err
			}
			committed = recorded != nil && string(recorded.TBS) == string(p.cert.TBS)
			return nil
		}
		return nil
	})
	if err == nil && committed {
		return
	}
	for _, p := range batch {
		if p.err == nil {
			p.result, p.err = nil, fmt.Errorf("commit: %w", errors.Join(cause, err))
		}
	}
}
