package sqlstore

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// loginMAC is the use of a login's MAC. A row of another form needs another use.
const loginMAC = "mayfly login 1"

// loginFields returns the columns that the MAC covers: all but the MAC.
func loginFields(g *store.Login) [][]byte {
	times := binary.BigEndian.AppendUint64(nil, uint64(micro(g.CreatedAt)))
	times = binary.BigEndian.AppendUint64(times, uint64(micro(g.ExpiresAt)))
	return [][]byte{[]byte(g.ID), []byte(g.Provider), []byte(g.Subject), g.Claims, times}
}

// PutLogin implements store.Store.
func (l *ledger) PutLogin(ctx context.Context, g store.Login) error {
	if g.ID == "" || !g.ExpiresAt.After(g.CreatedAt) || len(g.Claims) > maxBody {
		return fmt.Errorf("store login: no id, no lifetime, or claims too large")
	}
	g.Provider, g.Subject = sanitize(g.Provider), sanitize(g.Subject)
	return l.update(ctx, "store login", func(tx transaction, _ *chainHead) ([]store.Event, error) {
		return nil, tx.insert(ctx, tableLogins, [][]any{{g.ID, g.Provider, g.Subject, nonNil(g.Claims), micro(g.CreatedAt), micro(g.ExpiresAt),
			l.stateKey.MAC(loginMAC, loginFields(&g)...)}})
	})
}

// Login implements store.Store.
func (l *ledger) Login(ctx context.Context, id string, now time.Time) (*store.Login, error) {
	return read(ctx, l, "read login", func(r reader) (*store.Login, error) { return l.readLogin(ctx, r, id, now) })
}

// readLogin reads a login and verifies its MAC.
func (l *ledger) readLogin(ctx context.Context, r reader, id string, now time.Time) (*store.Login, error) {
	g := store.Login{ID: id}
	var claims, mac []byte
	var created, expires int64
	found, err := queryRow(ctx, r, `SELECT provider, subject, claims, created_at, expires_at, mac FROM logins WHERE id = $1 AND expires_at > $2`,
		[]any{id, micro(now)}, &g.Provider, &g.Subject, &claims, &created, &expires, &mac)
	if err == nil && !found {
		err = store.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	g.Claims, g.CreatedAt, g.ExpiresAt = claims, fromMicro(created), fromMicro(expires)
	if !l.stateKey.Verify(mac, loginMAC, loginFields(&g)...) {
		return nil, store.ErrForged
	}
	return &g, nil
}

// TakeLogin implements store.Store.
func (l *ledger) TakeLogin(ctx context.Context, id string, now time.Time) (g *store.Login, err error) {
	err = l.update(ctx, "take login", func(tx transaction, _ *chainHead) ([]store.Event, error) {
		if g, err = l.readLogin(ctx, tx, id, now); err != nil {
			return nil, err
		}
		return nil, tx.do(ctx, `DELETE FROM logins WHERE id = $1`, id)
	})
	if err != nil {
		return nil, err
	}
	return g, nil
}

// DeleteLogin implements store.Store. A missing login is no error.
func (l *ledger) DeleteLogin(ctx context.Context, id string) error {
	return l.update(ctx, "delete login", func(tx transaction, _ *chainHead) ([]store.Event, error) {
		return nil, tx.do(ctx, `DELETE FROM logins WHERE id = $1`, id)
	})
}
