package issuer

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// Options configures a Server. Authority and Policies are required, and the caller
// still owns them.
type Options struct {
	Authority *ca.Authority
	Policies  *Policies
	// PublicURL is the origin that clients use, without a trailing slash.
	PublicURL string
	// ClientIPHeader and TrustedProxies define how a client's address is found; see
	// Config.
	ClientIPHeader string
	TrustedProxies []netip.Prefix
	Rate           RateConfig
	Metrics        *Metrics     // nil: a set of its own that is not served
	Logger         *slog.Logger // nil discards
	// Page makes the admin page, which serves its own paths and none of the API's. Nil
	// means no page.
	Page func(*Server) http.Handler
}

// Server answers the HTTP API. It is safe for concurrent use.
type Server struct {
	authority *ca.Authority
	policies  *Policies
	publicURL string
	metrics   *Metrics
	logger    *slog.Logger

	addresses addressReader
	perIP     *limiter
	perID     *limiter
	waiters   waiters
	bundle    bundles
	texts     *encodedParts
	crlText   atomic.Pointer[crlText]
	draining  chan struct{} // closed when the shutdown begins
	drainOnce sync.Once
	heldTotal atomic.Int64
	readiness readinessCache
	versions  engineVersions
	router    chi.Router
	startedAt time.Time
}

// New returns a Server.
func New(o Options) (*Server, error) {
	if o.Authority == nil || o.Policies == nil {
		return nil, errors.New("issuer: New wants an Authority and Policies")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics()
	}
	s := &Server{
		authority: o.Authority,
		policies:  o.Policies,
		publicURL: o.PublicURL,
		metrics:   o.Metrics,
		logger:    o.Logger,
		addresses: addressReader{header: textproto.CanonicalMIMEHeaderKey(o.ClientIPHeader), trusted: o.TrustedProxies},
		perIP:     newLimiter(o.Rate.PerIP),
		perID:     newLimiter(o.Rate.PerIdentity),
		draining:  make(chan struct{}),
		startedAt: time.Now(),
	}
	s.waiters.byAddress = make(map[string]int)
	if err := s.encodeBundle(); err != nil {
		return nil, err
	}
	s.metrics.watch(s)
	s.router = s.routes(o.Page)
	return s, nil
}

// Handler returns the API, with the page if there is one.
func (s *Server) Handler() http.Handler { return s.router }

// Drain begins the shutdown: /readyz fails and all waiting requests are answered.
// http.Server's Shutdown then waits only for short requests.
func (s *Server) Drain() { s.drainOnce.Do(func() { close(s.draining) }) }

// stopping reports whether the shutdown has begun.
func (s *Server) stopping() bool {
	select {
	case <-s.draining:
		return true
	default:
		return false
	}
}

// handlerFunc handles a request, or returns an error that problem.go maps.
type handlerFunc func(http.ResponseWriter, *http.Request) error

// routes returns the router of the whole API. A test compares it with /openapi.json,
// in both directions.
func (s *Server) routes(page func(*Server) http.Handler) chi.Router {
	r := chi.NewRouter()
	r.Use(s.observe, s.limitSize, middleware.GetHead)
	missing := http.Handler(s.handle(func(_ http.ResponseWriter, req *http.Request) error {
		return &Error{Name: wire.ProblemNotFound, Detail: fmt.Sprintf("this API has no path %.80q; %s lists its paths", req.URL.Path, wire.PathOpenAPI)}
	}))
	if page != nil {
		missing = routePage(s.limitAddress(page(s)), missing)
	}
	r.NotFound(missing.ServeHTTP)
	r.MethodNotAllowed(s.methodNotAllowed)

	// Only the platform calls the health checks, and often.
	r.Get(wire.PathHealth, s.handle(s.health))
	r.Get(wire.PathReady, s.handle(s.ready))

	r.Group(func(r chi.Router) {
		r.Use(s.limitAddress)
		r.Post(wire.PathCertificates, s.handle(s.issue))
		r.Get(wire.PathCertificates, s.handle(s.listCertificates))
		r.Get(wire.PathCertificates+"/{serial}", s.handle(s.showCertificate))
		r.Post(wire.PathRevocations, s.handle(s.revoke))
		r.Get(wire.PathBlocks, s.handle(s.listBlocks))
		r.Delete(wire.PathBlocks+"/{id}", s.handle(s.deleteBlock))
		r.Get(wire.PathCRL, s.handle(s.crl))
		r.Get(wire.PathCRLWait, s.handle(s.crlWait))
		r.Get(wire.PathCRL+"/{aki}", s.handle(s.crlOf))
		r.Get(wire.PathTrustBundle, s.handle(s.trustBundle))
		r.Post(wire.PathSessions, s.handle(s.reportSessions))
		r.Get(wire.PathSessions, s.handle(s.listSessions))
		r.Get(wire.PathEngines, s.handle(s.listEngines))
		r.Get(wire.PathEvents, s.handle(s.listEvents))
		r.Get(wire.PathInfo, s.handle(s.info))
		r.Post(wire.PathPolicyExplain, s.handle(s.explain))
		r.Get(wire.PathWhoami, s.handle(s.whoami))
		r.Get(wire.PathOpenAPI, s.handle(s.openAPI))
		s.stepRoutes(r)
	})
	return r
}

// methodNotAllowed has no problem type of its own (RFC 9457 section 4.2.1). It lists
// the methods of the path (RFC 9110 section 15.5.6).
func (s *Server) methodNotAllowed(w http.ResponseWriter, r *http.Request) {
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
		if !s.router.Match(chi.NewRouteContext(), m, r.URL.Path) {
			continue
		}
		w.Header().Add("Allow", m)
		if m == http.MethodGet {
			w.Header().Add("Allow", http.MethodHead)
		}
	}
	writeProblem(w, &wire.Problem{Type: "about:blank", Title: "Method Not Allowed", Status: http.StatusMethodNotAllowed, Instance: infoOf(r.Context()).id})
}

// bearer returns the token in the Authorization header.
func bearer(r *http.Request) (string, error) {
	values := r.Header.Values("Authorization")
	if len(values) == 0 {
		return "", badToken("no token: send Authorization: Bearer with an OIDC token")
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if len(values) > 1 || !ok || !strings.EqualFold(scheme, "Bearer") || token == "" {
		return "", badToken("want one Authorization header of scheme Bearer")
	}
	if len(token) > wire.MaxTokenBytes {
		return "", badToken("the token is larger than %d bytes", wire.MaxTokenBytes)
	}
	return token, nil
}
