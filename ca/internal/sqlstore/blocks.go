package sqlstore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// blockFields is the number of fields of a Match that a block compares, in the
// order of matchFields.
const blockFields = 7

// matchFields returns the values of m that must be equal. "" matches every value.
func matchFields(m store.Match) [blockFields]string {
	return [blockFields]string{m.TokenIssuer, m.Repository, m.RepositoryID, m.RunID, m.Actor, m.Identity, m.Profile}
}

func certificateFields(c *store.Certificate) [blockFields]string {
	return [blockFields]string{c.TokenIssuer, c.Repository, c.RepositoryID, c.RunID, c.Actor, c.Identity, c.Profile}
}

// blockIndex holds the blocks of one version. One look-up in a map finds all blocks
// that compare the same fields, so a record costs the same with ten thousand blocks
// as with one.
type blockIndex struct {
	version int64
	shapes  map[uint8]map[string]store.Block
}

// refresh reads the blocks again if their version has changed.
func (x *blockIndex) refresh(ctx context.Context, r reader, version int64) error {
	if x.version == version {
		return nil
	}
	blocks, err := readBlocks(ctx, r, time.Now())
	if err != nil {
		return err
	}
	x.shapes = make(map[uint8]map[string]store.Block)
	for _, b := range blocks {
		fields := matchFields(b.Match)
		shape := uint8(0)
		for i, v := range fields {
			if v != "" {
				shape |= 1 << i
			}
		}
		if x.shapes[shape] == nil {
			x.shapes[shape] = make(map[string]store.Block)
		}
		key := shapeKey(shape, fields)
		if old, ok := x.shapes[shape][key]; !ok || b.Until.After(old.Until) {
			x.shapes[shape][key] = b
		}
	}
	x.version = version
	return nil
}

// covers returns a block that refuses c at now, or nil.
func (x *blockIndex) covers(c *store.Certificate, now time.Time) *store.Block {
	for shape, blocks := range x.shapes {
		if b, ok := blocks[shapeKey(shape, certificateFields(c))]; ok && now.Before(b.Until) {
			return &b
		}
	}
	return nil
}

// shapeKey joins the fields of shape. No field contains NUL.
func shapeKey(shape uint8, fields [blockFields]string) string {
	var b strings.Builder
	for i, v := range fields {
		if shape&(1<<i) != 0 {
			b.WriteString(v)
			b.WriteByte(0)
		}
	}
	return b.String()
}

// readBlocks returns the blocks that end after now, newest first.
func readBlocks(ctx context.Context, r reader, now time.Time) ([]store.Block, error) {
	return collect(ctx, r, func(r row) (store.Block, error) {
		var b store.Block
		var created, until int64
		var match string
		if err := r.Scan(&b.ID, &created, &until, &match, &b.Reason, &b.By); err != nil {
			return b, err
		}
		b.CreatedAt, b.Until = fromMicro(created), fromMicro(until)
		return b, json.Unmarshal([]byte(match), &b.Match)
	}, `SELECT id, created_at, until, match, reason, created_by FROM blocks WHERE until > $1 ORDER BY created_at DESC, id`, micro(now))
}

// insertBlocks writes blocks and makes every committer read the blocks again.
func insertBlocks(ctx context.Context, tx transaction, h *chainHead, blocks []store.Block) error {
	if len(blocks) == 0 {
		return nil
	}
	rows := make([][]any, len(blocks))
	for i, b := range blocks {
		match, err := json.Marshal(b.Match)
		if err != nil {
			return err
		}
		rows[i] = []any{b.ID, micro(b.CreatedAt), micro(b.Until), string(match), b.Reason, b.By}
	}
	h.changeBlocks()
	return tx.insert(ctx, tableBlocks, rows)
}

// Blocks implements store.Store.
func (l *ledger) Blocks(ctx context.Context, now time.Time) ([]store.Block, error) {
	return read(ctx, l, "list blocks", func(r reader) ([]store.Block, error) { return readBlocks(ctx, r, now) })
}

// Unblock implements store.Store.
func (l *ledger) Unblock(ctx context.Context, id, by string) error {
	return l.update(ctx, "unblock", func(tx transaction, h *chainHead) ([]store.Event, error) {
		n, err := tx.exec(ctx, `DELETE FROM blocks WHERE id = $1`, id)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, fmt.Errorf("block %q: %w", id, store.ErrNotFound)
		}
		h.changeBlocks()
		return []store.Event{{Type: store.EventUnblocked, By: by, Detail: map[string]string{"block": id}}}, nil
	})
}

// newID returns 32 random hex digits.
func newID() string {
	b := make([]byte, 16)
	rand.Read(b)
	return hex.EncodeToString(b)
}
