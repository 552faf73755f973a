package sqlstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mayfly-ca/mayfly/ca/store"
)

const (
	idShift = 10
	idSlots = 1 << idShift
	// maxField bounds every text of a record, in bytes.
	maxField = 4096
	// maxBody bounds Claims and TBS, in bytes each.
	maxBody = 64 << 10
)

// Record implements store.Store.
func (l *ledger) Record(ctx context.Context, c *store.Certificate, ev store.Event) (*store.Certificate, error) {
	p := &pendingWrite{cert: c}
	if err := p.prepare(); err != nil {
		return nil, fmt.Errorf("record certificate: %w", err)
	}
	p.events = []store.Event{issued(c, ev)}
	if err := l.committer.do(ctx, p); err != nil {
		return nil, fmt.Errorf("record certificate: %w", err)
	}
	return p.result, nil
}

// Append implements store.Store.
func (l *ledger) Append(ctx context.Context, ev ...store.Event) error {
	if len(ev) == 0 {
		return nil
	}
	if err := l.committer.do(ctx, &pendingWrite{events: ev}); err != nil {
		return fmt.Errorf("append events: %w", err)
	}
	return nil
}

// issued fills the empty fields of ev, the event of c's issuance.
func issued(c *store.Certificate, ev store.Event) store.Event {
	fill := func(field *string, v string) {
		if *field == "" {
			*field = v
		}
	}
	fill(&ev.Type, store.EventIssued)
	fill(&ev.Serial, c.Serial)
	fill(&ev.Identity, c.Identity)
	fill(&ev.Repository, c.Repository)
	fill(&ev.RunID, c.RunID)
	fill(&ev.Rule, c.Rule)
	if ev.Time.IsZero() {
		ev.Time = c.IssuedAt
	}
	return ev
}

// prepare checks that a record is complete. So a database seldom refuses a record,
// and both databases refuse the same ones.
func (p *pendingWrite) prepare() error {
	c := p.cert
	var err error
	if p.serial, err = parseSerial(c.Serial); err != nil {
		return err
	}
	if p.aki, err = hex.DecodeString(c.AKI); err != nil || len(p.aki) == 0 {
		return fmt.Errorf("authority key id %q is not hex", c.AKI)
	}
	switch {
	case c.IssuedAt.UnixMicro() <= 0 || c.IssuedAt.UnixMicro() >= 1<<(63-idShift):
		return fmt.Errorf("issued at %v", c.IssuedAt)
	case !c.NotAfter.After(c.NotBefore) || c.NotAfter.Sub(c.IssuedAt) > maxLifetime:
		return fmt.Errorf("validity from %v to %v", c.NotBefore, c.NotAfter)
	case len(c.SPKI) != 32:
		return fmt.Errorf("SPKI hash of %d bytes", len(c.SPKI))
	case len(c.TBS) == 0 || len(c.TBS) > maxBody || len(c.Claims) > maxBody:
		return errors.New("TBS missing, or TBS or claims too large")
	case c.Identity == "" || c.Profile == "" || c.TokenIssuer == "":
		return errors.New("no identity, profile or token issuer")
	case c.SingleUse && c.TokenID == "":
		return errors.New("a single-use token needs an id")
	}
	engines, err := json.Marshal(c.Engines)
	if err != nil {
		return err
	}
	p.engines = string(engines)
	p.token = tokenHash(c.TokenIssuer, c.TokenID)
	for _, s := range []string{c.Profile, c.Provider, c.Identity, c.Rule, c.Run, p.engines, c.Repository, c.RepositoryID, c.RunID, c.Actor, c.TokenIssuer, c.TokenID} {
		if len(s) > maxField || !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
			return fmt.Errorf("a text of the record is no UTF-8, holds NUL or is over %d bytes", maxField)
		}
	}
	return nil
}

// tokenHash returns the key of a single-use token: 128 bits of SHA-256 over its
// issuer and id.
func tokenHash(issuer, id string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(issuer)))
	b = append(append(b, issuer...), id...)
	sum := sha256.Sum256(b)
	return sum[:16]
}

// apply writes batch into tx and returns the events of the commit. It stores
// results and refusals in batch; the returned error is the database's. If careful,
// it looks for a free id, since the database has refused the first attempt.
func (l *ledger) apply(ctx context.Context, tx transaction, h *chainHead, batch []*pendingWrite, careful bool) ([]store.Event, error) {
	if err := l.blocks.refresh(ctx, tx, h.blocksVersion); err != nil {
		return nil, err
	}
	used, err := findTokens(ctx, tx, batch)
	if err != nil {
		return nil, err
	}
	w := recordWriter{now: time.Now(), firstSeq: h.seq + 1}
	for i, p := range batch {
		p.result, p.err = nil, nil
		if p.cert == nil {
			w.events = append(w.events, p.events...)
			continue
		}
		p.id = micro(p.cert.IssuedAt)<<idShift | l.nonce.Add(1)&(idSlots-1)
		if careful {
			if p.id, err = freeID(ctx, tx, p.cert.IssuedAt); err != nil {
				return nil, err
			}
		}
		if err := l.admit(ctx, tx, h, &w, p, used[i]); err != nil {
			return nil, err
		}
	}
	return w.events, w.write(ctx, tx)
}

// admit accepts or refuses one record. It checks the floor, the blocks and the
// token, in this order.
func (l *ledger) admit(ctx context.Context, tx transaction, h *chainHead, w *recordWriter, p *pendingWrite, used int64) error {
	c := p.cert
	if micro(c.TokenIAT) < h.floor || micro(c.IssuedAt) < h.floor {
		p.err = store.ErrBeforeFloor
		return nil
	}
	if b := l.blocks.covers(c, w.now); b != nil {
		p.err = &store.BlockedError{Block: *b}
		return nil
	}
	if c.SingleUse {
		if first := w.usedInBatch[string(p.token)]; first != nil {
			p.result, p.err = checkReplay(first, c.SPKI, h.floor, w.now)
			return nil
		}
		if used != 0 {
			recorded, err := findCertificate(ctx, tx, "c.id", used)
			if err != nil {
				return err
			}
			if recorded == nil {
				return fmt.Errorf("token names certificate %d, which is gone", used)
			}
			p.result, p.err = checkReplay(recorded, c.SPKI, h.floor, w.now)
			return nil
		}
	}
	w.add(p)
	p.result = c
	return nil
}

// checkReplay returns recorded if a reused token may get it again, or a
// *store.ReplayError. A certificate from before the floor is revoked, even without
// a revocation row.
func checkReplay(recorded *store.Certificate, spki []byte, floor int64, now time.Time) (*store.Certificate, error) {
	why := ""
	switch {
	case !bytes.Equal(recorded.SPKI, spki):
		why = "another key"
	case recorded.RevokedAt != nil || micro(recorded.IssuedAt) < floor:
		why = "revoked"
	case now.After(recorded.NotAfter):
		why = "expired"
	default:
		return recorded, nil
	}
	return nil, &store.ReplayError{Serial: recorded.Serial, Why: why}
}

// findTokens returns, for each of batch, the id of the certificate that its
// single-use token was used for, or 0 for an unused token.
func findTokens(ctx context.Context, tx transaction, batch []*pendingWrite) ([]int64, error) {
	used := make([]int64, len(batch))
	var args [][]any
	var at []int
	for i, p := range batch {
		if p.cert != nil && p.cert.SingleUse {
			args = append(args, []any{p.token})
			at = append(at, i)
		}
	}
	if len(args) == 0 {
		return used, nil
	}
	return used, tx.lookup(ctx, `SELECT cert_id FROM tokens WHERE token = $1`, args, func(i int, r row) error {
		return r.Scan(&used[at[i]])
	})
}

// freeID returns an unused id for a certificate that was issued at t.
func freeID(ctx context.Context, tx transaction, t time.Time) (int64, error) {
	from := micro(t) << idShift
	taken, err := collect(ctx, tx, func(r row) (int64, error) {
		var id int64
		return id, r.Scan(&id)
	}, `SELECT id FROM certificates WHERE id >= $1 AND id < $2 ORDER BY id`, from, from+idSlots)
	if err != nil {
		return 0, err
	}
	for i := range int64(idSlots) {
		if i >= int64(len(taken)) || taken[i] != from+i {
			return from + i, nil
		}
	}
	return 0, fmt.Errorf("%d certificates were issued at %v", idSlots, t)
}

// recordWriter collects the rows of one commit.
type recordWriter struct {
	now          time.Time
	certificates [][]any
	bodies       [][]any
	tokens       [][]any
	events       []store.Event
	usedInBatch  map[string]*store.Certificate // by token hash
	firstSeq     int64                         // of events
}

func (w *recordWriter) add(p *pendingWrite) {
	c := p.cert
	single := int64(0)
	if c.SingleUse {
		single = 1
		if w.usedInBatch == nil {
			w.usedInBatch = make(map[string]*store.Certificate)
		}
		w.usedInBatch[string(p.token)] = c
		w.tokens = append(w.tokens, []any{p.token, p.id})
	}
	w.certificates = append(w.certificates, []any{
		p.id, p.serial, c.Profile, c.Provider, c.Identity, c.Rule, c.Run, p.engines, c.Repository, c.RepositoryID, c.RunID,
		c.Actor, c.TokenIssuer, c.TokenID, single, micro(c.TokenIAT), c.SPKI, p.aki, micro(c.NotBefore), micro(c.NotAfter),
		w.firstSeq + int64(len(w.events)),
	})
	w.bodies = append(w.bodies, []any{p.id, nonNil(c.Claims), c.TBS, []byte{}})
	w.events = append(w.events, p.events...)
}

func (w *recordWriter) write(ctx context.Context, tx transaction) error {
	for _, t := range []struct {
		table *table
		rows  [][]any
	}{{tableCertificates, w.certificates}, {tableBodies, w.bodies}, {tableTokens, w.tokens}} {
		if err := tx.insert(ctx, t.table, t.rows); err != nil {
			return err
		}
	}
	return nil
}

// nonNil returns an empty slice for nil, so that an empty byte string is not stored
// as NULL.
func nonNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// parseSerial parses 32 lower-case hex digits.
func parseSerial(s string) ([]byte, error) {
	raw, err := hex.DecodeString(s)
	if err != nil || len(s) != 32 || strings.ToLower(s) != s {
		return nil, fmt.Errorf("serial %q is not 32 lower-case hex digits", s)
	}
	return raw, nil
}
