package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
	"github.com/mayfly-ca/mayfly/issuer/internal/web"
)

// Page returns the admin page of s.
func Page(s *Server) http.Handler {
	return web.New(web.Options{
		PublicURL: s.publicURL,
		Backend:   webBackend{s},
		Failed: func(r *http.Request, err error) {
			info := infoOf(r.Context())
			info.err = err
			info.problem = problemOf(err, info.id).Name()
			s.metrics.refused(info.problem)
		},
	})
}

// routePage sends requests to page for its own paths and for unknown paths, but to
// missing for those meant for the API. It keeps the route's pattern for the log and
// the metrics, because the number of patterns is bounded.
func routePage(page, missing http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if web.Owns(r.URL.Path) || !forAPI(r) {
			defer func() { // r.Pattern is "METHOD /path", or empty
				if _, path, _ := strings.Cut(r.Pattern, " "); path != "/" { // "/" matches any path
					infoOf(r.Context()).route = strings.TrimSuffix(path, "{$}")
				}
			}()
			page.ServeHTTP(w, r)
			return
		}
		missing.ServeHTTP(w, r)
	})
}

// forAPI reports whether a request for an unknown path should get a response in the
// API's form. A browser asks for HTML. Other clients ask for JSON, send a body, or use
// a path that begins with a version.
func forAPI(r *http.Request) bool {
	accept := strings.Join(r.Header.Values("Accept"), ",")
	first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch {
	case strings.Contains(accept, "text/html"):
		return false
	case strings.Contains(accept, "json"), r.Method != http.MethodGet && r.Method != http.MethodHead:
		return true
	}
	return strings.Trim(strings.TrimPrefix(first, "v"), "0123456789.") == "" && first != ""
}

// webBackend implements web.Backend. It embeds the methods that Server has.
type webBackend struct{ *Server }

var _ web.Backend = webBackend{}

var errNoProvider = errors.New("the policy has no such provider of type people")

func people(set *policy.Set, name string) (idtoken.Provider, error) {
	for _, p := range set.Providers() {
		if p.Name == name && p.Type == idtoken.People {
			return p, nil
		}
	}
	return idtoken.Provider{}, &Error{Name: wire.ProblemNotFound, Detail: errNoProvider.Error()}
}

// Client implements web.Backend.
func (p webBackend) Client(provider string) (*http.Client, error) {
	found, err := people(p.policies.Set(), provider)
	if err != nil {
		return nil, err
	}
	return found.Client(p.policies.verifier), nil
}

// Verify implements web.Backend.
func (p webBackend) Verify(ctx context.Context, provider, raw string) (json.RawMessage, error) {
	rules := p.policies.load()
	claims, err := rules.verifier.Verify(ctx, raw, rules.set.Audience())
	if err != nil {
		return nil, err
	}
	if got := claims.Provider(); got.Name != provider || got.Type != idtoken.People {
		return nil, badToken("the ID token is of another provider")
	}
	// The age of the token (policy.MaxRoleAge) is checked only here, at the login.
	var stale *idtoken.TokenError
	if _, err := p.roleOf(claims, rules.set); errors.As(err, &stale) {
		return nil, err
	}
	return claims.JSON(), nil
}

// restore returns the claims of a login and the current policy.
func (p webBackend) restore(provider string, raw json.RawMessage) (idtoken.Claims, *policy.Set, error) {
	rules := p.policies.load()
	c, err := rules.verifier.Restore(provider, raw)
	return c, rules.set, err
}

// Person implements web.Backend.
func (p webBackend) Person(ctx context.Context, provider string, raw json.RawMessage) (web.Person, error) {
	if provider == hostProvider {
		who, err := hostPerson(raw)
		infoOf(ctx).identity = who.Name
		return who, err
	}
	c, set, err := p.restore(provider, raw)
	if err != nil {
		return web.Person{}, err
	}
	info := infoOf(ctx)
	info.identity = subjectName(c)
	who, err := p.roleOf(c, set)
	if err == nil {
		err = checkRole(who.Role, policy.Viewer)
	}
	if err != nil {
		return web.Person{}, err
	}
	info.rule = who.Rule
	return web.Person{Name: who.Name, Admin: who.Role == policy.Admin, Rule: who.Rule}, nil
}

// PutLogin implements web.Backend.
func (p webBackend) PutLogin(ctx context.Context, who web.Person, l web.Login) error {
	st := p.authority.Store()
	if err := st.PutLogin(ctx, store.Login(l)); err != nil {
		return unavailable("store login", err)
	}
	ev := store.Event{Time: time.Now().UTC(), Type: store.EventLogin, By: truncate(who.Name), Rule: who.Rule}
	if who.ByLink {
		ev.Reason, ev.Detail = "by an admin link", map[string]string{"address": infoOf(ctx).address}
	}
	if err := st.Append(ctx, ev); err != nil {
		return unavailable("record login", err)
	}
	return nil
}

// Login implements web.Backend.
func (p webBackend) Login(ctx context.Context, id string) (*web.Login, error) {
	l, err := p.authority.Store().Login(ctx, id, time.Now().UTC())
	return p.loginOf(ctx, id, l, err)
}

// loginOf converts the store's result for a login into the page's.
func (p webBackend) loginOf(ctx context.Context, id string, l *store.Login, err error) (*web.Login, error) {
	switch {
	case errors.Is(err, store.ErrForged):
		p.logger.WarnContext(ctx, "login refused: its row was changed by hand, or its state key is not in the list", "login", id)
		return nil, web.ErrNoLogin
	case errors.Is(err, store.ErrNotFound):
		return nil, web.ErrNoLogin
	case err != nil:
		return nil, unavailable("read login", err)
	}
	out := web.Login(*l)
	return &out, nil
}

// DeleteLogin implements web.Backend.
func (p webBackend) DeleteLogin(ctx context.Context, id, by string) error {
	st := p.authority.Store()
	if err := st.DeleteLogin(ctx, id); err != nil {
		return unavailable("delete login", err)
	}
	if err := st.Append(ctx, store.Event{Time: time.Now().UTC(), Type: store.EventLogout, By: truncate(by)}); err != nil {
		return unavailable("record logout", err)
	}
	return nil
}

// Forbidden implements web.Backend.
func (p webBackend) Forbidden(ctx context.Context, provider string, raw json.RawMessage, what string) {
	if provider == hostProvider {
		who, _ := hostPerson(raw) // the issuer wrote it: its MAC is valid
		infoOf(ctx).err = p.recordForbidden(ctx, store.Event{Time: time.Now().UTC(), Type: store.EventForbidden, By: who.Name, Identity: who.Name}, what, nil)
		return
	}
	c, _, err := p.restore(provider, raw)
	if err != nil {
		p.logger.ErrorContext(ctx, "event not recorded", "type", store.EventForbidden, "err", err)
		return
	}
	infoOf(ctx).err = p.forbidden(ctx, c, what, nil)
}

// chartHours is how many hours the overview's chart shows.
const chartHours = 48

// Overview implements web.Backend.
func (p webBackend) Overview(ctx context.Context) (web.Overview, error) {
	now := time.Now().UTC()
	since := now.Truncate(time.Hour).Add(-(chartHours - 1) * time.Hour)
	// Events writes the summed denials to the store; Hours does not.
	if _, _, err := p.authority.Store().Events(ctx, store.EventFilter{Limit: 1}); err != nil {
		return web.Overview{}, unavailable("write denials", err)
	}
	counts, err := p.authority.Store().Hours(ctx, since)
	if err != nil {
		return web.Overview{}, unavailable("count hours", err)
	}
	out := web.Overview{Hours: make([]web.Hour, chartHours), Warnings: p.Warnings()}
	for i := range out.Hours {
		out.Hours[i].Start = since.Add(time.Duration(i) * time.Hour)
	}
	for _, c := range counts {
		if i := int(c.Hour.Sub(since) / time.Hour); i >= 0 && i < chartHours {
			out.Hours[i].Issued += c.Issued
			out.Hours[i].Denied += c.Denied
		}
	}
	n, err := p.authority.Store().Counts(ctx, now)
	if err != nil {
		return web.Overview{}, unavailable("count", err)
	}
	out.Valid, out.ValidMore, out.Live, out.Cut = n.Valid, n.Valid >= store.MaxCount, n.Live, n.Cut
	engines, err := p.Engines(ctx)
	if err != nil {
		return web.Overview{}, err
	}
	out.Engines = len(engines.Items)
	for _, e := range engines.Items {
		if e.State == wire.EngineAwake {
			out.Awake++
		}
	}
	crls, err := p.authority.CRLs(ctx)
	if err != nil {
		return web.Overview{}, unavailable("read crl", err)
	}
	out.CRLNumber, out.CRLSignedAt = crls.Number, crls.SignedAt.UTC()
	for _, e := range p.authority.Expiries() {
		out.Expiries = append(out.Expiries, web.Expiry{What: e.What, NotAfter: e.NotAfter.UTC()})
	}
	return out, nil
}

// RunURL implements web.Backend. GitHub signed the parts of the URL, but RunURL still
// checks that they form a link on the provider's server.
func (p webBackend) RunURL(identity, repository, run string) string {
	run, _, _ = strings.Cut(run, "/")
	owner, name, ok := strings.Cut(repository, "/")
	if !ok || strings.Contains(name, "/") || run == "" || strings.Trim(run, "0123456789") != "" {
		return ""
	}
	server := p.runServer(identity)
	if server == "" {
		return ""
	}
	return server + "/" + url.PathEscape(owner) + "/" + url.PathEscape(name) + "/actions/runs/" + run
}

// runServer returns the server URL of identity's GitHub provider. For an empty
// identity, it returns that of the policy's only GitHub provider.
func (p webBackend) runServer(identity string) string {
	if rest, ok := strings.CutPrefix(identity, "spiffe://"); ok {
		_, identity, _ = strings.Cut(rest, "/")
	}
	provider, _, _ := strings.Cut(identity, "/")
	server := ""
	for _, known := range p.policies.Set().Providers() {
		if known.Type != idtoken.GitHub || provider != "" && known.Name != provider {
			continue
		}
		if server != "" {
			return ""
		}
		server = known.ServerURL
	}
	return server
}

// Policy implements web.Backend.
func (p webBackend) Policy() web.Policy {
	set := p.policies.Set()
	var out web.Policy
	for _, f := range set.Findings() {
		out.Warnings = append(out.Warnings, f.String())
	}
	for _, v := range set.Providers() {
		out.Providers = append(out.Providers, v.Name)
	}
	for _, r := range set.Rules() {
		w := web.Rule{Name: r.Name, Provider: r.Provider}
		for _, m := range r.Match {
			w.Match = append(w.Match, m.Claim+" = "+strings.Join(m.Values, " or "))
		}
		if r.Role != "" {
			w.Grants = "role " + string(r.Role)
		} else {
			noun := "engine "
			if len(r.Engines) > 1 {
				noun = "engines "
			}
			w.Grants = fmt.Sprintf("a %s certificate of %s for %s", r.Profile, lifetime(r.TTL), noun+strings.Join(r.Engines, ", "))
		}
		out.Rules = append(out.Rules, w)
	}
	return out
}

// lifetime formats a TTL in whole hours or minutes where possible.
func lifetime(d time.Duration) string {
	switch {
	case d%time.Hour == 0:
		return fmt.Sprintf("%d h", d/time.Hour)
	case d%time.Minute == 0:
		return fmt.Sprintf("%d min", d/time.Minute)
	}
	return d.String()
}

// Problem implements web.Backend.
func (p webBackend) Problem(err error) *wire.Problem { return problemOf(err, "") }
