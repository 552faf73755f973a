package issuer

import (
	"context"
	_ "embed"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
)

// listEvents handles GET /v1/events.
func (s *Server) listEvents(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.requireRole(w, r, policy.Viewer); err != nil {
		return err
	}
	list, err := s.Events(r.Context(), r.URL.Query())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, list)
}

// info handles GET /v1/info.
func (s *Server) info(w http.ResponseWriter, r *http.Request) error {
	return writeJSON(w, http.StatusOK, s.Info())
}

// Info returns what a client needs before it has a certificate.
func (s *Server) Info() wire.Info {
	set := s.policies.Set()
	out := wire.Info{
		TrustDomain: set.TrustDomain().Name(),
		Audience:    set.Audience(),
		CRLURL:      s.publicURL + wire.PathCRL,
		Login:       []wire.Login{},
	}
	for _, p := range set.Providers() {
		if p.Type == idtoken.People {
			out.Login = append(out.Login, wire.Login{Provider: p.Name, Issuer: p.Issuer, ClientID: p.ClientID})
		}
	}
	return out
}

// explain handles POST /v1/policy/explain. It issues nothing and records nothing,
// because the caller makes up the claims.
func (s *Server) explain(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.requireRole(w, r, policy.Viewer); err != nil {
		return err
	}
	var req wire.ExplainRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	out, err := s.Explain(req)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, out)
}

// Explain returns which rule would match the claims. Errors: bad-request.
func (s *Server) Explain(req wire.ExplainRequest) (*wire.ExplainResponse, error) {
	return ExplainClaims(s.policies.Set(), req)
}

// ExplainClaims returns which rule of set would match recorded claims: first a rule
// that grants a certificate, then one that grants a role. Errors: bad-request.
func ExplainClaims(set *policy.Set, req wire.ExplainRequest) (*wire.ExplainResponse, error) {
	var provider *idtoken.Provider
	for _, p := range set.Providers() {
		if p.Name == req.Provider {
			provider = &p
		}
	}
	if provider == nil {
		return nil, badRequest("provider: the policy has none of this name")
	}
	if len(req.Claims) == 0 || !json.Valid(req.Claims) {
		return nil, badRequest("claims: want the token's payload, a JSON object")
	}
	claims, err := idtoken.ParseClaims(*provider, req.Claims)
	if err != nil {
		return nil, &Error{Name: wire.ProblemBadRequest, Detail: err.Error(), Err: err}
	}
	certificate := policy.Request{Want: policy.WantCertificate, Engine: req.Engine}
	role := policy.Request{Want: policy.WantRole}
	switch req.Want {
	case "certificate":
		return wireExplanation(set.Explain(claims, certificate)), nil
	case "role":
		if req.Engine != "" {
			return nil, badRequest("engine: goes with a certificate, not with a role")
		}
		return wireExplanation(set.Explain(claims, role)), nil
	case "":
	default:
		return nil, badRequest("want: certificate or role")
	}
	x := set.Explain(claims, certificate)
	if !x.Allowed && provider.Type == idtoken.People && req.Engine == "" {
		r := set.Explain(claims, role)
		r.Rules = append(r.Rules, x.Rules...)
		x = r
	}
	return wireExplanation(x), nil
}

//go:embed openapi.json
var openAPIDocument []byte

// openAPI handles GET /openapi.json.
func (s *Server) openAPI(w http.ResponseWriter, _ *http.Request) error {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "public, max-age=300")
	_, _ = w.Write(openAPIDocument)
	return nil
}

// health handles GET /healthz. It shows that the process answers.
func (s *Server) health(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n"))
	return nil
}

// readiness is the body of GET /readyz.
type readiness struct {
	Status string `json:"status"`
	// Warnings lists what will break, long before it does.
	Warnings []string `json:"warnings"`
}

// readinessAge is how long one check of the store answers all requests.
const readinessAge = time.Second

// readinessCache limits writes to the store: /readyz needs no token and has no rate
// limit.
type readinessCache struct {
	mu  sync.Mutex
	at  time.Time
	err error
}

// ask returns the result of ready, which may be up to readinessAge old.
func (c *readinessCache) ask(ctx context.Context, ready func(context.Context) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at.IsZero() || time.Since(c.at) > readinessAge {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), scrapeTimeout)
		defer cancel()
		c.err, c.at = ready(ctx), time.Now()
	}
	return c.err
}

// ready handles GET /readyz: store and keys work, and no shutdown has begun.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) error {
	if s.stopping() {
		return &Error{Name: wire.ProblemUnavailable, Detail: "the issuer is stopping", RetryAfter: 5}
	}
	if err := s.readiness.ask(r.Context(), s.authority.Ready); err != nil {
		return unavailable("ready", err)
	}
	return writeJSON(w, http.StatusOK, readiness{Status: "ready", Warnings: s.Warnings()})
}

// Warnings lists what an admin should fix: certificates and CRLs of the CA near their
// end, and a policy file that failed to load.
func (s *Server) Warnings() []string {
	out := []string{}
	now := time.Now()
	for _, e := range s.authority.Expiries() {
		if e.NotAfter.Sub(now) < ca.ExpiryWarning {
			out = append(out, "the "+e.What+" ends "+e.NotAfter.UTC().Format(time.RFC3339)+": mayfly-issuer rotate")
		}
	}
	if s.policies.Failed() != "" {
		out = append(out, "the policy file is not in force, older rules are: mayfly-issuer policy check says why")
	}
	return out
}
