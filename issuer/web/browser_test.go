package web_test

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
	"github.com/mayfly-ca/mayfly/issuer/web/webtest"
)

// An admin logs in, finds a certificate by its repository, is told what
// revoking it touches, revokes it and sees it revoked.
func TestBrowser(t *testing.T) {
	t.Run("with script", func(t *testing.T) {
		i, serial := busy(t)
		b := webtest.Start(t, webtest.Options{})
		logIn(b, i)
		find(b, i, serial)
		axe := webtest.FetchAxe(t)
		look(t, b, axe, i, serial)
		revoke(t, b, i, serial)
		afterwards(b, axe, i, serial)
	})
	t.Run("without script", func(t *testing.T) {
		i, serial := busy(t)
		b := webtest.Start(t, webtest.Options{NoScript: true})
		logIn(b, i)
		find(b, i, serial)
		revoke(t, b, i, serial)
		b.Do("log out", webtest.Click("#log-out"), webtest.See("#login-staff"))
	})
}

// busy is an issuer where something has happened: certificates, one with two
// sessions, one of which has ended, refusals, and a name full of tricks.
func busy(t *testing.T) (*issuertest.Issuer, string) {
	i := issuertest.Start(t, issuertest.Options{})
	issue := func(claims map[string]any) string {
		t.Helper()
		out, err := i.Issue(i.GitHubToken(claims))
		if err != nil {
			t.Fatal(err)
		}
		return out.Serial
	}
	for _, name := range []string{"acme/library", "acme/website", "acme/a-rather-long-name-of-a-repository-that-somebody-chose"} {
		issue(map[string]any{"repository": name, "run_id": "4700", "actor": "dependabot[bot]"})
	}
	issue(map[string]any{"repository": "acme/tricks", "actor": "<script>document.title='owned'</script>\u202e\x1b[31m\r\nevil", "run_id": "4666"})
	serial := issue(map[string]any{"repository": "acme/app", "run_id": "4711", "actor": "octocat"})
	at := time.Now()
	id := func(c string) string { return strings.Repeat(c, 32) }
	report := wire.SessionsRequest{Reports: []wire.SessionReport{
		{Kind: wire.SessionOpen, ID: id("a"), Serial: serial, At: at.Add(-time.Minute), RemoteAddr: "192.0.2.7:4240"},
		{Kind: wire.SessionClose, ID: id("a"), Serial: serial, At: at.Add(-time.Second), Reason: "closed", BytesIn: 1 << 12, BytesOut: 1 << 20},
		{Kind: wire.SessionOpen, ID: id("b"), Serial: serial, At: at, RemoteAddr: "192.0.2.7:4242", BytesIn: 1 << 20, BytesOut: 5 << 30},
		{Kind: wire.SessionFeedStale, ID: id("c"), At: at.Add(-time.Hour), Reason: "no revocation list for 5m0s: no new connection is admitted"},
	}}
	if err := i.Call("POST", wire.PathSessions, i.SessionsToken(nil), report, nil); err != nil {
		t.Fatal(err)
	}
	for _, claims := range []map[string]any{{"ref": "refs/heads/evil"}, {"event_name": "pull_request_target"}, {"repository_id": "1", "repository": "mallory/fork"}} {
		if _, err := i.Issue(i.GitHubToken(claims)); err == nil {
			t.Fatalf("%v got a certificate", claims)
		}
	}
	return i, serial
}

func logIn(b *webtest.Browser, i *issuertest.Issuer) {
	b.Do("log in", webtest.Open(i.URL+"/login"), webtest.Click("#login-staff"), webtest.See("#email"),
		webtest.Value("#email", issuertest.Admin), webtest.Click("#sign-in"), webtest.See(".tiles"))
}

func find(b *webtest.Browser, i *issuertest.Issuer, serial string) {
	b.Do("search", webtest.Open(i.URL+"/certificates"), webtest.Type("#repository", "acme/app"), webtest.Click("#find"),
		webtest.See(`input[value="acme/app"]`), webtest.Click("a.serial"), webtest.See("#revoke"))
}

// look keeps pictures of what there is before the revocation, and holds it
// against axe-core.
func look(t *testing.T, b *webtest.Browser, axe webtest.Axe, i *issuertest.Issuer, serial string) {
	t.Helper()
	claims := `{"repository_owner_id":"285964","repository_id":"1339936803","ref":"refs/heads/evil","event_name":"push"}`
	for _, p := range []struct {
		name, path string
		steps      []webtest.Step
	}{
		{"overview", "/", nil},
		{"sessions", "/sessions?ended=yes", nil},
		{"certificate-valid", "/certificates/" + serial, nil},
		{"certificates-all", "/certificates", nil},
		{"revoke", "/revocations?serial=" + serial, nil},
		{"events", "/events", nil},
		{"blocks-none", "/blocks", nil},
		{"policy", "/policy", nil},
		{"explained", "/policy", []webtest.Step{webtest.Type("textarea", claims), webtest.Click("form.act button"), webtest.See("[role=status]")}},
		{"error", "/certificates/" + strings.Repeat("0", 32), nil},
		{"login", "/login", nil},
		{"link", "/link?code=spent", nil},
	} {
		b.Pictures(p.name, i.URL+p.path, p.steps...)
		held(b, axe, p.name, i.URL+p.path, p.steps...)
	}
	if title := b.Evaluate("document.title"); strings.Contains(title, "owned") {
		t.Error("a claim's script ran")
	}
	b.Do("back", webtest.Open(i.URL+"/certificates/"+serial), webtest.See("#revoke"))
}

// held asks axe-core about a page, light and dark.
func held(b *webtest.Browser, axe webtest.Axe, name, url string, steps ...webtest.Step) {
	for _, scheme := range []string{"light", "dark"} {
		b.Do("open "+name, append([]webtest.Step{webtest.Scheme(scheme), webtest.Open(url), webtest.See("h1")}, steps...)...)
		b.Accessible(axe, name+", "+scheme)
	}
}

func revoke(t *testing.T, b *webtest.Browser, i *issuertest.Issuer, serial string) {
	t.Helper()
	if got := b.Text("#serial"); got != serial {
		t.Errorf("certificate %q, want %q", got, serial)
	}
	b.Do("ask", webtest.Click("#revoke"), webtest.See("#confirm"))
	if n, cuts := b.Text(".touches"), b.Text(".cuts"); n != "1 certificate" || cuts != "1 live connection" {
		t.Errorf("the question says %q and %q", n, cuts)
	}
	b.Do("revoke", webtest.Type("#reason", "laptop stolen"), webtest.Click("#confirm"), webtest.See("#done"))
	if got := b.Text("#done"); !strings.Contains(got, "Revoked 1 certificate") || !strings.Contains(got, "1 live connection is being cut") {
		t.Errorf("after the revocation: %q", got)
	}
	b.Do("look again", webtest.Open(i.URL+"/certificates/"+serial), webtest.See("#status"))
	if status := b.Text("#status"); status != wire.StatusRevoked {
		t.Errorf("status %q", status)
	}
}

// afterwards keeps pictures of what the revocation left.
func afterwards(b *webtest.Browser, axe webtest.Axe, i *issuertest.Issuer, serial string) {
	for name, path := range map[string]string{
		"certificate-revoked": "/certificates/" + serial, "certificates": "/certificates?repository=" + url.QueryEscape("acme/app"),
		"events-after": "/events", "blocks": "/blocks",
	} {
		b.Pictures(name, i.URL+path)
		held(b, axe, name, i.URL+path)
	}
	b.Do("log out", webtest.Click("#log-out"), webtest.See("#login-staff"))
}
