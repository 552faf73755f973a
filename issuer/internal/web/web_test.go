package web_test

import (
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// browser is an HTTP client with cookies that does not follow redirects.
type browser struct {
	t testing.TB
	i *issuertest.Issuer
	*http.Client
}

func newBrowser(t testing.TB, i *issuertest.Issuer) *browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &browser{t, i, &http.Client{Transport: i.Client().Transport, Jar: jar, Timeout: 30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

func (b *browser) do(req *http.Request) (*http.Response, string) {
	b.t.Helper()
	resp, err := b.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp, string(body)
}

func (b *browser) absolute(path string) string {
	if strings.HasPrefix(path, "/") {
		return b.i.URL + path
	}
	return path
}

func (b *browser) get(path string) (*http.Response, string) {
	b.t.Helper()
	req, err := http.NewRequest(http.MethodGet, b.absolute(path), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.do(req)
}

// post sends a form as a page of the issuer does. headers adds or replaces headers.
func (b *browser) post(path string, form url.Values, headers ...string) (*http.Response, string) {
	b.t.Helper()
	req, err := http.NewRequest(http.MethodPost, b.absolute(path), strings.NewReader(form.Encode()))
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Origin", b.i.URL)
	for n := 0; n < len(headers); n += 2 {
		req.Header.Set(headers[n], headers[n+1])
	}
	return b.do(req)
}

// answer logs in as email at the provider and returns the URL to return to.
func (b *browser) answer(email string) string {
	b.t.Helper()
	resp, _ := b.get("/login/staff")
	to, err := resp.Location()
	if err != nil {
		b.t.Fatalf("login begins with %s: %v", resp.Status, err)
	}
	form := to.Query()
	if form.Get("code_challenge_method") != "S256" || form.Get("nonce") == "" || form.Get("state") == "" {
		b.t.Errorf("authorization request %v", form)
	}
	form.Set("email", email)
	to.RawQuery = ""
	resp, _ = b.post(to.String(), form, "Origin", b.i.Staff.URL())
	back, err := resp.Location()
	if err != nil {
		b.t.Fatalf("the provider answers %s: %v", resp.Status, err)
	}
	return back.String()
}

func (b *browser) login(email string) (*http.Response, string) {
	b.t.Helper()
	return b.get(b.answer(email))
}

func loggedIn(t testing.TB, i *issuertest.Issuer, email string) *browser {
	t.Helper()
	b := newBrowser(t, i)
	if resp, body := b.login(email); resp.StatusCode != http.StatusSeeOther || resp.Header.Get("Location") != "/" {
		t.Fatalf("login: %s\n%s", resp.Status, body)
	}
	return b
}

func wantStatus(t *testing.T, what string, resp *http.Response, body string, want int) {
	t.Helper()
	if resp.StatusCode != want {
		t.Errorf("%s: %s, want %d\n%s", what, resp.Status, want, body)
	}
}

func events(t *testing.T, i *issuertest.Issuer, kind string) []wire.Event {
	t.Helper()
	var list wire.List[wire.Event]
	if err := i.Call("GET", wire.PathEvents+"?type="+kind, i.ViewerToken(), nil, &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func TestLogin(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	b := newBrowser(t, i)
	resp, body := b.get("/")
	wantStatus(t, "nobody", resp, body, http.StatusSeeOther)

	resp, body = b.login(issuertest.Admin)
	wantStatus(t, "callback", resp, body, http.StatusSeeOther)
	var found bool
	for _, c := range resp.Cookies() {
		if c.Name == "__Host-mayfly" {
			found = true
			if !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.Domain != "" || c.MaxAge != 8*3600 {
				t.Errorf("cookie %+v", c)
			}
		}
	}
	if !found {
		t.Error("no login cookie")
	}
	for _, path := range []string{"/", "/certificates", "/sessions", "/events", "/blocks", "/policy"} {
		resp, body := b.get(path)
		wantStatus(t, path, resp, body, http.StatusOK)
		want := "default-src 'none'; style-src 'self'; img-src 'self'; script-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
		if got := resp.Header.Get("Content-Security-Policy"); got != want {
			t.Errorf("%s: CSP %q", path, got)
		}
		if strings.Contains(body, "style=") || strings.Contains(body, "<style") || strings.Contains(body, " onclick") {
			t.Errorf("%s has something inline", path)
		}
	}
	if evs := events(t, i, "login"); len(evs) != 1 || evs[0].By != "staff/"+issuertest.Admin {
		t.Errorf("events %+v", evs)
	}
	// After the logout, the issuer refuses the secret; the browser has also dropped
	// it.
	u, _ := url.Parse(i.URL)
	kept := b.Jar.Cookies(u)
	resp, body = b.post("/logout", nil)
	wantStatus(t, "logout", resp, body, http.StatusSeeOther)
	b.Jar.SetCookies(u, kept)
	resp, body = b.get("/")
	wantStatus(t, "after logout", resp, body, http.StatusSeeOther)
}

// TestLoginIsBound checks that the response to a login works once, unchanged, and only
// in the browser that began the login.
func TestLoginIsBound(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	back := newBrowser(t, i).answer(issuertest.Admin)
	resp, body := newBrowser(t, i).get(back)
	wantStatus(t, "another browser", resp, body, http.StatusBadRequest)

	b := newBrowser(t, i)
	theirs := b.answer(issuertest.Admin)
	resp, body = b.get(back)
	wantStatus(t, "another login's answer", resp, body, http.StatusBadRequest)
	u, err := url.Parse(theirs)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("iss", "https://evil.example")
	u.RawQuery = q.Encode()
	resp, body = b.get(u.String())
	wantStatus(t, "another provider's answer", resp, body, http.StatusBadRequest)

	// A code of one login with the state of another: PKCE and nonce refuse it.
	stolen := mustQuery(t, newBrowser(t, i).answer(issuertest.Admin)).Get("code")
	mine, err := url.Parse(b.answer(issuertest.Viewer))
	if err != nil {
		t.Fatal(err)
	}
	q = mine.Query()
	q.Set("code", stolen)
	mine.RawQuery = q.Encode()
	resp, body = b.get(mine.String())
	wantStatus(t, "another login's code", resp, body, http.StatusBadGateway)

	good := b.answer(issuertest.Admin)
	resp, body = b.get(good)
	wantStatus(t, "the same browser", resp, body, http.StatusSeeOther)
	resp, body = b.get(good)
	wantStatus(t, "twice", resp, body, http.StatusBadRequest)
}

func mustQuery(t *testing.T, raw string) url.Values {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u.Query()
}

func TestRoles(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	issued, err := i.Issue(i.GitHubToken(nil))
	if err != nil {
		t.Fatal(err)
	}
	resp, body := newBrowser(t, i).login("eve@example.com")
	wantStatus(t, "a stranger logs in", resp, body, http.StatusForbidden)

	order := url.Values{"serial": {issued.Serial}, "reason": {"test"}, "block": {"none"}, "confirm": {"yes"}}
	resp, body = newBrowser(t, i).post("/revocations", order)
	wantStatus(t, "nobody revokes", resp, body, http.StatusUnauthorized)

	viewer, admin := loggedIn(t, i, issuertest.Viewer), loggedIn(t, i, issuertest.Admin)
	resp, body = viewer.get("/certificates/" + issued.Serial)
	wantStatus(t, "viewer looks", resp, body, http.StatusOK)
	if strings.Contains(body, `"/revocations`) {
		t.Error("a viewer is offered to revoke")
	}
	if !strings.Contains(body, "What was signed") || strings.Contains(body, "BEGIN CERTIFICATE") {
		t.Error("the page does not show what was signed, or shows a certificate that nothing signed again")
	}
	before := len(events(t, i, "forbidden"))
	for path, form := range map[string]url.Values{"/revocations": order, "/blocks/remove": {"id": {strings.Repeat("a", 32)}}} {
		resp, body = viewer.post(path, form)
		wantStatus(t, "viewer posts "+path, resp, body, http.StatusForbidden)
	}
	if got := len(events(t, i, "forbidden")) - before; got != 2 {
		t.Errorf("%d events of the viewer's attempts, want 2", got)
	}
	resp, body = viewer.post("/policy", url.Values{"provider": {"github"}, "claims": {`{"repository_id":"1"}`}})
	wantStatus(t, "viewer explains", resp, body, http.StatusOK)

	order.Del("confirm")
	resp, body = admin.post("/revocations", order)
	wantStatus(t, "admin asks", resp, body, http.StatusOK)
	if !strings.Contains(body, "1 certificate<") || !strings.Contains(body, "0 live connections<") {
		t.Errorf("the question does not say what it touches:\n%s", body)
	}
	var d wire.CertificateDetail
	if err := i.Call("GET", wire.PathCertificates+"/"+issued.Serial, i.ViewerToken(), nil, &d); err != nil || d.Status != wire.StatusValid {
		t.Fatalf("asking has revoked: %s %v", d.Status, err)
	}
	order.Set("confirm", "yes")
	resp, body = admin.post("/revocations", order)
	wantStatus(t, "admin revokes", resp, body, http.StatusOK)
	if err := i.Call("GET", wire.PathCertificates+"/"+issued.Serial, i.ViewerToken(), nil, &d); err != nil || d.Status != wire.StatusRevoked {
		t.Errorf("not revoked: %s %v", d.Status, err)
	}
	if strings.Contains(body, "engines lose") {
		t.Errorf("a job's certificate concerns an engine:\n%s", body)
	}
}

// TestRevokeOfAnEngine checks that the question about an engine's own certificate says
// what the engine loses.
func TestRevokeOfAnEngine(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	issued, err := i.Issue(i.FlyToken(nil))
	if err != nil {
		t.Fatal(err)
	}
	admin := loggedIn(t, i, issuertest.Admin)
	_, body := admin.get("/revocations?serial=" + issued.Serial)
	for _, want := range []string{"engines lose their own certificates and admit no build until the block ends", "engines lose their own certificates and get others at once", issued.Identity} {
		if !strings.Contains(body, want) {
			t.Errorf("the question lacks %q:\n%s", want, body)
		}
	}
	_, body = admin.post("/revocations", url.Values{"serial": {issued.Serial}, "reason": {"a test"}, "block": {"24h"}, "confirm": {"yes"}})
	if !strings.Contains(body, "admit no build until the block ends") {
		t.Errorf("the answer does not say it:\n%s", body)
	}
}

// TestCrossOrigin sends forged requests (ATTACKS), each next to its allowed twin.
func TestCrossOrigin(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	b := loggedIn(t, i, issuertest.Admin)
	form := url.Values{"provider": {"github"}, "claims": {"{}"}}
	for name, c := range map[string]struct {
		headers []string
		want    int
	}{
		"own origin":     {nil, http.StatusOK},
		"same-origin":    {[]string{"Sec-Fetch-Site", "same-origin"}, http.StatusOK},
		"another origin": {[]string{"Origin", "https://evil.example"}, http.StatusForbidden},
		"null origin":    {[]string{"Origin", "null"}, http.StatusForbidden},
		"cross-site":     {[]string{"Sec-Fetch-Site", "cross-site"}, http.StatusForbidden},
		"same-site":      {[]string{"Sec-Fetch-Site", "same-site"}, http.StatusForbidden},
	} {
		resp, body := b.post("/policy", form, c.headers...)
		wantStatus(t, name, resp, body, c.want)
	}
	req, err := http.NewRequest(http.MethodGet, i.URL+"/login", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "evil.example"
	resp, body := b.do(req)
	wantStatus(t, "another host", resp, body, http.StatusMisdirectedRequest)
}

// TestRoleIsDecidedAnew checks that each request asks the policy: a person who loses
// the role has no access at once.
func TestRoleIsDecidedAnew(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	if _, err := i.Issue(i.GitHubToken(map[string]any{"ref": "refs/heads/evil"})); err == nil {
		t.Fatal("another branch got a certificate")
	}
	b := loggedIn(t, i, issuertest.Admin)
	if _, body := b.get("/"); !strings.Contains(body, `<a href="/events?type=denied">1</a>`) {
		t.Errorf("the overview does not count the denial:\n%s", body)
	}
	resp, body := b.get("/blocks")
	wantStatus(t, "before", resp, body, http.StatusOK)
	rewrite(t, i, issuertest.Admin, "other@example.com")
	resp, body = b.get("/blocks")
	wantStatus(t, "after", resp, body, http.StatusForbidden)
}

// TestHostileClaims checks claims that strangers choose.
func TestHostileClaims(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	hostile := "<script>alert(1)</script>\"'><img src=x onerror=y>\u202e\x1b[31m\r\nevil"
	issued, err := i.Issue(i.GitHubToken(map[string]any{"actor": hostile, "head_ref": hostile}))
	if err != nil {
		t.Fatal(err)
	}
	b := loggedIn(t, i, issuertest.Admin)
	for _, path := range []string{"/certificates", "/certificates/" + issued.Serial, "/events", "/certificates?repository=" + url.QueryEscape(hostile)} {
		resp, body := b.get(path)
		wantStatus(t, path, resp, body, http.StatusOK)
		for _, bad := range []string{"<script>alert", "<img src=x", "\u202e", "\x1b", "\r"} {
			if strings.Contains(body, bad) {
				t.Errorf("%s shows %q as it is", path, bad)
			}
		}
	}
	if _, body := b.get("/certificates"); !strings.Contains(body, `\u202e`) || !strings.Contains(body, `\u001b`) {
		t.Error("what is hidden is not made visible")
	}
}

// TestMissing checks an unknown path: a browser gets a page, and a program that asks
// for JSON or calls the API gets a problem.
func TestMissing(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	const browsers = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
	for _, c := range []struct {
		path, accept string
		page         bool
	}{
		{"/nothing", browsers, true},
		{"/nothing", "*/*", true},
		{"/nothing", "", true},
		{"/nothing", "application/json", false},
		{"/nothing", wire.ProblemMediaType, false},
		{"/login/a/b", browsers, true},
		{"/v1/nothing", browsers, true},
		{"/v1/nothing", "*/*", false},
		{"/v1/nothing", "", false},
		{"/v2/certificates", "application/json", false},
		{"/1.0/nothing", "", false},
		{"/very/deep", "", true},
	} {
		req, err := http.NewRequest(http.MethodGet, i.URL+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.accept != "" {
			req.Header.Set("Accept", c.accept)
		}
		resp, body := newBrowser(t, i).do(req)
		wantStatus(t, c.path+" "+c.accept, resp, body, http.StatusNotFound)
		want := wire.ProblemMediaType
		if c.page {
			want = "text/html; charset=utf-8"
		}
		if got := resp.Header.Get("Content-Type"); got != want {
			t.Errorf("%s for %q: %s, want %s", c.path, c.accept, got, want)
		}
		if c.page != strings.Contains(body, "There is no page at this address.") {
			t.Errorf("%s for %q:\n%s", c.path, c.accept, body)
		}
		if c.page && resp.Header.Get("Content-Security-Policy") == "" {
			t.Errorf("%s: no policy", c.path)
		}
	}
	if _, body := loggedIn(t, i, issuertest.Viewer).get("/nothing"); !strings.Contains(body, `<a href="/certificates"`) || !strings.Contains(body, "There is no page") {
		t.Errorf("who is logged in is not shown the pages:\n%s", body)
	}
	resp, body := newBrowser(t, i).post("/nothing", nil)
	wantStatus(t, "a program that sends something", resp, body, http.StatusNotFound)
	resp, body = newBrowser(t, i).post("/nothing", nil, "Accept", browsers)
	wantStatus(t, "a form", resp, body, http.StatusMethodNotAllowed)
}

// TestSpans checks that each list can be limited to a span of time, which stays the
// same from page to page.
func TestSpans(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	const pages = 60 // more than one page
	for range pages {
		if _, err := i.Issue(i.GitHubToken(nil)); err != nil {
			t.Fatal(err)
		}
	}
	b := loggedIn(t, i, issuertest.Viewer)
	now := time.Now().UTC()
	at := func(d time.Duration) string { return url.QueryEscape(now.Add(d).Format("2006-01-02T15:04")) }
	for query, want := range map[string]int{
		"":                                 pages,
		"?time=":                           pages,
		"?time=hour":                       pages,
		"?time=day&repository=":            pages,
		"?time=week&from=&to=":             pages,
		"?time=hour&from=" + at(time.Hour): pages, // fields that the form hides do not count
		"?time=&from=" + at(time.Hour):     pages,
		"?time=between":                    pages,
		"?time=between&from=" + at(-time.Hour) + "&to=" + at(time.Hour): pages,
		"?from=" + at(-time.Hour):                        pages,
		"?time=between&from=" + at(time.Hour):            0,
		"?time=between&to=" + at(-time.Hour):             0,
		"?to=" + at(-time.Hour):                          0,
		"?time=between&from=" + at(-time.Hour) + "%3A30": pages,
	} {
		found, path := 0, "/certificates"+query
		for path != "" {
			resp, body := b.get(path)
			wantStatus(t, path, resp, body, http.StatusOK)
			found += strings.Count(body, `<a class="serial"`)
			_, rest, more := strings.Cut(body, `rel="next" href="`)
			path = ""
			if more {
				path, _, _ = strings.Cut(rest, `"`)
				path = strings.ReplaceAll(path, "&amp;", "&")
			}
		}
		if found != want {
			t.Errorf("%s: %d certificates, want %d", query, found, want)
		}
	}
	// A revocation of all matches would revoke more than the span.
	admin := loggedIn(t, i, issuertest.Admin)
	for query, want := range map[string]bool{"": true, "&time=": true, "&time=day": false, "&from=" + at(-time.Hour): false} {
		if _, body := admin.get("/certificates?repository=andreaso%2Factions-tester" + query); strings.Contains(body, `id="revoke-all"`) != want {
			t.Errorf("%q: to revoke all is offered: %v, want %v", query, !want, want)
		}
	}
	for _, list := range []string{"/certificates", "/sessions", "/events"} {
		for query, want := range map[string]int{
			"?time=day": http.StatusOK, "?time=year": http.StatusBadRequest, "?from=yesterday": http.StatusBadRequest, "?time=between&to=12": http.StatusBadRequest,
			"?time=hour&at=now": http.StatusBadRequest,
		} {
			resp, body := b.get(list + query)
			wantStatus(t, list+query, resp, body, want)
		}
	}
}

// TestEnginesPage checks the engines page and the counts of the overview.
func TestEnginesPage(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	b := loggedIn(t, i, issuertest.Viewer)
	if _, body := b.get("/engines"); !strings.Contains(body, "no report") || !strings.Contains(body, "No machine of this engine has reported its status.") {
		t.Errorf("before any report:\n%s", body)
	}
	if _, body := b.get("/"); !strings.Contains(body, `<a href="/engines">0 of 1</a>`) || !strings.Contains(body, `<a href="/sessions?cut=yes">0</a>`) {
		t.Errorf("before any report:\n%s", body)
	}
	issued, err := i.Issue(i.GitHubToken(map[string]any{"run_id": "4711", "repository": "octo/app"}))
	if err != nil {
		t.Fatal(err)
	}
	id := func(c string) string { return strings.Repeat(c, 32) }
	now := time.Now()
	req := wire.SessionsRequest{
		Reports: []wire.SessionReport{
			{Kind: wire.SessionOpen, ID: id("a"), Serial: issued.Serial, At: now},
			{Kind: wire.SessionOpen, ID: id("b"), Serial: issued.Serial, At: now},
			{Kind: wire.SessionClose, ID: id("b"), Serial: issued.Serial, At: now, Reason: wire.ReasonRevoked},
		},
		Status: &wire.SidecarStatus{
			State: wire.SidecarPaused, Version: "v1.2.3", EngineVersion: "engine:v0.21.8", EngineSocket: wire.SocketUnreachable,
			CertificateNotAfter: now.Add(-time.Minute), FeedAgeSeconds: 600,
		},
	}
	if err := i.Call("POST", wire.PathSessions, i.SessionsToken(map[string]any{"machine_id": "148ed193b43e89"}), req, nil); err != nil {
		t.Fatal(err)
	}
	_, body := b.get("/engines")
	for _, want := range []string{"awake", "148ed193b43e89", "engine:v0.21.8", "v1.2.3", "unreachable", "10 min old", "stale", "has ended", "its certificate is revoked", "1 live session<", `href="/sessions?engine=default"`} {
		if !strings.Contains(body, want) {
			t.Errorf("the page of engines lacks %q:\n%s", want, body)
		}
	}
	_, body = b.get("/")
	for _, want := range []string{`<a href="/engines">1 of 1</a>`, `<a href="/certificates?status=valid">1</a>`, `<a href="/sessions">1</a>`, `<a href="/sessions?cut=yes">1</a>`} {
		if !strings.Contains(body, want) {
			t.Errorf("the overview lacks %s:\n%s", want, body)
		}
	}
	const run = `href="https://github.com/octo/app/actions/runs/4711"`
	for _, path := range []string{"/", "/certificates", "/certificates/" + issued.Serial, "/sessions?cut=yes", "/events?type=issued&run_id=4711"} {
		if _, body := b.get(path); !strings.Contains(body, run) {
			t.Errorf("%s has no link to the run:\n%s", path, body)
		}
	}
	if _, body := loggedIn(t, i, issuertest.Admin).get("/revocations?serial=" + issued.Serial); !strings.Contains(body, run) || !strings.Contains(body, "Reason <span class=\"required\">(required)</span>") {
		t.Errorf("the question before a revocation:\n%s", body)
	}
}

// TestAPIBesidePage checks that the API is unchanged with the page.
func TestAPIBesidePage(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	b := newBrowser(t, i)
	for path, want := range map[string]int{"/v1/nothing": 404, "/v2/certificates": 404, "/healthz": 200, "/login": 200, "/assets/style.css": 200} {
		resp, body := b.get(path)
		wantStatus(t, path, resp, body, want)
		if want == 404 && resp.Header.Get("Content-Type") != wire.ProblemMediaType {
			t.Errorf("%s: %s", path, resp.Header.Get("Content-Type"))
		}
	}
}
