package web

import (
	"errors"
	"net/http"
)

// LinkPath is the path of a link that logs in one person. Its query's code is the
// link's secret.
const LinkPath = "/link"

// LinkID returns the store's ID for a link's secret. No cookie's secret has an ID of
// this form, so a link's secret is not valid as a cookie.
func LinkID(secret string) string { return "link:" + idOf(secret) }

// link handles GET /link. It shows a button and does not use up the link, because chat
// programs and mail scanners fetch every link that they see.
func (p *Page) link(w http.ResponseWriter, r *http.Request) error {
	return p.show(w, r, http.StatusOK, "link", nil, view{Title: "Log in", Data: r.URL.Query().Get("code")})
}

// useLink handles POST /link. The first request with the link's secret logs in.
func (p *Page) useLink(w http.ResponseWriter, r *http.Request) error {
	l, err := p.backend.TakeLink(r.Context(), LinkID(r.PostFormValue("code")))
	if errors.Is(err, ErrNoLogin) {
		return &refusal{http.StatusForbidden, "This link has been used, or is older than ten minutes. On the issuer's host, mayfly-issuer admin-link makes another.", nil}
	}
	if err != nil {
		return err
	}
	return p.enter(w, r, l.Provider, l.Subject, l.Claims)
}
