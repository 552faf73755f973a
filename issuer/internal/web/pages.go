package web

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
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

// filled returns the non-empty fields of a search form.
func filled(q url.Values, names ...string) url.Values {
	out := url.Values{}
	for _, n := range append(names, "cursor") {
		if v := strings.TrimSpace(q.Get(n)); v != "" {
			out.Set(n, v)
		}
	}
	return out
}

// older returns the query of a list's next page, or "" on the last one.
func older(q url.Values, cursor string) string {
	if cursor == "" {
		return ""
	}
	q.Set("cursor", cursor)
	return "?" + q.Encode()
}

// again returns the query of this page.
func again(q url.Values) string {
	if len(q) == 0 {
		return ""
	}
	return "?" + q.Encode()
}

const pageLimit = "50"

func (p *Page) certificates(w http.ResponseWriter, r *http.Request, who visitor) error {
	q := filled(r.URL.Query(), "repository", "run_id", "actor", "serial", "status")
	if q.Has("serial") { // other programs use colons and capitals
		q.Set("serial", strings.ToLower(strings.ReplaceAll(q.Get("serial"), ":", "")))
	}
	list, err := listOf(r, q, q, p.backend.Certificates)
	if err != nil {
		return err
	}
	// Only filters that a match can express may be revoked at once. A block would
	// cover more than a span of time.
	match := ""
	if m := filled(q, "repository", "run_id", "actor"); len(m) > 0 && len(list.Items) > 0 && list.Span.Choice == "" {
		m.Del("cursor")
		match = "?" + m.Encode()
	}
	return p.show(w, r, http.StatusOK, "certificates", &who, view{Title: "Certificates", Here: "/certificates", Data: struct {
		listing[wire.Certificate]
		Match string // the query of a revocation of all that match
	}{list, match}})
}

// listing is a page of a list: the form's fields and the items found.
type listing[T any] struct {
	Items []T
	Q     url.Values
	Span  span
	Next  string // the query of the next page, "" on the last one
}

// listOf fetches a page of a list. q holds the form's fields. ask is the API's query
// without the fields that all lists have.
func listOf[T any](r *http.Request, q, ask url.Values, list func(context.Context, url.Values) (wire.List[T], error)) (listing[T], error) {
	ask = maps.Clone(ask)
	s, next, err := between(withSpan(q, r.URL.Query()), ask)
	if err != nil {
		return listing[T]{}, err
	}
	ask.Set("limit", pageLimit)
	found, err := list(r.Context(), ask)
	if err != nil {
		return listing[T]{}, err
	}
	return listing[T]{found.Items, q, s, older(next, found.NextCursor)}, nil
}

// withSpan adds the fields of the time filter, also empty ones.
func withSpan(q, all url.Values) url.Values {
	q = maps.Clone(q)
	for _, name := range spanFields {
		if all.Has(name) {
			q.Set(name, strings.TrimSpace(all.Get(name)))
		}
	}
	return q
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
	}{c, said, rest, timeline(c)}})
}

func (p *Page) sessions(w http.ResponseWriter, r *http.Request, who visitor) error {
	q := filled(r.URL.Query(), "repository", "run_id", "engine", "ended", "cut")
	ask := filled(q, "repository", "run_id", "engine")
	switch {
	case q.Has("cut"):
		ask.Set("cut", "true")
	case !q.Has("ended"):
		ask.Set("live", "true")
	}
	list, err := listOf(r, q, ask, p.backend.Sessions)
	if err != nil {
		return err
	}
	return p.show(w, r, http.StatusOK, "sessions", &who, view{Title: "Sessions", Here: "/sessions", Reload: !q.Has("cursor"), Data: struct {
		listing[wire.Session]
		Again string
	}{list, again(r.URL.Query())}})
}

// eventTypes are the event types that the filter offers.
var eventTypes = []string{
	"issued", "denied", "replay", "revoked", "blocked", "unblocked", "connected", "disconnected", "admin_read",
	"forbidden", "login", "logout", "admin_link", "policy_loaded", "rotation", "feed_stale", "restored", "pruned",
}

func (p *Page) events(w http.ResponseWriter, r *http.Request, who visitor) error {
	q := filled(r.URL.Query(), "type", "serial", "repository", "run_id")
	list, err := listOf(r, q, q, p.backend.Events)
	if err != nil {
		return err
	}
	return p.show(w, r, http.StatusOK, "events", &who, view{Title: "Events", Here: "/events", Data: struct {
		listing[wire.Event]
		Types []string
	}{list, eventTypes}})
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
