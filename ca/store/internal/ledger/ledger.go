// Package ledger is the Store over any SQL database: its shape, its queries
// and its rules, written once for both drivers.
//
// What a database does differently (connections, the lock that one commit
// holds, how another process is told) stands behind Driver. The package knows
// nothing of signing and imports no database.
package ledger

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

const second = time.Second

// MaxLifetime bounds NotAfter - IssuedAt of a record: the longest profile's cap
// and an hour. It also bounds how far back an unexpired certificate can lie.
const MaxLifetime = 25 * time.Hour

// crlLag is how long after NotAfter a revocation stays on the CRL: as long as
// a relay may outlive its certificate (max_connection_age).
const crlLag = 24 * time.Hour

// ErrClosed: the store is closed.
var ErrClosed = errors.New("store is closed")

// Ledger implements store.Store. Drivers embed it.
type Ledger struct {
	driver    Driver
	dialect   Dialect
	meta      store.Meta
	cursorKey []byte
	stateKey  store.StateKey

	// blocks is read and written only within Driver.Update.
	blocks blockIndex
	// nonce tells apart what is issued within one microsecond.
	nonce atomic.Int64

	committer *committer
	denials   *denials
	watcher   *watcher
	publish   chan struct{} // semaphore of one: PublishCRLs signs one flight at a time

	stop    context.CancelFunc
	workers sync.WaitGroup
	closing sync.Once
	closed  error
}

var _ store.Store = (*Ledger)(nil)

// Open reads the store behind d and starts its committer. It owns d from then
// on; on an error it closes it. rootFP, if not empty, must be the store's.
// A zero key is one of this Ledger's own: what it signs, no other verifies.
func Open(ctx context.Context, d Driver, rootFP string, key store.StateKey) (*Ledger, error) {
	if key.IsZero() {
		key = store.NewStateKey()
	}
	l := &Ledger{driver: d, dialect: d.Dialect(), stateKey: key, publish: make(chan struct{}, 1)}
	l.nonce.Store(rand.Int64N(idSlots))
	var crls crlState
	err := d.Snapshot(ctx, func(r Reader) error {
		m, key, err := readMeta(ctx, r)
		switch {
		case err != nil:
			return err
		case m == nil:
			return store.ErrMissing
		case rootFP != "" && m.RootFingerprint != rootFP:
			return fmt.Errorf("%w: %s", store.ErrOtherRoot, m.RootFingerprint)
		}
		l.meta, l.cursorKey = *m, key
		crls, err = readCRLState(ctx, r)
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), d.Close())
	}
	run, stop := context.WithCancel(context.Background())
	l.stop = stop
	l.committer = newCommitter(l)
	l.denials = newDenials(l)
	l.watcher = newWatcher(l, crls.number)
	l.workers.Go(l.committer.run)
	l.workers.Go(func() { l.denials.run(run) })
	l.workers.Go(func() { l.watcher.run(run) })
	l.workers.Go(func() { d.Wake(run, l.watcher.poke) })
	return l, nil
}

// Close writes what is pending, ends every goroutine and closes the database.
// Records that are under way are committed and answered first.
func (l *Ledger) Close() error {
	l.closing.Do(func() {
		l.stop()
		flushed := l.denials.close()
		l.committer.close()
		l.workers.Wait()
		l.closed = errors.Join(flushed, l.driver.Close())
	})
	return l.closed
}

// Meta implements store.Store.
func (l *Ledger) Meta() store.Meta { return l.meta }

// Ping implements store.Store.
func (l *Ledger) Ping(ctx context.Context) error {
	if err := l.driver.Ping(ctx); err != nil {
		return fmt.Errorf("ping store: %w", err)
	}
	return nil
}

// head is the state row.
type head struct {
	floor         int64
	blocksVersion int64
	revision      int64
	seq           int64
	hash          []byte
	time          int64
	disorder      int64
}

// changeBlocks gives the blocks a version that no process has ever seen: a
// counter alone would come to old values again where the database itself was
// set back beneath processes that keep blocks in memory.
func (h *head) changeBlocks() {
	h.blocksVersion = max(h.blocksVersion+1, micro(time.Now()))
}

func readHead(ctx context.Context, r Reader) (*head, error) {
	var h head
	found, err := one(ctx, r, `SELECT floor, blocks_version, revision, head_seq, head_hash, head_time, disorder FROM state`, nil,
		&h.floor, &h.blocksVersion, &h.revision, &h.seq, &h.hash, &h.time, &h.disorder)
	if err == nil && !found {
		err = errors.New("store has lost its state row")
	}
	return &h, err
}

func (h *head) write(ctx context.Context, tx Tx) error {
	return tx.Do(ctx, `UPDATE state SET floor = $1, blocks_version = $2, revision = $3, head_seq = $4, head_hash = $5, head_time = $6, disorder = $7`,
		h.floor, h.blocksVersion, h.revision, h.seq, h.hash, h.time, h.disorder)
}

// update runs f in one commit under the ledger lock. f changes h and returns
// the events of the commit, which become one link; both are written last.
func (l *Ledger) update(ctx context.Context, op string, f func(tx Tx, h *head) ([]store.Event, error)) error {
	err := l.driver.Update(ctx, func(tx Tx) error {
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

func (h *head) same(o *head) bool {
	return h.floor == o.floor && h.blocksVersion == o.blocksVersion && h.revision == o.revision && h.seq == o.seq
}

// read runs f over one consistent state.
func (l *Ledger) read(ctx context.Context, op string, f func(r Reader) error) error {
	if err := l.driver.Snapshot(ctx, f); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

func micro(t time.Time) int64      { return t.UnixMicro() }
func fromMicro(us int64) time.Time { return time.UnixMicro(us).UTC() }
