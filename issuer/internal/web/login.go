package web

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/mayfly-ca/mayfly/client/wire"
)

const (
	// loginCookie carries the secret of a login. stateCookie binds the provider's
	// response to the browser that began the login.
	loginCookie = "__Host-mayfly"
	stateCookie = "__Host-mayfly-login"
	// loginLife bounds a login; stateLife bounds how long logging in may take.
	loginLife = 8 * time.Hour
	stateLife = 10 * time.Minute
	// callbackPath is the path of the redirect URI at the provider.
	callbackPath = "/callback"
)

// ErrNoLogin means that the login is unknown or has ended.
var ErrNoLogin = errors.New("no such login")

// refusal is a login error with a public text.
type refusal struct {
	status int
	text   string
	err    error
}

func (e *refusal) Error() string {
	if e.err != nil {
		return e.text + ": " + e.err.Error()
	}
	return e.text
}
func (e *refusal) Unwrap() error { return e.err }

func setCookie(w http.ResponseWriter, name, value string, life time.Duration) {
	http.SetCookie(w, &http.Cookie{
		Name: name, Value: value, Path: "/", MaxAge: int(life / time.Second),
		Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
}

func dropCookie(w http.ResponseWriter, name string) { setCookie(w, name, "", -time.Second) }

// idOf returns the store's ID for a cookie's secret.
func idOf(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// flow holds a provider's endpoints and the client for them.
type flow struct {
	config oauth2.Config
	client *http.Client
}

func (p *Page) discover(ctx context.Context, name string) (*flow, error) {
	var login wire.Login
	for _, l := range p.backend.Info().Login {
		if l.Provider == name {
			login = l
		}
	}
	client, err := p.backend.Client(name)
	if err != nil {
		return nil, err
	}
	op, err := oidc.NewProvider(oidc.ClientContext(ctx, client), login.Issuer)
	if err != nil {
		client.CloseIdleConnections()
		return nil, &refusal{http.StatusServiceUnavailable, "The login provider does not answer. Try again.", err}
	}
	ep := op.Endpoint()
	ep.AuthStyle = oauth2.AuthStyleInParams // a public client
	for _, raw := range []string{ep.AuthURL, ep.TokenURL} {
		u, err := url.Parse(raw)
		if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && (u.Scheme != "http" || !strings.HasPrefix(login.Issuer, "http:")) {
			client.CloseIdleConnections()
			return nil, &refusal{http.StatusBadGateway, "The login provider names an endpoint that is not https.", err}
		}
	}
	return &flow{client: client, config: oauth2.Config{
		ClientID: login.ClientID, Endpoint: ep, RedirectURL: p.publicURL + callbackPath,
		Scopes: []string{oidc.ScopeOpenID, "email"},
	}}, nil
}

// loginPage handles GET /login. It shows the providers.
func (p *Page) loginPage(w http.ResponseWriter, r *http.Request) error {
	return p.show(w, r, http.StatusOK, "login", nil, view{Title: "Log in", Data: p.backend.Info()})
}

// begin handles GET /login/{provider}. It sets the state cookie and redirects to the
// provider.
func (p *Page) begin(w http.ResponseWriter, r *http.Request) error {
	provider := r.PathValue("provider")
	f, err := p.discover(r.Context(), provider)
	if err != nil {
		return err
	}
	defer f.client.CloseIdleConnections()
	state, nonce, verifier := rand.Text(), rand.Text(), oauth2.GenerateVerifier()
	setCookie(w, stateCookie, strings.Join([]string{provider, state, nonce, verifier}, "."), stateLife)
	http.Redirect(w, r, f.config.AuthCodeURL(state, oidc.Nonce(nonce), oauth2.S256ChallengeOption(verifier)), http.StatusSeeOther)
	return nil
}

// callback handles the provider's redirect back to the page.
func (p *Page) callback(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	c, err := r.Cookie(stateCookie)
	if err != nil {
		return &refusal{http.StatusBadRequest, "This browser did not begin this login, or took more than ten minutes.", nil}
	}
	part := strings.Split(c.Value, ".")
	if len(part) != 4 || subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(part[1])) != 1 {
		return &refusal{http.StatusBadRequest, "This is not the answer to the login that this browser began.", nil}
	}
	dropCookie(w, stateCookie) // one response only, good or bad
	provider, nonce, verifier := part[0], part[2], part[3]
	if q.Get("code") == "" {
		return &refusal{http.StatusForbidden, "The login provider refused the login.", fmt.Errorf("provider: %q", truncate(q.Get("error")))}
	}
	claims, err := p.redeem(r, provider, verifier, nonce)
	if err != nil {
		return err
	}
	var subject struct {
		Sub string `json:"sub"`
	}
	_ = json.Unmarshal(claims, &subject) // claims are verified: sub is a string
	return p.enter(w, r, provider, subject.Sub, claims)
}

// enter logs in the subject of the claims and redirects to the first page.
func (p *Page) enter(w http.ResponseWriter, r *http.Request, provider, subject string, claims json.RawMessage) error {
	who, err := p.backend.Person(r.Context(), provider, claims)
	if err != nil {
		p.backend.Forbidden(r.Context(), provider, claims, "login")
		return &refusal{http.StatusForbidden, "You are known, and the policy grants you no role here.", err}
	}
	secret, now := rand.Text()+rand.Text(), time.Now().UTC()
	l := Login{ID: idOf(secret), Provider: provider, Subject: subject, Claims: claims, CreatedAt: now, ExpiresAt: now.Add(loginLife)}
	if err := p.backend.PutLogin(r.Context(), who, l); err != nil {
		return err
	}
	setCookie(w, loginCookie, secret, loginLife)
	http.Redirect(w, r, "/", http.StatusSeeOther)
	return nil
}

// redeem exchanges the code for the ID token and verifies the token.
func (p *Page) redeem(r *http.Request, provider, verifier, nonce string) (json.RawMessage, error) {
	f, err := p.discover(r.Context(), provider)
	if err != nil {
		return nil, err
	}
	defer f.client.CloseIdleConnections()
	ctx := context.WithValue(r.Context(), oauth2.HTTPClient, f.client)
	q := r.URL.Query()
	for _, l := range p.backend.Info().Login { // RFC 9207
		if iss := q.Get("iss"); l.Provider == provider && iss != "" && iss != l.Issuer {
			return nil, &refusal{http.StatusBadRequest, "The answer is of another login provider.", nil}
		}
	}
	token, err := f.config.Exchange(ctx, q.Get("code"), oauth2.VerifierOption(verifier))
	if err != nil {
		// The error's text may hold the provider's whole response.
		var re *oauth2.RetrieveError
		if errors.As(err, &re) {
			err = fmt.Errorf("token endpoint: %q", truncate(re.ErrorCode))
		}
		return nil, &refusal{http.StatusBadGateway, "The login provider did not redeem the login. Log in again.", err}
	}
	raw, _ := token.Extra("id_token").(string)
	if raw == "" {
		return nil, &refusal{http.StatusBadGateway, "The login provider sent no ID token.", nil}
	}
	claims, err := p.backend.Verify(r.Context(), provider, raw)
	if err != nil {
		return nil, err
	}
	var got struct {
		Nonce string `json:"nonce"`
	}
	if err := json.Unmarshal(claims, &got); err != nil || subtle.ConstantTimeCompare([]byte(got.Nonce), []byte(nonce)) != 1 {
		return nil, &refusal{http.StatusBadRequest, "The ID token is not of this login.", err}
	}
	return claims, nil
}

// logout handles POST /logout.
func (p *Page) logout(w http.ResponseWriter, r *http.Request, who visitor) error {
	dropCookie(w, loginCookie)
	if err := p.backend.DeleteLogin(r.Context(), who.login.ID, who.Name); err != nil {
		return err
	}
	http.Redirect(w, r, "/login", http.StatusSeeOther)
	return nil
}

// truncate bounds untrusted text for the log.
func truncate(s string) string {
	if len(s) > 100 {
		return s[:100]
	}
	return s
}
