package e2e

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// hostile is a possible name of a branch or a person: HTML, ANSI escapes, CR LF
// with a forged log line, right-to-left marks, a runner's command, a template.
const hostile = "</title><script>alert(1)</script>\"'><img src=x onerror=y>\x1b[31m\x1b]0;owned\a\r\nlevel=ERROR msg=forged\u202egnp.exe\u2066\u200b\n::error::owned\n##[error]owned{{.Who}}${jndi:x}"

// surface is a place where text is shown.
type surface int

const (
	onPage surface = iota
	onTerminal
	inLog
)

// acts lists the strings that have an effect if they are shown unchanged. Controls
// and marks affect every reader. Tags affect a browser. Line breaks and commands
// affect a terminal, and a runner that copies its output.
var acts = map[surface][]string{
	onPage:     {"\x1b", "\a", "\r", "\u202e", "\u2066", "\u200b", "<script>alert", "<img src=x", "</title><script"},
	onTerminal: {"\x1b", "\a", "\r", "\u202e", "\u2066", "\u200b", "\n::error", "##[error]", "\nlevel=ERROR msg=forged"},
	inLog:      {"\x1b", "\a", "\r", "\u202e", "\u2066", "\u200b", "\n::error", "\nlevel=ERROR msg=forged"},
}

// A claim full of such strings has no effect wherever it is shown: on the page, in
// the CLI and in the log.
func TestHostileTexts(t *testing.T) {
	var log buffer
	i := issuertest.Start(t, issuertest.Options{Log: &log})
	issued, err := i.Issue(i.GitHubToken(map[string]any{"repository": "acme/" + hostile, "run_id": hostile, "actor": hostile, "head_ref": hostile, "workflow": hostile}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.Issue(i.GitHubToken(map[string]any{"ref": hostile, "repository": "acme/" + hostile, "sub": hostile})); err == nil {
		t.Fatal("another branch got a certificate")
	}
	report := wire.SessionsRequest{Reports: []wire.SessionReport{
		{Kind: wire.SessionOpen, ID: strings.Repeat("a", 32), Serial: issued.Serial, At: time.Now(), RemoteAddr: "192.0.2.7:4242"},
		{Kind: wire.SessionClose, ID: strings.Repeat("a", 32), Serial: issued.Serial, At: time.Now(), Reason: hostile},
		{Kind: wire.SessionFeedStale, ID: strings.Repeat("b", 32), At: time.Now(), Reason: hostile},
	}}
	if err := i.Call("POST", wire.PathSessions, i.SessionsToken(nil), report, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Revoke(wire.RevokeRequest{Serial: issued.Serial, Reason: hostile}); err != nil {
		t.Fatal(err)
	}
	t.Run("CLI", func(t *testing.T) {
		t.Setenv("MAYFLY_ISSUER", i.URL)
		t.Setenv("MAYFLY_CA_FILE", i.CAFile)
		t.Setenv("MAYFLY_ADMIN_TOKEN", i.AdminToken())
		for _, command := range []string{
			"certs list", "certs show " + issued.Serial, "sessions --all", "events", "blocks", "certs revoke --dry-run " + issued.Serial,
		} {
			code, out, errs := output(t, "mayfly", strings.Fields(command)...)
			if code != 0 {
				t.Errorf("%s: exit code %d\n%s", command, code, errs)
			}
			harmless(t, onTerminal, command, out+errs)
		}
		_, out, errs := output(t, "mayfly", "certs", "list", "--repository", hostile)
		harmless(t, onTerminal, "an error of the CLI", out+errs)
	})
	t.Run("page", func(t *testing.T) {
		c := adminOf(t, i)
		q := url.QueryEscape(hostile)
		for _, path := range []string{
			"/", "/certificates", "/certificates/" + issued.Serial, "/certificates?repository=" + q + "&actor=" + q + "&run_id=" + q, "/certificates?serial=" + q,
			"/sessions?ended=yes", "/sessions?engine=" + q, "/events", "/events?type=" + q, "/blocks", "/revocations?serial=" + issued.Serial,
			"/revocations?actor=" + q, "/revocations?serial=" + q, "/policy", "/login/" + url.PathEscape(hostile), "/callback?error=" + q + "&state=" + q, "/" + url.PathEscape(hostile),
		} {
			harmless(t, onPage, path, fetch(t, c, http.MethodGet, i.URL+path, nil, i.URL))
		}
		for path, form := range map[string]url.Values{
			"/policy":         {"provider": {hostile}, "claims": {`{"ref":"` + strings.NewReplacer(`"`, `\"`, "\x1b", `\u001b`, "\a", `\u0007`, "\r", `\r`, "\n", `\n`).Replace(hostile) + `"}`}},
			"/policy#claims":  {"provider": {"github"}, "claims": {hostile}},
			"/blocks/remove":  {"id": {hostile}},
			"/revocations":    {"actor": {hostile}, "reason": {""}, "confirm": {"yes"}, "block": {hostile}},
			"/revocations?x=": {"serial": {issued.Serial}, "reason": {hostile}, "confirm": {"yes"}, "block": {"24h"}},
		} {
			harmless(t, onPage, "POST "+path, fetch(t, c, http.MethodPost, i.URL+path, form, i.URL))
		}
	})
	if err := i.Stop(); err != nil {
		t.Fatal(err)
	}
	said := log.String()
	if !strings.Contains(said, "msg=request") || !strings.Contains(said, "forged") {
		t.Fatalf("the log tells nothing: %.500s", said)
	}
	harmless(t, inLog, "the log", said)
	for line := range strings.Lines(said) {
		if !strings.HasPrefix(line, "time=") {
			t.Errorf("a line of the log that is none of its own: %q", line)
		}
	}
}

// harmless fails the test if shown contains a string that has an effect.
func harmless(t *testing.T, on surface, where, shown string) {
	t.Helper()
	for _, act := range acts[on] {
		if at := strings.Index(shown, act); at >= 0 {
			t.Errorf("%s shows %q as it is: %q", where, act, shown[max(0, at-80):min(len(shown), at+80)])
		}
	}
}

// adminOf returns an HTTP client that has logged in to the page.
func adminOf(t *testing.T, i *issuertest.Issuer) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Transport: i.Client().Transport, Jar: jar, Timeout: time.Minute}
	// The form of the provider's login page.
	resp, err := c.Get(i.URL + "/login/staff")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	ask := resp.Request.URL
	form := ask.Query()
	form.Set("email", issuertest.Admin)
	ask.RawQuery = ""
	if body := fetch(t, c, http.MethodPost, ask.String(), form, i.Staff.URL()); !strings.Contains(body, `id="log-out"`) {
		t.Fatalf("login: %s", body)
	}
	return c
}

func fetch(t *testing.T, c *http.Client, method, to string, form url.Values, origin string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), method, to, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Origin", origin)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode >= 500 {
		t.Errorf("%s %s: %s", method, to, resp.Status)
	}
	return string(body)
}

// buffer is a bytes.Buffer that is safe for concurrent use.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
