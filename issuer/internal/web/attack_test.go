package web_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/issuer"
	"github.com/mayfly-ca/mayfly/issuer/internal/web"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// TestHeaders checks that every response of the page, to any visitor, forbids frames,
// inline code, caching and content sniffing.
func TestHeaders(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	admin, nobody := loggedIn(t, i, issuertest.Admin), newBrowser(t, i)
	for _, pattern := range append(web.Routes(), "GET /assets/style.css", "GET /assets/reload.js", "GET /login/nothing", "POST /certificates", "GET /certificates/nothing") {
		method, path, _ := strings.Cut(pattern, " ")
		path = strings.NewReplacer("{$}", "", "{serial}", strings.Repeat("0", 32), "{provider}", "staff").Replace(path)
		for who, b := range map[string]*browser{"admin": admin, "nobody": nobody} {
			if path == "/logout" {
				continue // would end the admin's login
			}
			var resp *http.Response
			var body string
			if method == http.MethodPost {
				resp, body = b.post(path, url.Values{})
			} else {
				resp, body = b.get(path)
			}
			for name, want := range map[string]string{
				"X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "same-origin",
				"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
			} {
				if got := resp.Header.Get(name); got != want {
					t.Errorf("%s for %s: %s is %q, want %q", pattern, who, name, got, want)
				}
			}
			policy := resp.Header.Get("Content-Security-Policy")
			for _, want := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'"} {
				if !strings.Contains(policy, want) || strings.Contains(policy, "unsafe") {
					t.Errorf("%s for %s: policy %q lacks %s", pattern, who, policy, want)
				}
			}
			for _, inline := range []string{" style=", "<style", "<script>", " onclick", "javascript:"} {
				if strings.Contains(body, inline) {
					t.Errorf("%s for %s holds %q", pattern, who, inline)
				}
			}
		}
	}
}

// TestStrictTransport checks that Strict-Transport-Security is sent only for the
// issuer's own name. On loopback, it would also apply to other services.
func TestStrictTransport(t *testing.T) {
	t.Parallel()
	for public, want := range map[string]string{"https://ca.example.com": "max-age=31536000", "https://ca.example.com:443": "max-age=31536000", "https://localhost:8443": "", "": ""} {
		i := issuertest.Start(t, issuertest.Options{Config: func(c *issuer.Config) { c.PublicURL, c.TLS.Mode = public, issuer.TLSOff }})
		req, err := http.NewRequest(http.MethodGet, i.URL+"/login", nil)
		if err != nil {
			t.Fatal(err)
		}
		if public != "" {
			req.Host = strings.TrimSuffix(strings.TrimPrefix(public, "https://"), ":443") // as browsers write it
		}
		resp, body := newBrowser(t, i).do(req)
		wantStatus(t, public, resp, body, http.StatusOK)
		if got := resp.Header.Get("Strict-Transport-Security"); got != want {
			t.Errorf("%q: %q, want %q", public, got, want)
		}
	}
}

// TestFixation checks that a planted cookie gives no access, before and after the
// victim's login. After a logout, a copy of the cookie does not work either.
func TestFixation(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	home, err := url.Parse(i.URL)
	if err != nil {
		t.Fatal(err)
	}
	const planted = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	plant := func(b *browser, value string) {
		b.Jar.SetCookies(home, []*http.Cookie{{Name: "__Host-mayfly", Value: value, Path: "/", Secure: true}})
	}
	victim, thief := newBrowser(t, i), newBrowser(t, i)
	plant(victim, planted)
	plant(thief, planted)
	resp, body := victim.get("/")
	wantStatus(t, "planted", resp, body, http.StatusSeeOther)
	resp, body = victim.login(issuertest.Admin)
	wantStatus(t, "login", resp, body, http.StatusSeeOther)
	resp, body = thief.get("/")
	wantStatus(t, "planted, after the victim's login", resp, body, http.StatusSeeOther)

	var secret string
	for _, c := range victim.Jar.Cookies(home) {
		if c.Name == "__Host-mayfly" {
			secret = c.Value
		}
	}
	if secret == planted || len(secret) < 40 {
		t.Fatalf("the login's secret is %q", secret)
	}
	plant(thief, secret)
	resp, body = thief.get("/")
	wantStatus(t, "the true secret", resp, body, http.StatusOK)
	resp, body = victim.post("/logout", nil)
	wantStatus(t, "logout", resp, body, http.StatusSeeOther)
	resp, body = thief.get("/")
	wantStatus(t, "the secret after logout", resp, body, http.StatusSeeOther)
}

// TestNoOpenRedirect checks that a request cannot choose a redirect. The page
// redirects only to itself and to the provider in the policy.
func TestNoOpenRedirect(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	b := newBrowser(t, i)
	for _, path := range []string{
		"/?next=https://evil.example", "/login?return_to=//evil.example", "//evil.example/..", "/login/staff?redirect_uri=https://evil.example&state=x&next=//evil.example",
		"/certificates?next=https://evil.example", "/%5c%5cevil.example", "/login/..%2f..%2fevil.example", "/assets/..%2f..//evil.example",
	} {
		resp, _ := b.get(i.URL + path)
		to := resp.Header.Get("Location")
		u, err := url.Parse(to)
		if err != nil {
			t.Fatal(err)
		}
		own := to == "" || u.Host == "" && !strings.HasPrefix(to, "//") && !strings.HasPrefix(to, `/\`)
		if !own && !strings.HasPrefix(to, i.Staff.URL()+"/") {
			t.Errorf("%s leads to %s", path, to)
		}
		if strings.HasPrefix(to, i.Staff.URL()) && u.Query().Get("redirect_uri") != i.URL+"/callback" {
			t.Errorf("%s has the provider send the browser to %s", path, u.Query().Get("redirect_uri"))
		}
	}
	back := b.answer(issuertest.Admin)
	resp, body := b.get(back + "&next=https://evil.example&redirect_uri=https://evil.example")
	wantStatus(t, "callback", resp, body, http.StatusSeeOther)
	if to := resp.Header.Get("Location"); to != "/" {
		t.Errorf("the login ends at %s", to)
	}
}
