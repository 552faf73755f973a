package web

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/mayfly-ca/mayfly/client/wire"
)

func (p *Page) overview(w http.ResponseWriter, r *http.Request, who visitor) error {
	o, err := p.backend.Overview(r.Context())
	if err != nil {
		return err
	}
	return p.show(w, r, http.StatusOK, "overview", &who, view{Title: "Overview", Here: "/", Data: struct {
		Overview
		Chart       chart
		TrustDomain string
	}{o, newChart(o.Hours), p.backend.Info().TrustDomain}})
}

// filled takes the filled fields of a search form; a form sends empty ones.
func filled(q url.Values, names ...string) url.Values {
	out := url.Values{}
	for _, n := range append(names, "cursor") {
		if v := strings.TrimSpace(q.Get(n)); v != "" {
			out.Set(n, v)
		}
	}
	return out
}

// next is the query of the next page, "" on the last one.
func next(q url.Values, cursor string) string {
	if cursor == "" {
		return ""
	}
	out := url.Values{}
	for k, v := range q {
		out[k] = v
	}
	out.Set("cursor", cursor)
	return "?" + out.Encode()
}

const pageLimit = "50"

func (p *Page) certificates(w http.ResponseWriter, r *http.Request, who visitor) error {
	q := filled(r.URL.Query(), "repository", "run_id", "actor", "serial", "status")
	ask := filled(q, "repository", "run_id", "actor", "serial", "status")
	ask.Set("limit", pageLimit)
	list, err := p.backend.Certificates(r.Context(), ask)
	if err != nil {
		return err
	}
	// What can be revoked at once is what a match can say.
	match := who.Admin && len(list.Items) > 0 && !q.Has("serial") && (q.Has("repository") || q.Has("run_id") || q.Has("actor"))
	return p.show(w, r, http.StatusOK, "certificates", &who, view{Title: "Certificates", Here: "/certificates", Data: struct {
		Items []wire.Certificate
		Q     url.Values
		Match bool
		Next  string
	}{list.Items, q, match, next(q, list.NextCursor)}})
}

// claim is one line of a token.
type claim struct{ Name, Value string }

// claimsOf lists a token's claims in their order.
func claimsOf(raw json.RawMessage) []claim {
	dec := json.NewDecoder(strings.NewReader(string(raw)))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil
	}
	var out []claim
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return out
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return out
		}
		text, _ := name.(string) // a key is a string
		out = append(out, claim{text, string(v)})
	}
	return out
}

func (p *Page) certificate(w http.ResponseWriter, r *http.Request, who visitor) error {
	serial := r.PathValue("serial")
	c, err := p.backend.Certificate(r.Context(), serial)
	if err != nil {
		return err
	}
	p.backend.Read(r.Context(), who.Name, c.Serial)
	return p.show(w, r, http.StatusOK, "certificate", &who, view{Title: "Certificate", Here: "/certificates", Data: struct {
		*wire.CertificateDetail
		Said []claim
	}{c, claimsOf(c.Claims)}})
}

// order reads the form of a revocation: a serial, or a match.
func order(f url.Values) wire.RevokeRequest {
	req := wire.RevokeRequest{Serial: f.Get("serial"), Reason: strings.TrimSpace(f.Get("reason")), Block: f.Get("block")}
	m := wire.Match{Repository: f.Get("repository"), RunID: f.Get("run_id"), Actor: f.Get("actor")}
	if m != (wire.Match{}) {
		req.Match = &m
	}
	return req
}

// revoke is POST /revocations: first it shows what would happen, and with confirm
// it acts.
func (p *Page) revoke(w http.ResponseWriter, r *http.Request, who visitor) error {
	if err := r.ParseForm(); err != nil {
		return &refusal{http.StatusBadRequest, "The form is not understood.", err}
	}
	req := order(r.PostForm)
	if req.Reason == "" {
		return &refusal{http.StatusBadRequest, "Give a reason: the next admin will read it.", nil}
	}
	req.DryRun = r.PostForm.Get("confirm") != "yes"
	res, err := p.backend.Revoke(r.Context(), who.Name, req)
	if err != nil {
		return err
	}
	title := "Revoked"
	if req.DryRun {
		title = "Revoke?"
	}
	return p.show(w, r, http.StatusOK, "revoke", &who, view{Title: title, Here: "/certificates", Data: struct {
		Req   wire.RevokeRequest
		Res   *wire.RevokeResponse
		Match wire.Match
	}{req, res, deref(req.Match)}})
}

func deref(m *wire.Match) wire.Match {
	if m == nil {
		return wire.Match{}
	}
	return *m
}

func (p *Page) sessions(w http.ResponseWriter, r *http.Request, who visitor) error {
	q := filled(r.URL.Query(), "repository", "run_id", "engine", "ended")
	ask := filled(q, "repository", "run_id", "engine")
	ask.Set("limit", pageLimit)
	if !q.Has("ended") {
		ask.Set("live", "true")
	}
	list, err := p.backend.Sessions(r.Context(), ask)
	if err != nil {
		return err
	}
	return p.show(w, r, http.StatusOK, "sessions", &who, view{Title: "Sessions", Here: "/sessions", Reload: !q.Has("cursor"), Data: struct {
		Items []wire.Session
		Q     url.Values
		Next  string
	}{list.Items, q, next(q, list.NextCursor)}})
}

// eventTypes are offered as filters.
var eventTypes = []string{
	"issued", "denied", "replay", "revoked", "blocked", "unblocked", "connected", "disconnected", "admin_read",
	"forbidden", "login", "logout", "policy_loaded", "rotation", "feed_stale", "restored", "pruned",
}

func (p *Page) events(w http.ResponseWriter, r *http.Request, who visitor) error {
	q := filled(r.URL.Query(), "type", "serial", "repository", "run_id")
	ask := filled(q, "type", "serial", "repository", "run_id")
	ask.Set("limit", pageLimit)
	list, err := p.backend.Events(r.Context(), ask)
	if err != nil {
		return err
	}
	return p.show(w, r, http.StatusOK, "events", &who, view{Title: "Events", Here: "/events", Data: struct {
		Items []wire.Event
		Types []string
		Q     url.Values
		Next  string
	}{list.Items, eventTypes, q, next(q, list.NextCursor)}})
}

func (p *Page) blocks(w http.ResponseWriter, r *http.Request, who visitor) error {
	list, err := p.backend.Blocks(r.Context())
	if err != nil {
		return err
	}
	return p.show(w, r, http.StatusOK, "blocks", &who, view{Title: "Blocks", Here: "/blocks", Data: list.Items})
}

func (p *Page) unblock(w http.ResponseWriter, r *http.Request, who visitor) error {
	if err := r.ParseForm(); err != nil {
		return &refusal{http.StatusBadRequest, "The form is not understood.", err}
	}
	if err := p.backend.Unblock(r.Context(), r.PostForm.Get("id"), who.Name); err != nil {
		return err
	}
	http.Redirect(w, r, "/blocks", http.StatusSeeOther)
	return nil
}

func (p *Page) policy(w http.ResponseWriter, r *http.Request, who visitor) error {
	data := struct {
		Policy
		Provider, Claims, Wrong string
		Answer                  *wire.ExplainResponse
	}{Policy: p.backend.Policy()}
	status := http.StatusOK
	if r.Method == http.MethodPost {
		if err := r.ParseForm(); err != nil {
			return &refusal{http.StatusBadRequest, "The form is not understood.", err}
		}
		data.Provider, data.Claims = r.PostForm.Get("provider"), r.PostForm.Get("claims")
		var err error
		data.Answer, err = p.backend.Explain(wire.ExplainRequest{Provider: data.Provider, Claims: json.RawMessage(data.Claims)})
		if err != nil {
			pr := p.backend.Problem(err)
			if pr == nil || pr.Status >= http.StatusInternalServerError {
				return errors.Join(err)
			}
			status, data.Wrong = pr.Status, pr.Detail
		}
	}
	return p.show(w, r, status, "policy", &who, view{Title: "Policy", Here: "/policy", Data: data})
}
