package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// maxLifetime bounds NotAfter - IssuedAt of a record: the longest profile's cap
// plus an hour. It also bounds how long ago an unexpired certificate was issued.
const maxLifetime = 25 * time.Hour

// crlRetention is how long after NotAfter a revocation stays on the CRL. A relay
// may outlive its certificate for that long (max_connection_age).
const crlRetention = 24 * time.Hour

// errClosed: the store is closed.
var errClosed = errors.New("store is closed")

// ledger implements store.Store over a database.
type ledger struct {
	db        database
	dialect   *dialect
	meta      store.Meta
	cursorKey []byte
	stateKey  store.StateKey

	// Only functions within database.update read and write blocks.
	blocks blockIndex
	// nonce distinguishes the ids of one microsecond.
	nonce atomic.Int64

	committer *committer
	denials   *denials
	watcher   *watcher
	publish   chan struct{} // semaphore of one: one PublishCRLs signs at a time

	stop    context.CancelFunc
	workers sync.WaitGroup
	closing sync.Once
	closed  error
}

var _ store.Store = (*ledger)(nil)

// startLedger reads the store in d and starts its goroutines. Close ends them and
// closes d. On an error d stays open.
func startLedger(ctx context.Context, d database, root string, key store.StateKey) (*ledger, error) {
	if key.IsZero() {
		key = store.NewStateKey()
	}
	_, dialect := d.schema()
	l := &ledger{db: d, dialect: dialect, stateKey: key, publish: make(chan struct{}, 1)}
	l.nonce.Store(rand.Int64N(idSlots))
	var crls crlState
	err := d.snapshot(ctx, func(r reader) error {
		m, key, err := readMeta(ctx, r)
		switch {
		case err != nil:
			return err
		case m == nil:
			return store.ErrMissing
		case root != "" && m.RootFingerprint != root:
			return fmt.Errorf("%w: %s", store.ErrOtherRoot, m.RootFingerprint)
		}
		l.meta, l.cursorKey = *m, key
		crls, err = readCRLState(ctx, r)
		return err
	})
	if err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(context.Background())
	l.stop = stop
	l.committer = newCommitter(l)
	l.denials = newDenials(l)
	l.watcher = newWatcher(l, crls.number)
	l.workers.Go(l.committer.run)
	l.workers.Go(func() { l.denials.run(run) })
	l.workers.Go(func() { l.watcher.run(run) })
	l.workers.Go(func() { d.watch(run, l.watcher.wake.set) })
	return l, nil
}

// Close writes pending denials, ends every goroutine and closes the database. It
// first commits and answers records that are in progress.
func (l *ledger) Close() error {
	l.closing.Do(func() {
		l.stop()
		flushed := l.denials.close()
		l.committer.close()
		l.workers.Wait()
		l.closed = errors.Join(flushed, l.db.close())
	})
	return l.closed
}

// Meta implements store.Store.
func (l *ledger) Meta() store.Meta { return l.meta }

// Ping implements store.Store.
func (l *ledger) Ping(ctx context.Context) error {
	if err := l.db.ping(ctx); err != nil {
		return fmt.Errorf("ping store: %w", err)
	}
	return nil
}

// chainHead is the state row.
type chainHead struct {
	floor         int64
	blocksVersion int64
	revision      int64
	seq           int64
	hash          []byte
	time          int64
	disorder      int64
}

// changeBlocks gives the blocks a version that no process has seen before. A plain
// counter could repeat a value after the database was set back, while processes
// keep blocks in memory.
func (h *chainHead) changeBlocks() {
	h.blocksVersion = max(h.blocksVersion+1, micro(time.Now()))
}

func readHead(ctx context.Context, r reader) (*chainHead, error) {
	var h chainHead
	found, err := queryRow(ctx, r, `SELECT floor, blocks_version, revision, head_seq, head_hash, head_time, disorder FROM state`, nil,
		&h.floor, &h.blocksVersion, &h.revision, &h.seq, &h.hash, &h.time, &h.disorder)
	if err == nil && !found {
		err = errors.New("store has lost its state row")
	}
	return &h, err
}

func (h *chainHead) write(ctx context.Context, tx transaction) error {
	return tx.do(ctx, `UPDATE state SET floor = $1, blocks_version = $2, revision = $3, head_seq = $4, head_hash = $5, head_time = $6, disorder = $7`,
		h.floor, h.blocksVersion, h.revision, h.seq, h.hash, h.time, h.disorder)
}

// update runs f in one commit under the ledger lock. f changes h and returns the
// events of the commit, which become one link. Both are written last.
func (l *ledger) update(ctx context.Context, op string, f func(tx transaction, h *chainHead) ([]store.Event, error)) error {
	err := l.db.update(ctx, func(tx transaction) error {
		h, err := readHead(ctx, tx)
		if err != nil {
			return err
		}
		before := *h
		events, err := f(tx, h)
		if err != nil {
			return err
		}
		if err := link(ctx, tx, h, events); err != nil {
			return err
		}
		if h.same(&before) {
			return nil
		}
		return h.write(ctx, tx)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

func (h *chainHead) same(o *chainHead) bool {
	return h.floor == o.floor && h.blocksVersion == o.blocksVersion && h.revision == o.revision && h.seq == o.seq
}

// read returns the result of f on one consistent state.
func read[T any](ctx context.Context, l *ledger, op string, f func(reader) (T, error)) (T, error) {
	var got T
	err := l.db.snapshot(ctx, func(r reader) (err error) {
		got, err = f(r)
		return err
	})
	if err != nil {
		return *new(T), fmt.Errorf("%s: %w", op, err)
	}
	return got, nil
}

// signal wakes one goroutine. It holds one value, so set never waits, and a set
// without a waiter is not lost.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) set() {
	select {
	case s <- struct{}{}:
	default:
	}
}

func micro(t time.Time) int64      { return t.UnixMicro() }
func fromMicro(us int64) time.Time { return time.UnixMicro(us).UTC() }
