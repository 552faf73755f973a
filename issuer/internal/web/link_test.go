package web_test

import (
	"bytes"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/mayfly-ca/mayfly/issuer"
	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
	"github.com/mayfly-ca/mayfly/issuer/webtest"
)

// withoutPeople drops the login provider and its rules from a policy.
func withoutPeople(text string) string {
	text = regexp.MustCompile(`(?m)^  staff:.*\n`).ReplaceAllString(text, "")
	return text[:strings.Index(text, "  - name: admins")]
}

// adminLink makes a link and returns the link and its code.
func adminLink(t *testing.T, i *issuertest.Issuer, role policy.Role) (link, code string) {
	t.Helper()
	c := i.Config
	c.PublicURL = i.URL
	link, err := issuer.AdminLink(t.Context(), c, role, "host/ann")
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(link)
	if err != nil {
		t.Fatal(err)
	}
	return link, u.Query().Get("code")
}

// TestAdminLink checks that a link logs in one person once, without a provider in the
// policy. Opening it does not use it up. Its secret is in no log, row or event.
func TestAdminLink(t *testing.T) {
	t.Parallel()
	var log lockedBuffer
	i := issuertest.Start(t, issuertest.Options{Policy: withoutPeople, Log: &log})
	link, code := adminLink(t, i, policy.Admin)
	if len(code) < 40 {
		t.Fatalf("the code is %q", code)
	}
	preview := newBrowser(t, i)
	for range 3 {
		resp, body := preview.get(link)
		wantStatus(t, "a preview", resp, body, http.StatusOK)
		if len(resp.Cookies()) != 0 || !strings.Contains(body, code) {
			t.Errorf("a preview: cookies %v\n%s", resp.Cookies(), body)
		}
	}
	b := newBrowser(t, i)
	resp, body := b.post("/link", url.Values{"code": {code}}, "Origin", "https://evil.example")
	wantStatus(t, "from another site", resp, body, http.StatusForbidden)
	resp, body = b.post("/link", url.Values{"code": {code + "A"}})
	wantStatus(t, "another code", resp, body, http.StatusForbidden)
	resp, body = b.post("/link", url.Values{})
	wantStatus(t, "no code", resp, body, http.StatusForbidden)
	home, err := url.Parse(i.URL)
	if err != nil {
		t.Fatal(err)
	}
	thief := newBrowser(t, i)
	thief.Jar.SetCookies(home, []*http.Cookie{{Name: "__Host-mayfly", Value: code, Path: "/", Secure: true}})
	resp, body = thief.get("/")
	wantStatus(t, "the link's secret as a cookie", resp, body, http.StatusSeeOther)

	resp, body = b.post("/link", url.Values{"code": {code}})
	wantStatus(t, "the button", resp, body, http.StatusSeeOther)
	resp, body = b.get("/blocks")
	wantStatus(t, "an admin's page", resp, body, http.StatusOK)
	if !strings.Contains(body, "host/ann <b>admin</b>") || !strings.Contains(body, "by link, until") {
		t.Errorf("the page does not say how the person came in:\n%s", body)
	}
	for _, c := range []*browser{b, newBrowser(t, i)} {
		resp, body = c.post("/link", url.Values{"code": {code}})
		wantStatus(t, "a second time", resp, body, http.StatusForbidden)
		if !strings.Contains(body, "has been used") || !strings.Contains(body, "admin-link") {
			t.Errorf("a second time: %s", body)
		}
	}
	resp, body = b.get("/events")
	wantStatus(t, "events", resp, body, http.StatusOK)
	for _, want := range []string{"host/ann made a link that logs in one admin until ", "host/ann logged in to the page by an admin link"} {
		if !strings.Contains(body, want) {
			t.Errorf("the record lacks %q", want)
		}
	}
	for _, path := range []string{i.Config.Store, i.Config.Store + "-wal"} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, []byte(code)) {
			t.Errorf("%s holds the link's secret", path)
		}
	}
	if strings.Contains(log.String(), code) {
		t.Error("the log holds the link's secret")
	}
}

// TestViewerLink checks that a viewer's link gives no more, and that the attempt is
// recorded.
func TestViewerLink(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	_, code := adminLink(t, i, policy.Viewer)
	b := newBrowser(t, i)
	resp, body := b.post("/link", url.Values{"code": {code}})
	wantStatus(t, "the button", resp, body, http.StatusSeeOther)
	resp, body = b.get("/certificates")
	wantStatus(t, "a viewer's page", resp, body, http.StatusOK)
	resp, body = b.get("/blocks")
	wantStatus(t, "an admin's page", resp, body, http.StatusForbidden)
	found := false
	for _, e := range events(t, i, "forbidden") {
		found = found || e.By == "host/ann" && e.Reason == "page GET /blocks"
	}
	if !found {
		t.Errorf("the attempt is not recorded: %+v", events(t, i, "forbidden"))
	}
	resp, body = b.post("/logout", nil)
	wantStatus(t, "logout", resp, body, http.StatusSeeOther)
}

// TestAdminLinkOnce checks that, of many who press the button at once at two issuers,
// one is logged in.
func TestAdminLinkOnce(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	both := []*issuertest.Issuer{i, i.Replica()}
	_, code := adminLink(t, i, policy.Admin)
	var mu sync.Mutex
	got := map[int]int{}
	var wg sync.WaitGroup
	for n := range 8 {
		b := newBrowser(t, both[n%2])
		wg.Go(func() {
			resp, _ := b.post("/link", url.Values{"code": {code}})
			mu.Lock()
			defer mu.Unlock()
			got[resp.StatusCode]++
		})
	}
	wg.Wait()
	if got[http.StatusSeeOther] != 1 || got[http.StatusForbidden] != 7 {
		t.Errorf("answers %v, want one login and seven refusals", got)
	}
}

// TestForgedLink checks that a link made, extended or raised to admin in the database
// is invalid.
func TestForgedLink(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	for name, query := range map[string]string{
		"longer":   `UPDATE logins SET expires_at = expires_at + 3600000000 WHERE id LIKE 'link:%'`,
		"stronger": `UPDATE logins SET claims = CAST('{"role":"admin","by":"host/ann"}' AS BLOB) WHERE id LIKE 'link:%'`,
		"expired":  `DELETE FROM logins WHERE id LIKE 'link:%'`,
	} {
		_, code := adminLink(t, i, policy.Viewer)
		database(t, i, query)
		resp, body := newBrowser(t, i).post("/link", url.Values{"code": {code}})
		wantStatus(t, name, resp, body, http.StatusForbidden)
		database(t, i, `DELETE FROM logins`)
	}
	c := i.Config
	c.StateKey = nil
	if _, err := issuer.AdminLink(t.Context(), c, policy.Admin, "host/ann"); err == nil || !strings.Contains(err.Error(), "state_key is missing") {
		t.Errorf("a link without a state key: %v", err)
	}
	if _, err := issuer.AdminLink(t.Context(), i.Config, "root", "host/ann"); err == nil {
		t.Error("a link for a role that does not exist")
	}
}

// TestBrowserLink presses the button in a browser, without script.
func TestBrowserLink(t *testing.T) {
	i := issuertest.Start(t, issuertest.Options{Policy: withoutPeople})
	link, _ := adminLink(t, i, policy.Admin)
	b := webtest.Start(t, webtest.Options{NoScript: true})
	b.Do("open the link twice, press the button", webtest.Open(link), webtest.See("#use-link"), webtest.Open(link), webtest.Click("#use-link"), webtest.See(".tiles"))
	if got := b.Text("header form"); !strings.Contains(got, "host/ann admin by link, until") {
		t.Errorf("the header says %q", got)
	}
	b.Do("log out", webtest.Click("#log-out"), webtest.See(".plain .none"))
	if got := b.Text(".plain .none"); !strings.Contains(got, "mayfly-issuer admin-link") {
		t.Errorf("without a provider the login page says %q", got)
	}
}
