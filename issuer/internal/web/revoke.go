package web

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// question is the page that asks before a revocation, and shows its result.
type question struct {
	Query   string // of the target, for the form's action
	Of      []fact // what the request selects
	Serial  string
	Choices []choice
	Listed  []string // some of the serials that the first choice revokes
	Reason  string
	Wrong   string // what is missing in the form
	Done    *wire.RevokeResponse
	Block   string
}

// fact is a name and its value, and the URL of more details.
type fact struct{ Name, Value, URL string }

// choice is one way to revoke, and what it would affect.
type choice struct {
	Block, Label           string
	Certificates, Sessions int
	Checked                bool
	Engines                *wire.RevokeResponse // engines whose own certificates are revoked; nil for none
}

// listed bounds how many serials the question shows.
const listed = 20

// target reads what to revoke: a serial, a match, or all.
func target(f url.Values) (wire.RevokeRequest, question) {
	req := wire.RevokeRequest{Serial: f.Get("serial"), All: f.Get("all") == "yes"}
	m := wire.Match{Repository: f.Get("repository"), RunID: f.Get("run_id"), Actor: f.Get("actor")}
	if m != (wire.Match{}) {
		req.Match = &m
	}
	q := url.Values{}
	var of []fact
	for _, t := range []struct{ key, name, value string }{
		{"serial", "Serial", req.Serial}, {"repository", "Repository", m.Repository}, {"run_id", "Run", m.RunID}, {"actor", "Actor", m.Actor},
	} {
		if t.value != "" {
			q.Set(t.key, t.value)
			of = append(of, fact{Name: t.name, Value: t.value})
		}
	}
	if req.All {
		q.Set("all", "yes")
		of = append(of, fact{Name: "Everything", Value: "every certificate issued until now, engines' too: everyone needs a new one"})
	}
	return req, question{Query: "?" + q.Encode(), Of: of, Serial: req.Serial}
}

// blocks are the choices on the page. The first is the default.
var blocks = []struct{ block, label string }{
	{"24h", "Keep out for 24 hours"}, {"168h", "Keep out for 7 days"}, {wire.BlockNone, "Do not keep out: the run may get a new certificate at once"},
}

// askRevoke handles GET /revocations. It only counts, and changes nothing.
func (p *Page) askRevoke(w http.ResponseWriter, r *http.Request, who visitor) error {
	req, q := target(r.URL.Query())
	return p.ask(w, r, who, req, q, http.StatusOK)
}

// ask shows what each choice would affect.
func (p *Page) ask(w http.ResponseWriter, r *http.Request, who visitor, req wire.RevokeRequest, q question, status int) error {
	req.DryRun = true
	counted := map[bool]*wire.RevokeResponse{} // by whether there is a block; the count does not depend on its length
	for _, b := range blocks {
		with := b.block != wire.BlockNone
		if counted[with] == nil {
			req.Block = b.block
			res, err := p.backend.Revoke(r.Context(), who.Name, req)
			if err != nil {
				return err
			}
			counted[with] = res
		}
		n := counted[with]
		c := choice{b.block, b.label, len(n.Revoked), n.Sessions, b.block == q.Block || q.Block == "" && len(q.Choices) == 0, nil}
		if len(n.Machines) > 0 {
			c.Engines = n
		}
		q.Choices = append(q.Choices, c)
	}
	if req.Serial != "" {
		c, err := p.backend.Certificate(r.Context(), req.Serial)
		if err != nil {
			return err
		}
		q.Of = append(q.Of, p.about(c)...)
	}
	q.Listed = counted[true].Revoked
	q.Listed = q.Listed[:min(len(q.Listed), listed)]
	return p.show(w, r, status, "revoke", &who, view{Title: "Revoke?", Here: "/certificates", Data: q})
}

// about returns whose certificate c is, and no other claims.
func (p *Page) about(c *wire.CertificateDetail) []fact {
	var out []fact
	for _, f := range []fact{
		{"Repository", c.Repository, ""}, {"Run", c.RunID, p.backend.RunURL(c.Identity, c.Repository, c.RunID)}, {"Actor", c.Actor, ""}, {"Status", c.Status, ""},
	} {
		if f.Value != "" {
			out = append(out, f)
		}
	}
	if c.Repository == "" {
		out = append(out, fact{Name: "Identity", Value: c.Identity})
	}
	return out
}

// revoke handles POST /revocations. With confirm it revokes, else it asks.
func (p *Page) revoke(w http.ResponseWriter, r *http.Request, who visitor) error {
	if err := r.ParseForm(); err != nil {
		return &refusal{http.StatusBadRequest, "The form is not understood.", err}
	}
	req, q := target(r.Form)
	q.Reason, q.Block = strings.TrimSpace(r.PostForm.Get("reason")), r.PostForm.Get("block")
	if r.PostForm.Get("confirm") != "yes" {
		return p.ask(w, r, who, req, q, http.StatusOK)
	}
	if q.Reason == "" {
		q.Wrong = "Give a reason: the next admin will read it. Nothing was revoked."
		return p.ask(w, r, who, req, q, http.StatusBadRequest)
	}
	req.Reason, req.Block = q.Reason, q.Block
	res, err := p.backend.Revoke(r.Context(), who.Name, req)
	if err != nil {
		return err
	}
	q.Done, q.Listed = res, res.Revoked[:min(len(res.Revoked), listed)]
	return p.show(w, r, http.StatusOK, "revoke", &who, view{Title: "Revoked", Here: "/certificates", Data: q})
}
