package sqlstore

import (
	"context"
	"encoding/hex"
	"strconv"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

const (
	// pruneBatch bounds the rows that one commit of Prune deletes.
	pruneBatch = 1000
	// pruneMargin is how long a certificate stays after NotAfter, whatever the
	// retention. It may be on a CRL, and its token must stay used.
	pruneMargin = crlRetention + 2*time.Hour
)

// Prune implements store.Store. It returns how many rows of certificates, sessions,
// statuses, blocks, logins, hours and events it deleted. Certificates and their
// tokens stay for 26 hours after NotAfter, whatever before is. Each batch is a
// separate commit, so that issuing continues.
func (l *ledger) Prune(ctx context.Context, before time.Time) (int64, error) {
	total := int64(0)
	now := time.Now()
	if err := l.flagMissed(ctx, now); err != nil {
		return 0, err
	}
	if now.Before(before) {
		before = now
	}
	certificates := before
	if latest := now.Add(-pruneMargin); latest.Before(before) {
		certificates = latest
	}
	from := int64(0)
	for {
		n, next, err := l.pruneCertificates(ctx, certificates, from)
		total += n
		if err != nil {
			return total, err
		}
		if next == 0 {
			break
		}
		from = next
	}
	for _, step := range []func(context.Context, time.Time) (int64, error){l.pruneRows, l.pruneEvents} {
		for {
			n, err := step(ctx, before)
			total += n
			if err != nil {
				return total, err
			}
			if n == 0 {
				break
			}
		}
	}
	return total, nil
}

// flagMissed sets the column revoked where a replica of an earlier version has
// revoked a certificate since the upgrade. That version does not know the column.
func (l *ledger) flagMissed(ctx context.Context, now time.Time) error {
	return l.update(ctx, "flag revoked certificates", func(tx transaction, _ *chainHead) ([]store.Event, error) {
		return nil, tx.do(ctx, `UPDATE certificates SET revoked = 1 WHERE revoked = 0 AND id IN (SELECT cert_id FROM revocations WHERE not_after > $1)`,
			micro(now.Add(-pruneMargin)))
	})
}

// pruneCertificates prunes one batch of certificates, beginning with id from. It
// returns how many it deleted and where the next batch begins, or 0 after the last.
func (l *ledger) pruneCertificates(ctx context.Context, before time.Time, from int64) (n, next int64, _ error) {
	err := l.update(ctx, "prune certificates", func(tx transaction, _ *chainHead) ([]store.Event, error) {
		n, next = 0, 0
		var count, last int64
		if _, err := queryRow(ctx, tx, `SELECT COUNT(*), COALESCE(MAX(id), 0) FROM (SELECT id FROM certificates WHERE id >= $1 AND id < $2 ORDER BY id LIMIT `+strconv.Itoa(pruneBatch)+`) AS batch`,
			[]any{from, idAt(before)}, &count, &last); err != nil || count == 0 {
			return nil, err
		}
		next = last + 1
		const gone = ` (SELECT id FROM certificates WHERE id >= $1 AND id <= $2 AND not_after < $3)`
		args := []any{from, last, micro(before)}
		if err := pruneTokens(ctx, tx, gone, args); err != nil {
			return nil, err
		}
		for _, q := range []string{`DELETE FROM revocations WHERE cert_id IN` + gone, `DELETE FROM bodies WHERE id IN` + gone} {
			if err := tx.do(ctx, q, args...); err != nil {
				return nil, err
			}
		}
		var err error
		n, err = tx.exec(ctx, `DELETE FROM certificates WHERE id >= $1 AND id <= $2 AND not_after < $3`, args...)
		return nil, err
	})
	return n, next, err
}

// pruneTokens deletes the tokens of the certificates that the query gone selects.
func pruneTokens(ctx context.Context, tx transaction, gone string, args []any) error {
	tokens, err := collect(ctx, tx, func(r row) ([]any, error) {
		var issuer, id string
		err := r.Scan(&issuer, &id)
		return []any{tokenHash(issuer, id)}, err
	}, `SELECT token_issuer, token_id FROM certificates WHERE single_use = 1 AND id IN`+gone, args...)
	if err != nil || len(tokens) == 0 {
		return err
	}
	return tx.lookup(ctx, `DELETE FROM tokens WHERE token = $1 RETURNING cert_id`, tokens, func(int, row) error { return nil })
}

// pruneRows deletes one batch of rows that ended before a time.
func (l *ledger) pruneRows(ctx context.Context, before time.Time) (n int64, _ error) {
	limit := strconv.Itoa(pruneBatch)
	err := l.update(ctx, "prune", func(tx transaction, _ *chainHead) ([]store.Event, error) {
		n = 0
		for _, q := range []string{
			`DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE opened_at < $1 AND seen_at < $1 ORDER BY opened_at, id LIMIT ` + limit + `)`,
			`DELETE FROM blocks WHERE id IN (SELECT id FROM blocks WHERE until < $1 LIMIT ` + limit + `)`,
			`DELETE FROM statuses WHERE (engine, machine) IN (SELECT engine, machine FROM statuses WHERE seen_at < $1 LIMIT ` + limit + `)`,
			`DELETE FROM logins WHERE id IN (SELECT id FROM logins WHERE expires_at < $1 LIMIT ` + limit + `)`,
			`DELETE FROM hours WHERE hour IN (SELECT hour FROM hours WHERE hour < $1 LIMIT ` + limit + `)`,
		} {
			m, err := tx.exec(ctx, q, micro(before))
			if err != nil {
				return nil, err
			}
			n += m
		}
		return nil, nil
	})
	return n, err
}

// pruneEvents deletes a batch of the oldest links whose events are all before a
// time. It leaves a checkpoint: the hash that the next link continues.
func (l *ledger) pruneEvents(ctx context.Context, before time.Time) (n int64, _ error) {
	err := l.update(ctx, "prune events", func(tx transaction, h *chainHead) ([]store.Event, error) {
		n = 0
		var last int64
		if _, err := queryRow(ctx, tx, `SELECT COALESCE(MAX(last_seq), 0) FROM (SELECT last_seq FROM links WHERE newest < $1 ORDER BY newest, last_seq LIMIT `+strconv.Itoa(pruneBatch)+`) AS oldest`,
			[]any{micro(before)}, &last); err != nil || last == 0 {
			return nil, err
		}
		var hash []byte
		if found, err := queryRow(ctx, tx, `SELECT hash FROM links WHERE last_seq = $1`, []any{last}, &hash); err != nil || !found {
			return nil, err
		}
		var err error
		if n, err = tx.exec(ctx, `DELETE FROM events WHERE seq <= $1`, last); err != nil {
			return nil, err
		}
		if err := tx.do(ctx, `DELETE FROM links WHERE last_seq <= $1`, last); err != nil {
			return nil, err
		}
		if err := tx.do(ctx, `DELETE FROM checkpoints`); err != nil {
			return nil, err
		}
		if err := tx.insert(ctx, tableCheckpoints, [][]any{{last, hash, micro(time.Now())}}); err != nil {
			return nil, err
		}
		return []store.Event{{
			Type: store.EventPruned, By: "retention", Count: n,
			Detail: map[string]string{"up_to": strconv.FormatInt(last, 10), "hash": hex.EncodeToString(hash)},
		}}, nil
	})
	return n, err
}
