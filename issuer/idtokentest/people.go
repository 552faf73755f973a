package idtokentest

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	codeLife     = time.Minute
	deviceLife   = 10 * time.Minute
	deviceEvery  = time.Second // RFC 8628 section 3.2, interval
	accessLife   = time.Hour
	grantCode    = "authorization_code"
	grantDevice  = "urn:ietf:params:oauth:grant-type:device_code"
	maxPending   = 10_000
	userAlphabet = "BCDFGHJKLMNPQRSTVWXZ" // RFC 8628 section 6.1
)

// people is the state of a login provider.
type people struct {
	mu      sync.Mutex
	codes   map[string]authorization // by code
	devices map[string]*device       // by device code
	access  map[string]access        // by access token
}

// authorization is one granted request of RFC 6749 section 4.1 with PKCE.
type authorization struct {
	redirect, challenge, nonce, email string
	expires                           time.Time
}

// device is one request of RFC 8628.
type device struct {
	userCode string
	email    string // set when approved
	denied   bool
	polled   time.Time
	expires  time.Time
}

type access struct {
	claims  map[string]any
	expires time.Time
}

func (s *people) init() {
	s.codes, s.devices, s.access = map[string]authorization{}, map[string]*device{}, map[string]access{}
}

func (p *Provider) peopleRoutes(mux *http.ServeMux, base string) {
	mux.HandleFunc("GET "+base+"/authorize", p.serveAuthorize)
	mux.HandleFunc("POST "+base+"/authorize", p.serveLogin)
	mux.HandleFunc("POST "+base+"/token", p.serveToken)
	mux.HandleFunc("GET "+base+"/userinfo", p.serveUserInfo)
	mux.HandleFunc("POST "+base+"/device/code", p.serveDeviceCode)
	mux.HandleFunc("GET "+base+"/device", p.serveDevicePage)
	mux.HandleFunc("POST "+base+"/device", p.serveDeviceAnswer)
}

func (p *Provider) peopleDiscovery(doc map[string]any) {
	maps.Copy(doc, map[string]any{
		"authorization_endpoint":                         p.issuer + "/authorize",
		"token_endpoint":                                 p.issuer + "/token",
		"userinfo_endpoint":                              p.issuer + "/userinfo",
		"device_authorization_endpoint":                  p.issuer + "/device/code",
		"response_types_supported":                       []string{"code"},
		"response_modes_supported":                       []string{"query"},
		"grant_types_supported":                          []string{grantCode, grantDevice},
		"code_challenge_methods_supported":               []string{"S256"},
		"scopes_supported":                               []string{"openid", "email", "profile"},
		"token_endpoint_auth_methods_supported":          []string{"none"},
		"authorization_response_iss_parameter_supported": true,
	})
}

// request is the query of the authorization endpoint, or the hidden fields of its
// form.
type request struct {
	ClientID, RedirectURI, ResponseType, Scope, State, Nonce, Challenge, Method string
}

func readRequest(q url.Values) request {
	return request{
		ClientID: q.Get("client_id"), RedirectURI: q.Get("redirect_uri"), ResponseType: q.Get("response_type"),
		Scope: q.Get("scope"), State: q.Get("state"), Nonce: q.Get("nonce"),
		Challenge: q.Get("code_challenge"), Method: q.Get("code_challenge_method"),
	}
}

// Query returns the request as received, for the form's hidden fields.
func (a request) Query() map[string]string {
	return map[string]string{
		"client_id": a.ClientID, "redirect_uri": a.RedirectURI, "response_type": a.ResponseType, "scope": a.Scope,
		"state": a.State, "nonce": a.Nonce, "code_challenge": a.Challenge, "code_challenge_method": a.Method,
	}
}

// checkRequest returns what is wrong. person is an error of the client or its
// redirect, shown to the person; client is another error, sent to the client.
func (p *Provider) checkRequest(a request) (person, client string) {
	switch {
	case a.ClientID != p.options.ClientID:
		return "There is no such client here.", ""
	case !p.mayRedirect(a.RedirectURI):
		return "The client may not be returned to at this address.", ""
	case a.ResponseType != "code":
		return "", "unsupported_response_type"
	case !slices.Contains(strings.Fields(a.Scope), "openid"):
		return "", "invalid_scope"
	case a.Method != "S256" || len(a.Challenge) != 43:
		return "", "invalid_request"
	}
	return "", ""
}

// mayRedirect allows the configured URLs, and loopback at any port (RFC 8252 section
// 7.3).
func (p *Provider) mayRedirect(to string) bool {
	if slices.Contains(p.options.RedirectURIs, to) {
		return true
	}
	u, err := url.Parse(to)
	if err != nil || u.Fragment != "" || u.User != nil || (u.Scheme != "http" && u.Scheme != "https") {
		return false
	}
	addr, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || (err == nil && addr.IsLoopback())
}

func (p *Provider) serveAuthorize(w http.ResponseWriter, r *http.Request) {
	a := readRequest(r.URL.Query())
	if p.refuseRequest(w, r, a) {
		return
	}
	email, _ := p.Claims(nil)["email"].(string)
	showPage(w, http.StatusOK, page{Title: "Sign in", Action: p.options.Path + "/authorize", Email: email, Hidden: a.Query()})
}

func (p *Provider) refuseRequest(w http.ResponseWriter, r *http.Request, a request) bool {
	person, client := p.checkRequest(a)
	switch {
	case person != "":
		showPage(w, http.StatusBadRequest, page{Title: "Sign in", Message: person})
	case client != "":
		p.redirectBack(w, r, a, url.Values{"error": {client}})
	default:
		return false
	}
	return true
}

func (p *Provider) redirectBack(w http.ResponseWriter, r *http.Request, a request, answer url.Values) {
	u, err := url.Parse(a.RedirectURI)
	if err != nil { // checkRequest has parsed it before
		http.Error(w, "bad redirect", http.StatusBadRequest)
		return
	}
	q := u.Query()
	for name, values := range answer {
		q[name] = values
	}
	if a.State != "" {
		q.Set("state", a.State)
	}
	q.Set("iss", p.issuer)
	u.RawQuery = q.Encode()
	http.Redirect(w, r, u.String(), http.StatusSeeOther)
}

// serveLogin handles the form. The e-mail address logs in without a password.
func (p *Provider) serveLogin(w http.ResponseWriter, r *http.Request) {
	form, ok := readForm(w, r)
	if !ok {
		return
	}
	a := readRequest(form)
	if p.refuseRequest(w, r, a) {
		return
	}
	if form.Get("answer") == "deny" {
		p.redirectBack(w, r, a, url.Values{"error": {"access_denied"}})
		return
	}
	code := rand.Text()
	if !p.people.put(func(s *people) {
		s.codes[code] = authorization{
			redirect: a.RedirectURI, challenge: a.Challenge, nonce: a.Nonce,
			email: form.Get("email"), expires: time.Now().Add(codeLife),
		}
	}) {
		http.Error(w, "too many logins", http.StatusServiceUnavailable)
		return
	}
	p.redirectBack(w, r, a, url.Values{"code": {code}})
}

// put drops expired entries and then changes the state.
func (s *people) put(change func(*people)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(s.codes, func(_ string, a authorization) bool { return now.After(a.expires) })
	maps.DeleteFunc(s.devices, func(_ string, d *device) bool { return now.After(d.expires) })
	maps.DeleteFunc(s.access, func(_ string, a access) bool { return now.After(a.expires) })
	if len(s.codes)+len(s.devices)+len(s.access) > maxPending {
		return false
	}
	change(s)
	return true
}

func readForm(w http.ResponseWriter, r *http.Request) (url.Values, bool) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	if err := r.ParseForm(); err != nil {
		http.Error(w, "want a form", http.StatusBadRequest)
		return nil, false
	}
	return r.PostForm, true
}

// refuseGrant answers with an error of RFC 6749 section 5.2.
func refuseGrant(w http.ResponseWriter, r *http.Request, name string) {
	Fault{Status: http.StatusBadRequest, Body: `{"error":"` + name + `"}`}.answer(w, r, "application/json", nil)
}

func (p *Provider) serveToken(w http.ResponseWriter, r *http.Request) {
	form, ok := readForm(w, r)
	if !ok {
		return
	}
	if form.Get("client_id") != p.options.ClientID {
		refuseGrant(w, r, "invalid_client")
		return
	}
	var email, nonce, refusal string
	switch form.Get("grant_type") {
	case grantCode:
		email, nonce, refusal = p.people.redeem(form)
	case grantDevice:
		email, refusal = p.people.poll(form.Get("device_code"))
	default:
		refusal = "unsupported_grant_type"
	}
	if refusal != "" {
		refuseGrant(w, r, refusal)
		return
	}
	p.answerToken(w, r, email, nonce)
}

// redeem uses up a code, even if the request fails.
func (s *people) redeem(form url.Values) (email, nonce, refusal string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	code := form.Get("code")
	a, ok := s.codes[code]
	delete(s.codes, code)
	sum := sha256.Sum256([]byte(form.Get("code_verifier")))
	challenge := base64.RawURLEncoding.EncodeToString(sum[:])
	if !ok || time.Now().After(a.expires) || a.redirect != form.Get("redirect_uri") ||
		subtle.ConstantTimeCompare([]byte(challenge), []byte(a.challenge)) != 1 {
		return "", "", "invalid_grant"
	}
	return a.email, a.nonce, ""
}

func (p *Provider) answerToken(w http.ResponseWriter, r *http.Request, email, nonce string) {
	overrides := map[string]any{}
	if email != "" {
		overrides["email"] = email
	}
	if nonce != "" {
		overrides["nonce"] = nonce
	}
	claims := p.Claims(overrides)
	payload, err := encode(claims)
	if err == nil {
		var token string
		if token, err = p.Sign(payload, nil); err == nil {
			secret := rand.Text()
			p.people.put(func(s *people) { s.access[secret] = access{claims: claims, expires: time.Now().Add(accessLife)} })
			p.currentFaults().Token.answerJSON(w, r, map[string]any{
				"access_token": secret, "token_type": "Bearer", "expires_in": int(accessLife / time.Second), "id_token": token,
			})
			return
		}
	}
	http.Error(w, err.Error(), http.StatusInternalServerError)
}

func (p *Provider) serveUserInfo(w http.ResponseWriter, r *http.Request) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	p.people.mu.Lock()
	a, ok := p.people.access[token]
	p.people.mu.Unlock()
	if !strings.EqualFold(scheme, "bearer") || !ok || time.Now().After(a.expires) {
		w.Header().Set("WWW-Authenticate", "Bearer")
		http.Error(w, "unauthorized", http.StatusUnauthorized)
		return
	}
	out := map[string]any{}
	for _, name := range []string{"sub", "email", "email_verified", "name"} {
		if v, ok := a.claims[name]; ok {
			out[name] = v
		}
	}
	Fault{}.answerJSON(w, r, out)
}
