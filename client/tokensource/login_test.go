package tokensource_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/tokensource"
	"github.com/mayfly-ca/mayfly/issuer/idtokentest"
)

func staff(t *testing.T) *idtokentest.Provider {
	t.Helper()
	p, err := idtokentest.New(idtokentest.Options{Type: idtokentest.People, ClientID: "mayfly",
		Defaults: map[string]any{"aud": "mayfly", "email": "ops@example.com", "email_verified": true}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// post submits a form of the provider's pages as a person's browser does.
func post(t *testing.T, to string, form url.Values) {
	t.Helper()
	resp, err := http.PostForm(to, form)
	if err != nil {
		t.Error(err)
		return
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		t.Errorf("POST %s: %d %s", to, resp.StatusCode, b)
	}
}

func TestDeviceLogin(t *testing.T) {
	t.Parallel()
	p := staff(t)
	for _, answer := range []string{"allow", "deny"} {
		l := tokensource.Login{Issuer: p.URL(), ClientID: "mayfly", Show: func(q tokensource.LoginPrompt) {
			if q.Code == "" || !strings.HasPrefix(q.URL, p.URL()) {
				t.Errorf("prompt %+v", q)
			}
			post(t, q.URL, url.Values{"user_code": {q.Code}, "answer": {answer}})
		}}
		got, err := l.Device(t.Context())
		if answer == "deny" {
			var refused *tokensource.LoginError
			if !errors.As(err, &refused) || refused.Code != "access_denied" {
				t.Errorf("denied: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got.Subject != "ops@example.com" || got.Issuer != p.URL() || !got.ExpiresAt.After(time.Now()) || strings.Count(got.IDToken, ".") != 2 {
			t.Errorf("token for %s of %s until %v", got.Subject, got.Issuer, got.ExpiresAt)
		}
	}
}

// TestBrowserLogin goes through the provider's page. A request to the return port
// with another state changes nothing.
func TestBrowserLogin(t *testing.T) {
	t.Parallel()
	p := staff(t)
	for _, answer := range []string{"allow", "deny"} {
		done := make(chan struct{})
		l := tokensource.Login{Issuer: p.URL(), ClientID: "mayfly", Open: func(u string) error {
			go func() {
				defer close(done)
				at, err := url.Parse(u)
				if err != nil {
					t.Error(err)
					return
				}
				form := at.Query()
				back := form.Get("redirect_uri")
				resp, err := http.Get(back + "?code=forged&state=guessed")
				if err != nil {
					t.Error(err)
					return
				}
				resp.Body.Close()
				if resp.StatusCode != http.StatusNotFound {
					t.Errorf("a foreign state is answered %d", resp.StatusCode)
				}
				form.Set("email", "ops@example.com")
				form.Set("answer", answer)
				at.RawQuery = ""
				post(t, at.String(), form)
			}()
			return nil
		}}
		got, err := l.Browser(t.Context())
		<-done
		var refused *tokensource.LoginError
		switch {
		case answer == "deny" && !errors.As(err, &refused):
			t.Errorf("denied: %v", err)
		case answer == "allow" && err != nil:
			t.Error(err)
		case answer == "allow" && got.Subject != "ops@example.com":
			t.Errorf("subject %s", got.Subject)
		}
	}
}

func TestLoginEnds(t *testing.T) {
	t.Parallel()
	p := staff(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	for _, l := range []tokensource.Login{
		{Issuer: p.URL(), ClientID: "mayfly", Open: func(string) error { cancel(gone); return nil }},
		{Issuer: p.URL(), ClientID: "mayfly", Show: func(tokensource.LoginPrompt) {}},
	} {
		if _, err := l.Browser(ctx); !errors.Is(err, gone) && !errors.Is(err, context.Canceled) {
			t.Errorf("browser: %v", err)
		}
	}
}

// TestLoginRefusesProviders checks documents that would send the person or the token
// to another host.
func TestLoginRefusesProviders(t *testing.T) {
	t.Parallel()
	var self string
	for name, document := range map[string]func() string{
		"another issuer": func() string { return `{"issuer":"https://other.example.com","token_endpoint":"` + self + `/token"}` },
		"plain http off loopback": func() string {
			return `{"issuer":"` + self + `","token_endpoint":"http://example.com/token","authorization_endpoint":"` + self + `/a"}`
		},
		"userinfo in the endpoint": func() string { return `{"issuer":"` + self + `","token_endpoint":"https://a@example.com/token"}` },
		"no token endpoint":        func() string { return `{"issuer":"` + self + `"}` },
		"a page":                   func() string { return `<html>` },
		"endless":                  func() string { return `{"issuer":"` + strings.Repeat("x", 300<<10) + `"}` },
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, document()) }))
			defer srv.Close()
			self = srv.URL
			l := tokensource.Login{Issuer: srv.URL, ClientID: "mayfly", Show: func(tokensource.LoginPrompt) { t.Error("somebody was sent there") }}
			if _, err := l.Browser(t.Context()); err == nil {
				t.Error("browser: no error")
			}
			if _, err := l.Device(t.Context()); err == nil {
				t.Error("device: no error")
			}
		})
	}
	for _, issuer := range []string{"http://example.com", "ftp://example.com", "https://a@example.com", ""} {
		if _, err := (tokensource.Login{Issuer: issuer, ClientID: "mayfly"}).Browser(t.Context()); err == nil {
			t.Errorf("%q: no error", issuer)
		}
	}
	moved := httptest.NewServer(http.RedirectHandler("https://example.com/", http.StatusFound))
	defer moved.Close()
	if _, err := (tokensource.Login{Issuer: moved.URL, ClientID: "mayfly"}).Browser(t.Context()); err == nil || !strings.Contains(err.Error(), "redirect") {
		t.Errorf("redirect: %v", err)
	}
}

func TestLoginStore(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := tokensource.LoginStore{Path: filepath.Join(t.TempDir(), "mayfly", "login.json")}
	if _, err := s.Find("https://a", now); !errors.Is(err, tokensource.ErrNoLogin) {
		t.Errorf("empty: %v", err)
	}
	if _, _, err := s.Latest(); !errors.Is(err, tokensource.ErrNoLogin) {
		t.Errorf("latest of none: %v", err)
	}
	old := tokensource.StoredLogin{IDToken: "old", IssuedAt: now.Add(-time.Hour), ExpiresAt: now.Add(time.Second)}
	fresh := tokensource.StoredLogin{IDToken: "fresh", IssuedAt: now, ExpiresAt: now.Add(time.Hour), TrustAnchor: "sha256:00"}
	if err := errors.Join(s.Save("https://old", old, now), s.Save("https://a", fresh, now)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{s.Path: 0o600, filepath.Dir(s.Path): 0o700} {
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, fi.Mode(), err)
		}
	}
	if l, err := s.Find("https://a", now); err != nil || l.IDToken != "fresh" {
		t.Errorf("find: %v, %v", l, err)
	}
	if issuer, l, err := s.Latest(); err != nil || issuer != "https://a" || l.TrustAnchor != "sha256:00" {
		t.Errorf("latest: %s, %v, %v", issuer, l, err)
	}
	if _, err := s.Find("https://old", now.Add(time.Second)); !errors.Is(err, tokensource.ErrLoginExpired) {
		t.Errorf("expired: %v", err)
	}
	if found, err := s.Remove("https://a"); !found || err != nil {
		t.Errorf("remove: %v, %v", found, err)
	}
	if issuer, _, err := s.Latest(); err != nil || issuer != "https://old" {
		t.Errorf("latest of those that are left: %s, %v", issuer, err)
	}
	if found, err := s.Remove("https://a"); found || err != nil {
		t.Errorf("remove twice: %v, %v", found, err)
	}
	if err := os.Chmod(s.Path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Find("https://old", now); err == nil || !strings.Contains(err.Error(), "chmod") {
		t.Errorf("a file that others may read: %v", err)
	}
	if _, _, err := s.Latest(); err == nil || !strings.Contains(err.Error(), "chmod") {
		t.Errorf("latest in a file that others may read: %v", err)
	}
	if err := errors.Join(os.Chmod(s.Path, 0o600), os.WriteFile(s.Path, []byte("null"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := s.Save("https://a", fresh, now); err != nil {
		t.Error(err)
	}
}
