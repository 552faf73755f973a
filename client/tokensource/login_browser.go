package tokensource

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"
)

// browserWait bounds how long a person may take in the browser.
const browserWait = 10 * time.Minute

// callbackPath is the path to which the provider sends the browser back.
const callbackPath = "/callback"

// Browser logs in with a browser on this machine. The provider sends the browser
// back to a port on 127.0.0.1, which is open only during the login.
func (l Login) Browser(ctx context.Context) (*LoginToken, error) {
	c, err := l.discover(ctx)
	if err != nil {
		return nil, err
	}
	if c.p.AuthURL == "" {
		return nil, errors.New("the login provider has no authorization endpoint")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the browser's return: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, browserWait, errors.New("the login in the browser was not finished in time"))
	defer cancel()
	a := newAuthorization("http://" + ln.Addr().String() + callbackPath)
	srv := &http.Server{
		Handler: a, ReadTimeout: 10 * time.Second, ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout: 10 * time.Second, MaxHeaderBytes: 32 << 10,
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	defer func() {
		bye, done := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer done()
		if srv.Shutdown(bye) != nil {
			srv.Close()
		}
		<-served
	}()
	l.point(a.url(c))
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case back := <-a.back:
		if back.err != nil {
			return nil, back.err
		}
		return c.redeem(ctx, a, back.code)
	}
}

// point opens or shows the URL at which the person logs in.
func (l Login) point(u string) {
	opened := l.Open != nil && l.Open(u) == nil
	if !opened && l.Show != nil {
		l.Show(LoginPrompt{URL: u, ExpiresAt: time.Now().Add(browserWait)})
	}
}

// authorization is one request of RFC 6749 section 4.1 with PKCE, and the HTTP
// handler of its answer. The first answer with the right state ends it.
type authorization struct {
	redirect, state, nonce, verifier string
	back                             chan returned
}

type returned struct {
	code string
	err  error
}

func newAuthorization(redirect string) *authorization {
	return &authorization{
		redirect: redirect, state: rand.Text(), nonce: rand.Text(),
		verifier: rand.Text() + rand.Text(), // 52 characters; RFC 7636 wants 43 to 128
		back:     make(chan returned, 1),
	}
}

func (a *authorization) url(c *loginClient) string {
	u, err := url.Parse(c.p.AuthURL)
	if err != nil { // discover has parsed it
		return c.p.AuthURL
	}
	sum := sha256.Sum256([]byte(a.verifier))
	q := u.Query()
	q.Set("response_type", "code")
	q.Set("client_id", c.login.ClientID)
	q.Set("redirect_uri", a.redirect)
	q.Set("scope", loginScope)
	q.Set("state", a.state)
	q.Set("nonce", a.nonce)
	q.Set("code_challenge", base64.RawURLEncoding.EncodeToString(sum[:]))
	q.Set("code_challenge_method", "S256")
	u.RawQuery = q.Encode()
	return u.String()
}

// ServeHTTP receives the returning browser. A request without the right state, such
// as one from another page that guesses the port, changes nothing.
func (a *authorization) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Referrer-Policy", "no-referrer")
	q := r.URL.Query()
	if r.Method != http.MethodGet || r.URL.Path != callbackPath ||
		subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(a.state)) != 1 {
		http.Error(w, "This is not the answer to a login that mayfly waits for.", http.StatusNotFound)
		return
	}
	back := returned{code: q.Get("code")}
	if back.code == "" {
		back.err = &LoginError{Code: excerpt([]byte(q.Get("error"))), Description: excerpt([]byte(q.Get("error_description"))), Status: http.StatusOK}
		fmt.Fprintln(w, "The login was refused. The terminal says more; you may close this page.")
	} else {
		fmt.Fprintln(w, "mayfly has your answer. You may close this page and go back to the terminal.")
	}
	select {
	case a.back <- back:
	default: // answered already
	}
}

// redeem exchanges the code for the token.
func (c *loginClient) redeem(ctx context.Context, a *authorization, code string) (*LoginToken, error) {
	var t tokenAnswer
	err := c.post(ctx, c.p.TokenURL, url.Values{
		"grant_type": {"authorization_code"}, "code": {code},
		"redirect_uri": {a.redirect}, "code_verifier": {a.verifier},
	}, &t)
	if err != nil {
		return nil, fmt.Errorf("redeem the login's code: %w", err)
	}
	return c.accept(t.IDToken, a.nonce, time.Now())
}
