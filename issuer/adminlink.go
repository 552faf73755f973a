package issuer

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
	"github.com/mayfly-ca/mayfly/issuer/internal/web"
)

// AdminLinkLife is how long a link from AdminLink can be used.
const AdminLinkLife = 10 * time.Minute

// hostProvider takes the place of a provider's name in a login by admin link. No
// provider of a policy can have this name.
const hostProvider = "@host"

// hostClaims are the claims of a login by admin link. The login's MAC authenticates
// them, and making one requires the state key.
type hostClaims struct {
	Role policy.Role `json:"role"`
	By   string      `json:"by"` // the user who made the link: host/USER
}

// AdminLink returns a URL that logs in one person to the admin page with role,
// whatever the policy says. The URL works once, within AdminLinkLife. AdminLink
// records the event admin_link with by. The store holds only a hash of the link's
// secret. c needs the same state key as the serving issuer.
func AdminLink(ctx context.Context, c Config, role policy.Role, by string) (string, error) {
	if role != policy.Admin && role != policy.Viewer {
		return "", fmt.Errorf("role %q is neither admin nor viewer", string(role))
	}
	if len(c.StateKey) == 0 {
		return "", wire.WithHint(errors.New("state_key is missing: the serving issuer could not verify the link"),
			"make a key, name it in issuer.yaml, and restart the issuer:\nopenssl rand -hex 32 >state.key && chmod 600 state.key\nstate_key: [state.key]")
	}
	u, err := c.publicURL()
	if err != nil {
		return "", err
	}
	st, err := OpenStore(ctx, c)
	if err != nil {
		return "", err
	}
	defer st.Close()
	claims, err := json.Marshal(hostClaims{role, truncate(by)})
	if err != nil {
		return "", err
	}
	secret, now := rand.Text()+rand.Text(), time.Now().UTC()
	l := store.Login{ID: web.LinkID(secret), Provider: hostProvider, Subject: truncate(by), Claims: claims, CreatedAt: now, ExpiresAt: now.Add(AdminLinkLife)}
	if err := st.PutLogin(ctx, l); err != nil {
		return "", err
	}
	ev := store.Event{Time: now, Type: store.EventAdminLink, By: truncate(by), Detail: map[string]string{"role": string(role), "until": l.ExpiresAt.Format(time.RFC3339)}}
	if err := st.Append(ctx, ev); err != nil {
		return "", fmt.Errorf("record the link: %w", err)
	}
	return u.String() + web.LinkPath + "?code=" + secret, nil
}

// hostPerson parses the claims of a login by admin link.
func hostPerson(raw json.RawMessage) (web.Person, error) {
	var c hostClaims
	if err := json.Unmarshal(raw, &c); err != nil {
		return web.Person{}, fmt.Errorf("read admin link: %w", err)
	}
	if err := checkRole(c.Role, policy.Viewer); err != nil {
		return web.Person{}, err
	}
	return web.Person{Name: c.By, Admin: c.Role == policy.Admin, ByLink: true}, nil
}

// TakeLink implements web.Backend.
func (p webBackend) TakeLink(ctx context.Context, id string) (*web.Login, error) {
	l, err := p.authority.Store().TakeLogin(ctx, id, time.Now().UTC())
	return p.loginOf(ctx, id, l, err)
}
