package web

import (
	"bytes"
	"embed"
	"errors"
	"html/template"
	"io/fs"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

//go:embed assets templates
var files embed.FS

// Options configures a Page.
type Options struct {
	// PublicURL is the only origin that the page is served at.
	PublicURL string
	Backend   Backend
	// Failed is called for every error that ends a request. It may be nil.
	Failed func(*http.Request, error)
}

// Page is the admin page. It is safe for concurrent use.
type Page struct {
	publicURL, scheme, host string
	onlyTLS                 bool // Strict-Transport-Security
	backend                 Backend
	failed                  func(*http.Request, error)
	templates               map[string]*template.Template
	handler                 http.Handler
}

// visitor is a logged-in person and the login.
type visitor struct {
	Person
	login *Login
}

// Until returns when the login ends.
func (v *visitor) Until() time.Time { return v.login.ExpiresAt }

// contentPolicy is the Content-Security-Policy of every response. No form needs
// another origin: logging in begins with a link.
const contentPolicy = "default-src 'none'; style-src 'self'; img-src 'self'; script-src 'self'; " +
	"form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

// New returns a Page.
func New(o Options) *Page {
	p := &Page{publicURL: o.PublicURL, backend: o.Backend, failed: o.Failed, templates: parse(o.Backend)}
	if u, err := url.Parse(o.PublicURL); err == nil {
		p.scheme, p.host = u.Scheme, plainHost(u.Scheme, u.Host)
		p.onlyTLS = u.Scheme == "https" && !isLocal(u.Hostname())
	}
	if p.failed == nil {
		p.failed = func(*http.Request, error) {}
	}
	mux := http.NewServeMux()
	assets, err := fs.Sub(files, "assets")
	if err != nil {
		panic(err) // embedded files: cannot fail
	}
	mux.Handle("GET /assets/", http.StripPrefix("/assets/", http.FileServerFS(assets)))
	for _, r := range routes {
		mux.Handle(r.pattern, r.handler(p))
	}
	mux.Handle("GET /", p.open(p.missing))
	p.handler = p.guard(mux)
	return p
}

// routes lists all paths of the page except its assets, with the access check of each.
var routes = []struct {
	pattern string
	handler func(*Page) http.Handler
}{
	{"GET /login", func(p *Page) http.Handler { return p.open(p.loginPage) }},
	{"GET /login/{provider}", func(p *Page) http.Handler { return p.open(p.begin) }},
	{"GET " + callbackPath, func(p *Page) http.Handler { return p.open(p.callback) }},
	{"GET " + LinkPath, func(p *Page) http.Handler { return p.open(p.link) }},
	{"POST " + LinkPath, func(p *Page) http.Handler { return p.open(p.useLink) }},
	{"POST /logout", func(p *Page) http.Handler { return p.viewer(p.logout) }},
	{"GET /{$}", func(p *Page) http.Handler { return p.viewer(p.overview) }},
	{"GET /certificates", func(p *Page) http.Handler { return p.viewer(p.certificates) }},
	{"GET /certificates/{serial}", func(p *Page) http.Handler { return p.viewer(p.certificate) }},
	{"GET /engines", func(p *Page) http.Handler { return p.viewer(p.engines) }},
	{"GET /sessions", func(p *Page) http.Handler { return p.viewer(p.sessions) }},
	{"GET /events", func(p *Page) http.Handler { return p.viewer(p.events) }},
	{"GET /policy", func(p *Page) http.Handler { return p.viewer(p.policy) }},
	{"POST /policy", func(p *Page) http.Handler { return p.viewer(p.policy) }}, // explains, changes nothing
	{"GET /blocks", func(p *Page) http.Handler { return p.admin(p.blocks) }},
	{"POST /blocks/remove", func(p *Page) http.Handler { return p.admin(p.unblock) }},
	{"GET /revocations", func(p *Page) http.Handler { return p.admin(p.askRevoke) }},
	{"POST /revocations", func(p *Page) http.Handler { return p.admin(p.revoke) }},
}

// Routes returns the patterns that a Page serves, so that a test of permissions covers
// all of them.
func Routes() []string {
	out := make([]string, len(routes))
	for i, r := range routes {
		out[i] = r.pattern
	}
	return out
}

// isLocal reports whether host is an address or localhost. Such a host may have other
// services, and some may use plain HTTP.
func isLocal(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil || host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// plainHost returns host without the scheme's default port, as browsers write it.
func plainHost(scheme, host string) string {
	port := map[string]string{"https": ":443", "http": ":80"}[scheme]
	return strings.TrimSuffix(host, port)
}

// Owns reports whether a path belongs to the page, and not to the API.
func Owns(path string) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	switch first {
	case "", "assets", "login", "link", "logout", "callback", "certificates", "engines", "sessions", "events", "policy", "blocks", "revocations":
		return true
	}
	return false
}

// ServeHTTP implements http.Handler.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) { p.handler.ServeHTTP(w, r) }

// guard runs before all handlers. It sets headers and checks the host, and the origin
// of requests that change something.
func (p *Page) guard(next http.Handler) http.Handler {
	origins := http.NewCrossOriginProtection()
	origins.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.fail(w, r, &refusal{http.StatusForbidden, "This request came from another site.", nil})
	}))
	next = origins.Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", contentPolicy)
		h.Set("Referrer-Policy", "same-origin") // no-referrer would make forms send Origin: null
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Cache-Control", "no-store")
		if p.onlyTLS {
			h.Set("Strict-Transport-Security", "max-age=31536000")
		}
		if !strings.EqualFold(plainHost(p.scheme, r.Host), p.host) {
			p.fail(w, r, &refusal{http.StatusMisdirectedRequest, "The page is served at " + p.publicURL + " only.", nil})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// open serves h to everyone, with or without a login.
func (p *Page) open(h func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			p.fail(w, r, err)
		}
	})
}

type handler func(http.ResponseWriter, *http.Request, visitor) error

// viewer handles requests of people who have a role now, and sends others to the
// login.
func (p *Page) viewer(h handler) http.Handler {
	return p.open(func(w http.ResponseWriter, r *http.Request) error {
		l, err := p.login(r)
		switch {
		case errors.Is(err, ErrNoLogin) || errors.Is(err, http.ErrNoCookie):
			if r.Method == http.MethodGet || r.Method == http.MethodHead {
				if errors.Is(err, ErrNoLogin) {
					dropCookie(w, loginCookie)
				}
				http.Redirect(w, r, "/login", http.StatusSeeOther)
				return nil
			}
			return &refusal{http.StatusUnauthorized, "You are not logged in, or no longer.", nil}
		case err != nil:
			return err
		}
		who, err := p.backend.Person(r.Context(), l.Provider, l.Claims)
		if err != nil {
			p.backend.Forbidden(r.Context(), l.Provider, l.Claims, "page "+r.Pattern)
			dropCookie(w, loginCookie)
			return &refusal{http.StatusForbidden, "The policy grants you no role here any more.", err}
		}
		v := visitor{Person: who, login: l}
		if err := h(w, r, v); err != nil {
			p.failFor(w, r, &v, err)
		}
		return nil
	})
}

// login returns the login of a request's cookie. Errors: http.ErrNoCookie, ErrNoLogin,
// or the backend's.
func (p *Page) login(r *http.Request) (*Login, error) {
	c, err := r.Cookie(loginCookie)
	if err != nil {
		return nil, err
	}
	return p.backend.Login(r.Context(), idOf(c.Value))
}

// missing answers an unknown path. A logged-in person sees the error within the page.
func (p *Page) missing(w http.ResponseWriter, r *http.Request) error {
	none := &refusal{http.StatusNotFound, "There is no page at this address.", nil}
	l, err := p.login(r)
	if err != nil {
		return none
	}
	who, err := p.backend.Person(r.Context(), l.Provider, l.Claims)
	if err != nil {
		return none
	}
	p.failFor(w, r, &visitor{Person: who, login: l}, none)
	return nil
}

// admin is like viewer, but for role admin only. It records attempts without the role.
func (p *Page) admin(h handler) http.Handler {
	return p.viewer(func(w http.ResponseWriter, r *http.Request, who visitor) error {
		if !who.Admin {
			p.backend.Forbidden(r.Context(), who.login.Provider, who.login.Claims, "page "+r.Pattern)
			return &refusal{http.StatusForbidden, "This wants the role admin; yours is viewer. The attempt is recorded.", nil}
		}
		return h(w, r, who)
	})
}

// view is what a template sees.
type view struct {
	Title, Here string
	Who         *visitor
	Reload      bool // by script, every few seconds
	Data        any
}

// show renders the whole page before it writes.
func (p *Page) show(w http.ResponseWriter, _ *http.Request, status int, name string, who *visitor, v view) error {
	v.Who = who
	var b bytes.Buffer
	if err := p.templates[name].ExecuteTemplate(&b, "layout", v); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(visible(b.Bytes())) // an error means that the browser disconnected
	return nil
}

// fail shows an error to an unknown visitor.
func (p *Page) fail(w http.ResponseWriter, r *http.Request, err error) { p.failFor(w, r, nil, err) }

// failFor shows an error to who.
func (p *Page) failFor(w http.ResponseWriter, r *http.Request, who *visitor, err error) {
	p.failed(r, err)
	status, text := http.StatusInternalServerError, "Something went wrong. The issuer's log says what."
	var own *refusal
	if errors.As(err, &own) {
		status, text = own.status, own.text
	} else if pr := p.backend.Problem(err); pr != nil {
		status = pr.Status
		if pr.Name() != wire.ProblemInternal {
			text = pr.Title + ": " + pr.Detail + "."
		}
	}
	if err := p.show(w, r, status, "error", who, view{Title: http.StatusText(status), Data: text}); err != nil {
		http.Error(w, "internal error", http.StatusInternalServerError)
	}
}
