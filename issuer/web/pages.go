package web

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// glance is how many sessions and denials the overview shows.
const glance = "5"

func (p *Page) overview(w http.ResponseWriter, r *http.Request, who visitor) error {
	o, err := p.backend.Overview(r.Context())
	if err != nil {
		return err
	}
	live, err := p.backend.Sessions(r.Context(), url.Values{"live": {"true"}, "limit": {glance}})
	if err != nil {
		return err
	}
	denied, err := p.backend.Events(r.Context(), url.Values{"type": {"denied"}, "limit": {glance}})
	if err != nil {
		return err
	}
	return p.show(w, r, http.StatusOK, "overview", &who, view{Title: "Overview", Here: "/", Reload: true, Data: struct {
		Overview
		Chart       chart
		TrustDomain string
		Sessions    []wire.Session
		Denials     []wire.Event
	}{o, newChart(o.Hours), p.backend.Info().TrustDomain, live.Items, denied.Items}})
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

// again is the query of this page.
func again(q url.Values) string {
	if len(q) == 0 {
		return ""
	}
	return "?" + q.Encode()
}

const pageLimit = "50"

func (p *Page) certificates(w http.ResponseWriter, r *http.Request, who visitor) error {
	q := filled(r.URL.Query(), "repository", "run_id", "actor", "serial", "status")
	if q.Has("serial") { // as other programs write it
		q.Set("serial", strings.ToLower(strings.ReplaceAll(q.Get("serial"), ":", "")))
	}
	ask := filled(q, "repository", "run_id", "actor", "serial", "status")
	ask.Set("limit", pageLimit)
	list, err := p.backend.Certificates(r.Context(), ask)
	if err != nil {
		return err
	}
	// What can be revoked at once is what a match can say.
	match := ""
	if m := filled(q, "repository", "run_id", "actor"); len(m) > 0 && len(list.Items) > 0 {
		m.Del("cursor")
		match = "?" + m.Encode()
	}
	return p.show(w, r, http.StatusOK, "certificates", &who, view{Title: "Certificates", Here: "/certificates", Data: struct {
		Items []wire.Certificate
		Q     url.Values
		Match string // the query of a revocation of all that fit
		Next  string
	}{list.Items, q, match, next(q, list.NextCursor)}})
}

func (p *Page) certificate(w http.ResponseWriter, r *http.Request, who visitor) error {
	serial := r.PathValue("serial")
	c, err := p.backend.Certificate(r.Context(), serial)
	if err != nil {
		return err
	}
	p.backend.Read(r.Context(), who.Name, c.Serial)
	said, rest := inWords(claimsOf(c.Claims))
	return p.show(w, r, http.StatusOK, "certificate", &who, view{Title: "Certificate", Here: "/certificates", Data: struct {
		*wire.CertificateDetail
		Said, Rest []claim
		Timeline   []moment
		RunURL     string
	}{c, said, rest, timeline(c), runURL(c)}})
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
		Items       []wire.Session
		Q           url.Values
		Again, Next string
	}{list.Items, q, again(q), next(q, list.NextCursor)}})
}

// eventTypes are offered as filters.
var eventTypes = []string{
	"issued", "denied", "replay", "revoked", "blocked", "unblocked", "connected", "disconnected", "admin_read",
	"forbidden", "login", "logout", "admin_link", "policy_loaded", "rotation", "feed_stale", "restored", "pruned",
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
	if len(data.Rules) > 0 {
		data.Provider = data.Rules[0].Provider
	}
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
