package idtokentest_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/oauth2"

	"github.com/mayfly-ca/mayfly/issuer/idtokentest"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

const audience = "mayfly:ci.example.com"

type claims = map[string]any

func start(t *testing.T, o idtokentest.Options) *idtokentest.Provider {
	t.Helper()
	p, err := idtokentest.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// payload returns a token's claims without verifying it.
func payload(t *testing.T, token string) claims {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("no token: %q", token)
	}
	data, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var out claims
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// verify checks a token with the issuer's own rules for the type.
func verify(t *testing.T, p *idtokentest.Provider, typ idtoken.Type, token string) idtoken.Claims {
	t.Helper()
	trusted := idtoken.Provider{Name: "p", Type: typ, Issuer: p.URL(), UnsafeHTTP: true}
	if typ == idtoken.People {
		trusted.ClientID = p.ClientID()
	}
	v, err := idtoken.NewVerifier([]idtoken.Provider{trusted}, idtoken.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	c, err := v.Verify(t.Context(), token, audience)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// do sends a request and returns its response and body. It follows no redirects.
func do(t *testing.T, req *http.Request) (*http.Response, string) {
	t.Helper()
	client := &http.Client{Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func request(t *testing.T, method, to, body string, header ...string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, to, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return req
}

func form(t *testing.T, to string, values url.Values) (*http.Response, string) {
	t.Helper()
	return do(t, request(t, "POST", to, values.Encode(), "Content-Type", "application/x-www-form-urlencoded"))
}

func TestRunner(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"", "/enterprise"} {
		p := start(t, idtokentest.Options{Type: idtoken.GitHub, Path: path, Defaults: claims{"repository": "octo/app"}})
		to := p.TokenRequestURL()
		if u, err := url.Parse(to); err != nil || u.Query().Get("api-version") != "2.0" {
			t.Fatalf("%s has no query of its own", to)
		}
		bearer := "bearer " + p.TokenRequestToken()
		resp, body := do(t, request(t, "GET", to+"&audience="+url.QueryEscape(audience), "", "Authorization", bearer))
		var answer struct {
			Count int64
			Value string
		}
		if err := json.Unmarshal([]byte(body), &answer); err != nil || resp.StatusCode != 200 || answer.Count == 0 {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
		c := verify(t, p, idtoken.GitHub, answer.Value)
		got, _ := c.String("job_workflow_ref")
		if got != "octo/app/.github/workflows/ci.yml@refs/heads/main" || c.Issuer() != p.URL() || !strings.HasSuffix(p.URL(), path) {
			t.Errorf("job_workflow_ref %s, issuer %s", got, c.Issuer())
		}
		for name, v := range payload(t, answer.Value) {
			if _, ok := v.(string); !ok && name != "iat" && name != "nbf" && name != "exp" {
				t.Errorf("%s is %T, GitHub's are strings", name, v)
			}
		}
		_, body = do(t, request(t, "GET", to, "", "Authorization", "Bearer "+p.TokenRequestToken()))
		_ = json.Unmarshal([]byte(body), &answer)
		if aud := payload(t, answer.Value)["aud"]; aud != "https://github.com/octo" {
			t.Errorf("the default audience is %v", aud)
		}
		for name, req := range map[string]*http.Request{
			"401 without a token":   request(t, "GET", to, ""),
			"401 another token":     request(t, "GET", to, "", "Authorization", "bearer x"),
			"401 another job":       request(t, "GET", strings.Replace(to, "/runner/1/", "/runner/2/", 1), "", "Authorization", bearer),
			"400 the query is lost": request(t, "GET", strings.Replace(to, "?api-version=2.0", "?audience=x", 1), "", "Authorization", bearer),
			"405 by POST":           request(t, "POST", to, "{}", "Authorization", bearer),
		} {
			if resp, _ := do(t, req); resp.StatusCode != map[byte]int{'1': 401, '0': 400, '5': 405}[name[2]] {
				t.Errorf("%s: %d", name, resp.StatusCode)
			}
		}
		job := p.NewJob(claims{"run_id": "77"})
		_, body = do(t, request(t, "GET", job.RequestURL, "", "Authorization", "bearer "+job.RequestToken))
		_ = json.Unmarshal([]byte(body), &answer)
		if run := payload(t, answer.Value)["run_id"]; run != "77" {
			t.Errorf("the second job's run_id is %v", run)
		}
	}
}

func TestFlySocket(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.Fly})
	if !strings.HasSuffix(p.URL(), "/example-org") {
		t.Errorf("the issuer is %s", p.URL())
	}
	path := filepath.Join(t.TempDir(), "api")
	s, err := p.ServeFlySocket(path, claims{"machine_id": "0123456789abcd"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	post := func(body string) (int, string) {
		resp, err := client.Post("http://localhost/v1/tokens/oidc", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(data)
	}
	status, token := post(`{"aud":"` + audience + `"}`)
	if status != 200 {
		t.Fatalf("%d %s", status, token)
	}
	c := verify(t, p, idtoken.Fly, token)
	machine, _ := c.String("machine_id")
	if machine != "0123456789abcd" || c.Subject() != "example-org:example-app:example-machine" || c.ExpiresAt().Sub(c.IssuedAt()) != 10*time.Minute {
		t.Errorf("machine %s, sub %s, lives %v", machine, c.Subject(), c.ExpiresAt().Sub(c.IssuedAt()))
	}
	if _, token := post(``); payload(t, token)["aud"] != "https://fly.io/example-org" {
		t.Errorf("the default audience is %v", payload(t, token)["aud"])
	}
	for _, body := range []string{`{"aud":["a"]}`, `{"aud":1}`, `{"org_id":"x"}`, `[]`, `x`, `null`} {
		if status, _ := post(body); status != 400 {
			t.Errorf("%s: %d", body, status)
		}
	}
}

func TestMint(t *testing.T) {
	t.Parallel()
	for _, typ := range []idtoken.Type{idtoken.GitHub, idtoken.Fly, idtoken.OIDC, idtoken.People} {
		p := start(t, idtokentest.Options{Type: typ, Path: "/a/b"})
		to := p.URL() + "/mint"
		resp, body := do(t, request(t, "POST", to, `{"sub":"me","jti":null,"extra":12345678901234567890,"list":[1]}`, "Content-Type", "application/json; charset=utf-8"))
		if resp.StatusCode != 200 {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
		got := payload(t, body)
		if _, ok := got["jti"]; ok || got["sub"] != "me" || got["iss"] != p.URL() {
			t.Errorf("%s: %v", typ, got)
		}
		if !bytes.Contains([]byte(mustDecode(t, body)), []byte("12345678901234567890")) {
			t.Error("a number lost digits")
		}
		if resp, body := do(t, request(t, "POST", to, "", "Content-Type", "application/json")); resp.StatusCode != 200 || strings.Count(body, ".") != 2 {
			t.Errorf("without overrides: %d", resp.StatusCode)
		}
		foreign := request(t, "POST", to, "{}", "Content-Type", "application/json")
		foreign.Host = "attacker.example"
		otherPort := request(t, "POST", to, "{}", "Content-Type", "application/json")
		otherPort.Host = "127.0.0.1:1"
		localhost := request(t, "POST", to, "{}", "Content-Type", "application/json")
		localhost.Host = strings.Replace(p.Addr(), "127.0.0.1", "localhost", 1)
		for _, tc := range []struct {
			name string
			req  *http.Request
			want int
		}{
			{"a form", request(t, "POST", to, "{}", "Content-Type", "application/x-www-form-urlencoded"), 415},
			{"plain text", request(t, "POST", to, "{}", "Content-Type", "text/plain"), 415},
			{"no type", request(t, "POST", to, "{}"), 415},
			{"a web page", request(t, "POST", to, "{}", "Content-Type", "application/json", "Origin", "http://attacker.example"), 403},
			{"a page of its own", request(t, "POST", to, "{}", "Content-Type", "application/json", "Origin", p.URL()), 403},
			{"a null origin", request(t, "POST", to, "{}", "Content-Type", "application/json", "Origin", "null"), 403},
			{"a foreign host", foreign, 421},
			{"another port", otherPort, 421},
			{"localhost", localhost, 200},
			{"by GET", request(t, "GET", to, ""), 405},
			{"a list", request(t, "POST", to, "[]", "Content-Type", "application/json"), 400},
			{"two values", request(t, "POST", to, "{}{}", "Content-Type", "application/json"), 400},
			{"too large", request(t, "POST", to, `{"x":"`+strings.Repeat("x", 70<<10)+`"}`, "Content-Type", "application/json"), 400},
		} {
			if resp, _ := do(t, tc.req); resp.StatusCode != tc.want {
				t.Errorf("%s: %d, want %d", tc.name, resp.StatusCode, tc.want)
			}
		}
	}
}

func mustDecode(t *testing.T, token string) string {
	t.Helper()
	data, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.GitHub, Defaults: claims{"ref": "refs/tags/v1", "actor": nil}})
	first := p.Claims(nil)
	if _, ok := first["actor"]; ok || first["ref_type"] != "tag" || first["sub"] != "repo:andreaso@285964/actions-tester@1339936803:ref:refs/tags/v1" {
		t.Errorf("%v", first)
	}
	p.SetDefaults(claims{"environment": "production", "repository_id": "7"})
	got := p.Claims(claims{"event_name": "pull_request"})
	if got["ref"] != "refs/tags/v1" || got["sub"] != "repo:andreaso@285964/actions-tester@7:environment:production" {
		t.Errorf("%v", got)
	}
	if diff := cmp.Diff(int64(300), got["exp"].(int64)-got["iat"].(int64)); diff != "" {
		t.Error(diff)
	}
	if got := p.Claims(claims{"iat": 1000}); got["exp"] != int64(1300) || got["nbf"] != int64(700) {
		t.Errorf("exp %v and nbf %v do not follow iat", got["exp"], got["nbf"])
	}
}

func TestLoopbackOnly(t *testing.T) {
	t.Parallel()
	for _, o := range []idtokentest.Options{
		{Type: idtoken.GitHub, Listen: "0.0.0.0:0"},
		{Type: "saml"},
		{Type: idtoken.OIDC, Path: "no-slash"},
		{Type: idtoken.OIDC, Algorithm: "HS256"},
	} {
		if p, err := idtokentest.New(o); err == nil {
			p.Close()
			t.Errorf("%+v was accepted", o)
		}
	}
}

// login fills in the authorize page's form, as a browser would.
func login(t *testing.T, page, email, answer string) *url.URL {
	t.Helper()
	resp, html := do(t, request(t, "GET", page, ""))
	if resp.StatusCode != 200 || !strings.Contains(resp.Header.Get("Content-Security-Policy"), "frame-ancestors 'none'") {
		t.Fatalf("%d %s", resp.StatusCode, html)
	}
	values := url.Values{}
	for _, m := range regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)">`).FindAllStringSubmatch(html, -1) {
		values.Set(m[1], unescape(m[2]))
	}
	values.Set("email", email)
	values.Set("answer", answer)
	action := regexp.MustCompile(`action="([^"]*)"`).FindStringSubmatch(html)
	u, err := url.Parse(page)
	if err != nil || action == nil {
		t.Fatalf("no form: %v", err)
	}
	resp, html = form(t, u.Scheme+"://"+u.Host+action[1], values)
	if resp.StatusCode != http.StatusSeeOther {
		t.Fatalf("%d %s", resp.StatusCode, html)
	}
	back, err := resp.Location()
	if err != nil {
		t.Fatal(err)
	}
	return back
}

func unescape(s string) string {
	return strings.NewReplacer("&amp;", "&", "&#43;", "+", "&#34;", `"`, "&#39;", "'").Replace(s)
}

func oauth(p *idtokentest.Provider) *oauth2.Config {
	return &oauth2.Config{
		ClientID: p.ClientID(), RedirectURL: "http://127.0.0.1:9/callback?x=1", Scopes: []string{"openid", "email"},
		Endpoint: oauth2.Endpoint{
			AuthURL: p.URL() + "/authorize", TokenURL: p.URL() + "/token", DeviceAuthURL: p.URL() + "/device/code",
			AuthStyle: oauth2.AuthStyleInParams,
		},
	}
}

func TestCodeFlow(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.People, Path: "/realm"})
	conf, verifier := oauth(p), oauth2.GenerateVerifier()
	page := conf.AuthCodeURL("state+&\"", oauth2.S256ChallengeOption(verifier), oauth2.SetAuthURLParam("nonce", "n-1"))
	back := login(t, page, "dev@example.com", "allow")
	q := back.Query()
	if q.Get("state") != "state+&\"" || q.Get("iss") != p.URL() || q.Get("x") != "1" || back.Host != "127.0.0.1:9" {
		t.Errorf("returned to %s", back)
	}
	tok, err := conf.Exchange(t.Context(), q.Get("code"), oauth2.VerifierOption(verifier))
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := tok.Extra("id_token").(string)
	c := verify(t, p, idtoken.People, raw)
	email, _ := c.String("email")
	nonce, _ := c.String("nonce")
	if email != "dev@example.com" || nonce != "n-1" || c.Audience() != "mayfly" {
		t.Errorf("email %s, nonce %s, audience %s", email, nonce, c.Audience())
	}
	resp, body := do(t, request(t, "GET", p.URL()+"/userinfo", "", "Authorization", "Bearer "+tok.AccessToken))
	if resp.StatusCode != 200 || !strings.Contains(body, "dev@example.com") {
		t.Errorf("userinfo: %d %s", resp.StatusCode, body)
	}
	if resp, _ := do(t, request(t, "GET", p.URL()+"/userinfo", "", "Authorization", "Bearer x")); resp.StatusCode != 401 {
		t.Errorf("userinfo for anybody: %d", resp.StatusCode)
	}
	if _, err := conf.Exchange(t.Context(), q.Get("code"), oauth2.VerifierOption(verifier)); err == nil {
		t.Error("a code was used twice")
	}
	if back := login(t, page, "dev@example.com", "deny"); back.Query().Get("error") != "access_denied" || back.Query().Get("code") != "" {
		t.Errorf("denied: %s", back)
	}
}

func TestCodeFlowRefusals(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.People, RedirectURIs: []string{"https://ca.example.com/callback"}})
	conf, verifier := oauth(p), oauth2.GenerateVerifier()
	good := func() string {
		return login(t, conf.AuthCodeURL("s", oauth2.S256ChallengeOption(verifier)), "a@example.com", "allow").Query().Get("code")
	}
	if _, err := conf.Exchange(t.Context(), good(), oauth2.VerifierOption(oauth2.GenerateVerifier())); err == nil {
		t.Error("another verifier was accepted")
	}
	if _, err := conf.Exchange(t.Context(), good()); err == nil {
		t.Error("no verifier was accepted")
	}
	elsewhere := *conf
	elsewhere.RedirectURL = "http://127.0.0.1:10/callback"
	if _, err := elsewhere.Exchange(t.Context(), good(), oauth2.VerifierOption(verifier)); err == nil {
		t.Error("another redirect was accepted")
	}
	other := *conf
	other.ClientID = "other"
	if _, err := other.Exchange(t.Context(), good(), oauth2.VerifierOption(verifier)); err == nil {
		t.Error("another client was accepted")
	}
	configured := *conf
	configured.RedirectURL = "https://ca.example.com/callback"
	if back := login(t, configured.AuthCodeURL("s", oauth2.S256ChallengeOption(verifier)), "a@example.com", "allow"); back.Host != "ca.example.com" {
		t.Errorf("returned to %s", back)
	}
	for name, tc := range map[string]struct {
		url  string
		want string // error sent to the client; "" is shown to the person
	}{
		"another client":     {other.AuthCodeURL("s", oauth2.S256ChallengeOption(verifier)), ""},
		"a foreign redirect": {strings.Replace(conf.AuthCodeURL("s", oauth2.S256ChallengeOption(verifier)), "127.0.0.1%3A9", "attacker.example", 1), ""},
		"no PKCE":            {conf.AuthCodeURL("s"), "invalid_request"},
		"plain PKCE":         {conf.AuthCodeURL("s", oauth2.SetAuthURLParam("code_challenge", verifier), oauth2.SetAuthURLParam("code_challenge_method", "plain")), "invalid_request"},
		"implicit":           {strings.Replace(conf.AuthCodeURL("s"), "response_type=code", "response_type=id_token", 1), "unsupported_response_type"},
		"no openid":          {strings.Replace(conf.AuthCodeURL("s"), "openid", "profile", 1), "invalid_scope"},
	} {
		resp, _ := do(t, request(t, "GET", tc.url, ""))
		if tc.want == "" {
			if resp.StatusCode != 400 || resp.Header.Get("Location") != "" {
				t.Errorf("%s: %d", name, resp.StatusCode)
			}
			continue
		}
		back, err := resp.Location()
		if err != nil || back.Query().Get("error") != tc.want || back.Query().Get("state") != "s" {
			t.Errorf("%s: %v, %v", name, back, err)
		}
	}
}

func TestDeviceFlow(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.People})
	conf := oauth(p)
	ask := func() *oauth2.DeviceAuthResponse {
		d, err := conf.DeviceAuth(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	poll := func(code string) string {
		_, body := form(t, p.URL()+"/token", url.Values{
			"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "device_code": {code}, "client_id": {p.ClientID()},
		})
		return body
	}
	d := ask()
	if body := poll(d.DeviceCode); !strings.Contains(body, "authorization_pending") {
		t.Errorf("before the person: %s", body)
	}
	if body := poll(d.DeviceCode); !strings.Contains(body, "slow_down") {
		t.Errorf("at once again: %s", body)
	}
	resp, html := do(t, request(t, "GET", d.VerificationURIComplete, ""))
	if resp.StatusCode != 200 || !strings.Contains(html, `value="`+d.UserCode+`"`) {
		t.Errorf("%d %s", resp.StatusCode, html)
	}
	if resp, _ := form(t, d.VerificationURI, url.Values{"user_code": {"XXXX-XXXX"}}); resp.StatusCode != 404 {
		t.Errorf("a code that nobody has: %d", resp.StatusCode)
	}
	answer := url.Values{"user_code": {strings.ToLower(d.UserCode)}, "email": {"dev@example.com"}, "answer": {"allow"}}
	if resp, body := form(t, d.VerificationURI, answer); resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	if resp, _ := form(t, d.VerificationURI, answer); resp.StatusCode != 404 {
		t.Errorf("a code used twice: %d", resp.StatusCode)
	}
	tok, err := conf.DeviceAccessToken(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := tok.Extra("id_token").(string)
	if email, _ := verify(t, p, idtoken.People, raw).String("email"); email != "dev@example.com" {
		t.Errorf("email %s", email)
	}
	if body := poll(d.DeviceCode); !strings.Contains(body, "invalid_grant") {
		t.Errorf("after the token: %s", body)
	}
	d = ask()
	form(t, d.VerificationURI, url.Values{"user_code": {d.UserCode}, "answer": {"deny"}})
	if body := poll(d.DeviceCode); !strings.Contains(body, "access_denied") {
		t.Errorf("denied: %s", body)
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.GitHub})
	p.SetFaults(idtokentest.Faults{Token: idtokentest.Fault{Status: 403, Body: "Pending"}})
	req := func() *http.Request {
		return request(t, "GET", p.TokenRequestURL(), "", "Authorization", "bearer "+p.TokenRequestToken())
	}
	if resp, body := do(t, req()); resp.StatusCode != 403 || body != "Pending" {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	p.SetFaults(idtokentest.Faults{})
	if resp, _ := do(t, req()); resp.StatusCode != 200 {
		t.Errorf("%d", resp.StatusCode)
	}
	discovery, keys := p.Fetches()
	if discovery != 0 || keys != 0 {
		t.Errorf("%d, %d fetches", discovery, keys)
	}
}
