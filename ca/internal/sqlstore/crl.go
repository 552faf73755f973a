package sqlstore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

const (
	// pollEvery is how often the watcher looks for another process's CRLs.
	pollEvery = 200 * time.Millisecond
	// keptSets is how many sets of CRLs the database keeps.
	keptSets = 3
)

// crlState is the row of the newest set.
type crlState struct {
	number, signedAt, revision int64
}

func readCRLState(ctx context.Context, r reader) (s crlState, err error) {
	found, err := queryRow(ctx, r, `SELECT number, signed_at, revision FROM crl_state`, nil, &s.number, &s.signedAt, &s.revision)
	if err == nil && !found {
		err = errors.New("store has lost its CRL row")
	}
	return s, err
}

// PublishCRLs implements store.Store.
//
// PublishCRLs reads the state in one snapshot, signs it, and writes the set under
// the row's lock if the row still has the number that was read. So a set holds
// every revocation of every set before it. If another call was faster, PublishCRLs
// reads, signs and tries again. Only other calls of PublishCRLs wait for a
// signature; sign must not call it.
func (l *ledger) PublishCRLs(ctx context.Context, maxAge time.Duration, sign func(store.CRLState) ([]store.SignedCRL, error)) (*store.CRLSet, error) {
	select {
	case l.publish <- struct{}{}:
		defer func() { <-l.publish }()
	case <-ctx.Done():
		return nil, fmt.Errorf("publish CRLs: %w", ctx.Err())
	}
	for {
		set, revision, before, err := l.signCRLs(ctx, maxAge, sign)
		if err != nil {
			return nil, fmt.Errorf("publish CRLs: %w", err)
		}
		if revision < 0 {
			return set, nil
		}
		written, err := l.writeCRLs(ctx, set, revision, before)
		if err != nil {
			return nil, fmt.Errorf("publish CRLs: %w", err)
		}
		if written {
			l.watcher.observe(set.Number)
			return set, nil
		}
	}
}

// signCRLs makes a set from the committed state. before is the number of the set
// that it follows. revision is -1 if the newest set is still good.
func (l *ledger) signCRLs(ctx context.Context, maxAge time.Duration, sign func(store.CRLState) ([]store.SignedCRL, error)) (_ *store.CRLSet, revision, before int64, _ error) {
	var set *store.CRLSet
	state := store.CRLState{Now: time.Now().UTC(), Entries: make(map[string][]store.RevokedEntry)}
	err := l.db.snapshot(ctx, func(r reader) error {
		h, err := readHead(ctx, r)
		if err != nil {
			return err
		}
		newest, err := readCRLState(ctx, r)
		if err != nil {
			return err
		}
		revision, before = h.revision, newest.number
		age := state.Now.Sub(fromMicro(newest.signedAt))
		if maxAge > 0 && newest.number > 0 && newest.revision == h.revision && age >= 0 && age < maxAge {
			set, err = readCRLs(ctx, r)
			return err
		}
		state.Number, state.Floor = max(newest.number+1, state.Now.UnixMilli()), fromMicro(h.floor)
		return readEntries(ctx, r, &state)
	})
	if err != nil {
		return nil, 0, 0, err
	}
	if set != nil {
		return set, -1, 0, nil
	}
	crls, err := sign(state)
	if err != nil {
		return nil, 0, 0, err
	}
	if len(crls) == 0 {
		return nil, 0, 0, errors.New("nothing was signed")
	}
	return &store.CRLSet{Number: state.Number, SignedAt: state.Now, CRLs: crls}, revision, before, nil
}

// readEntries reads the certificates that are still on the CRL.
func readEntries(ctx context.Context, r reader, state *store.CRLState) error {
	type entry struct {
		aki string
		store.RevokedEntry
	}
	all, err := collect(ctx, r, func(r row) (e entry, err error) {
		var serial, aki []byte
		var revoked, notAfter int64
		err = r.Scan(&serial, &aki, &revoked, &notAfter)
		e.aki, e.Serial = hex.EncodeToString(aki), hex.EncodeToString(serial)
		e.RevokedAt, e.NotAfter = fromMicro(revoked), fromMicro(notAfter)
		return e, err
	}, `SELECT serial, aki, revoked_at, not_after FROM revocations WHERE not_after > $1 ORDER BY seq`, micro(state.Now.Add(-crlRetention)))
	for _, e := range all {
		state.Entries[e.aki] = append(state.Entries[e.aki], e.RevokedEntry)
	}
	return err
}

// writeCRLs stores set if the newest set is still before. written reports whether
// it did.
func (l *ledger) writeCRLs(ctx context.Context, set *store.CRLSet, revision, before int64) (written bool, _ error) {
	err := l.db.update(ctx, func(tx transaction) error {
		n, err := tx.exec(ctx, `UPDATE crl_state SET number = $1, signed_at = $2, revision = $3 WHERE number = $4`,
			set.Number, micro(set.SignedAt), revision, before)
		if written = n == 1; err != nil || !written {
			return err
		}
		rows := make([][]any, len(set.CRLs))
		for i, c := range set.CRLs {
			aki, err := hex.DecodeString(c.AKI)
			if err != nil {
				return fmt.Errorf("authority key id %q: %w", c.AKI, err)
			}
			rows[i] = []any{set.Number, aki, c.DER}
		}
		if err := tx.insert(ctx, tableCRLs, rows); err != nil {
			return err
		}
		if err := tx.do(ctx, fmt.Sprintf(`DELETE FROM crls WHERE number NOT IN (SELECT number FROM (SELECT DISTINCT number FROM crls ORDER BY number DESC LIMIT %d) AS kept)`, keptSets)); err != nil {
			return err
		}
		return l.db.announce(ctx, tx)
	})
	return written && err == nil, err
}

func readCRLs(ctx context.Context, r reader) (*store.CRLSet, error) {
	s, err := readCRLState(ctx, r)
	if err != nil {
		return nil, err
	}
	if s.number == 0 {
		return nil, store.ErrNotFound
	}
	crls, err := collect(ctx, r, func(r row) (c store.SignedCRL, err error) {
		var aki []byte
		err = r.Scan(&aki, &c.DER)
		c.AKI = hex.EncodeToString(aki)
		return c, err
	}, `SELECT aki, der FROM crls WHERE number = $1 ORDER BY aki`, s.number)
	return &store.CRLSet{Number: s.number, SignedAt: fromMicro(s.signedAt), CRLs: crls}, err
}

// CRLs implements store.Store.
func (l *ledger) CRLs(ctx context.Context) (*store.CRLSet, error) {
	return read(ctx, l, "read CRLs", func(r reader) (*store.CRLSet, error) { return readCRLs(ctx, r) })
}

// CRLChanged implements store.Store.
func (l *ledger) CRLChanged(known int64) <-chan struct{} { return l.watcher.changed(known) }

// watcher keeps the number of the newest set. It closes the channels of callers
// that wait for another number.
type watcher struct {
	ledger *ledger
	wake   signal // makes run read at once

	mu     sync.Mutex
	number int64                   // the newest number read
	waits  map[int64]chan struct{} // by the number that the waiting callers have
}

func newWatcher(l *ledger, number int64) *watcher {
	return &watcher{ledger: l, wake: newSignal(), number: number, waits: make(map[int64]chan struct{})}
}

// changed returns a channel that is closed when the newest number is not known.
// Callers with the same number share one channel, so a caller that gives up leaks
// nothing.
func (w *watcher) changed(known int64) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c, ok := w.waits[known]; ok {
		return c
	}
	c := make(chan struct{})
	if known < w.number { // numbers only increase
		close(c)
		return c
	}
	w.waits[known] = c
	w.wake.set()
	return c
}

// observe notes that a set with number is committed.
func (w *watcher) observe(number int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.number = max(w.number, number)
	for known, c := range w.waits {
		if known != w.number {
			close(c)
			delete(w.waits, known)
		}
	}
}

// run reads the newest number while a caller waits, to find another process's sets.
func (w *watcher) run(ctx context.Context) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-tick.C:
		}
		w.mu.Lock()
		idle := len(w.waits) == 0
		w.mu.Unlock()
		if idle {
			continue
		}
		var number int64
		err := w.ledger.db.snapshot(ctx, func(r reader) error {
			s, err := readCRLState(ctx, r)
			number = s.number
			return err
		})
		if err == nil { // on an error, the next read tries again
			w.observe(number)
		}
	}
}
