package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// PutLogin implements store.Store.
func (l *Ledger) PutLogin(ctx context.Context, g store.Login) error {
	if g.ID == "" || !g.ExpiresAt.After(g.CreatedAt) || len(g.Claims) > maxBody {
		return fmt.Errorf("store login: no id, no lifetime, or claims too large")
	}
	return l.update(ctx, "store login", func(tx Tx, _ *head) ([]store.Event, error) {
		return nil, tx.Insert(ctx, tableLogins, [][]any{{g.ID, clean(g.Provider), clean(g.Subject), nonNil(g.Claims), micro(g.CreatedAt), micro(g.ExpiresAt)}})
	})
}

// Login implements store.Store.
func (l *Ledger) Login(ctx context.Context, id string, now time.Time) (*store.Login, error) {
	g := store.Login{ID: id}
	err := l.read(ctx, "read login", func(r Reader) error {
		var claims []byte
		var created, expires int64
		found, err := one(ctx, r, `SELECT provider, subject, claims, created_at, expires_at FROM logins WHERE id = $1 AND expires_at > $2`,
			[]any{id, micro(now)}, &g.Provider, &g.Subject, &claims, &created, &expires)
		if err == nil && !found {
			err = store.ErrNotFound
		}
		g.Claims, g.CreatedAt, g.ExpiresAt = claims, fromMicro(created), fromMicro(expires)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &g, nil
}

// DeleteLogin implements store.Store. A login that is not there is no error.
func (l *Ledger) DeleteLogin(ctx context.Context, id string) error {
	return l.update(ctx, "delete login", func(tx Tx, _ *head) ([]store.Event, error) {
		_, err := tx.Exec(ctx, `DELETE FROM logins WHERE id = $1`, id)
		return nil, err
	})
}
