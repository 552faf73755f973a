package web_test

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
	"github.com/mayfly-ca/mayfly/issuer/webtest"
)

// TestBrowser is an admin who logs in, finds a certificate by its repository, reads
// what revoking it affects, revokes it and sees it revoked.
func TestBrowser(t *testing.T) {
	t.Parallel()
	t.Run("with script", func(t *testing.T) {
		t.Parallel()
		i, serial := busy(t)
		b := webtest.Start(t, webtest.Options{})
		logIn(b, i)
		find(b, i, serial)
		axe := webtest.FetchAxe(t)
		look(t, b, axe, i, serial)
		elsewhere(t, b, i, serial)
		card(t, b, i)
		revoke(t, b, i, serial)
		afterwards(b, axe, i, serial)
	})
	t.Run("without script", func(t *testing.T) {
		t.Parallel()
		i, serial := busy(t)
		b := webtest.Start(t, webtest.Options{NoScript: true})
		logIn(b, i)
		find(b, i, serial)
		for _, path := range []string{"/", "/certificates", "/engines"} {
			b.Do("look at "+path, webtest.Open(i.URL+path), webtest.See("#zone"))
			if note := b.Text("#zone"); note != "Times are in UTC." {
				t.Errorf("%s without script says %q", path, note)
			}
		}
		if got := b.Text("td.until time"); got == "" || strings.Contains(got, "T") {
			t.Errorf("a time without script is %q", got)
		}
		b.Do("back", webtest.Open(i.URL+"/certificates/"+serial), webtest.See("#revoke"))
		revoke(t, b, i, serial)
		b.Do("log out", webtest.Click("#log-out"), webtest.See("#login-staff"))
	})
}

// busy returns an issuer with data: certificates, one with two sessions, one of which
// has ended, refusals, and a hostile name.
func busy(t *testing.T) (*issuertest.Issuer, string) {
	i := issuertest.Start(t, issuertest.Options{Policy: func(text string) string {
		return strings.Replace(text, "rules:\n", "  spare: {endpoint: \"tcp://spare.example.com:8080\", server_name: spare.example.com}\nrules:\n", 1)
	}})
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
	for machine, status := range map[string]wire.SidecarStatus{
		"148ed193b43e89": {State: wire.SidecarListening, Version: "v1.4.0", EngineVersion: "engine:v0.21.8", EngineSocket: wire.SocketOK, FeedAgeSeconds: 12},
		"2865d50a6e1d48": {State: wire.SidecarListening, Version: "v1.4.0", EngineVersion: "engine:v0.21.8", EngineSocket: wire.SocketUnreachable, FeedAgeSeconds: 900},
		"3d8d9e77b65d89": {State: wire.SidecarStopped, Version: "v1.3.9-0.20261102112233-998221d0a1b2", EngineSocket: wire.SocketUnreachable, FeedAgeSeconds: 60},
	} {
		status.CertificateNotAfter = at.Add(20 * time.Hour)
		if err := i.Call("POST", wire.PathSessions, i.SessionsToken(map[string]any{"machine_id": machine}), wire.SessionsRequest{Status: &status}, nil); err != nil {
			t.Fatal(err)
		}
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

// look saves pictures of the pages before the revocation, and checks them with
// axe-core.
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
		{"engines", "/engines", nil},
		{"between", "/certificates?time=between&from=2026-01-02T15:04&status=revoked", nil},
		{"missing", "/nothing", nil},
		{"events", "/events", nil},
		{"blocks-none", "/blocks", nil},
		{"policy", "/policy", nil},
		{"explained", "/policy", []webtest.Step{webtest.Type("textarea", claims), webtest.Click("form.act button"), webtest.See("[role=status]")}},
		{"error", "/certificates/" + strings.Repeat("0", 32), nil},
		{"login", "/login", nil},
		{"link", "/link?code=spent", nil},
	} {
		b.Hold(axe, p.name, i.URL+p.path, p.steps...)
	}
	if title := b.Evaluate("document.title"); strings.Contains(title, "owned") {
		t.Error("a claim's script ran")
	}
	b.Do("back", webtest.Open(i.URL+"/certificates/"+serial), webtest.See("#revoke"))
}

// elsewhere checks the times for a reader in India, half an hour off UTC's hours.
// Times are in the reader's own zone, with UTC on hover, also in the filter.
func elsewhere(t *testing.T, b *webtest.Browser, i *issuertest.Issuer, serial string) {
	t.Helper()
	zone := time.FixedZone("India", 5*3600+1800)
	var cert wire.CertificateDetail
	if err := i.Call("GET", wire.PathCertificates+"/"+serial, i.ViewerToken(), nil, &cert); err != nil {
		t.Fatal(err)
	}
	const form = "2006-01-02 15:04:05"
	ends := `time[datetime="` + cert.NotAfter.Format(time.RFC3339) + `"]`
	b.Do("look from India", webtest.Zone("Asia/Kolkata"), webtest.Open(i.URL+"/certificates/"+serial), webtest.See("#revoke"))
	if got, want := b.Text(ends), cert.NotAfter.In(zone).Format(form); got != want {
		t.Errorf("the end is shown as %q, want %q", got, want)
	}
	if got, want := b.Evaluate("document.querySelector('"+ends+"').title"), cert.NotAfter.UTC().Format(form)+" UTC"; got != want {
		t.Errorf("on hover the end is %q, want %q", got, want)
	}
	if got := b.Text("#zone"); !strings.Contains(got, "Kolkata") && !strings.Contains(got, "Calcutta") {
		t.Errorf("the page says %q", got)
	}
	// From a minute before the certificate was issued to a minute after it.
	from, to := cert.IssuedAt.Add(-time.Minute), cert.IssuedAt.Add(time.Minute)
	const field = "2006-01-02T15:04"
	set := func(name string, at time.Time) string {
		return "document.querySelector('[name=" + name + "]').value = '" + at.In(zone).Format(field) + "'"
	}
	b.Do("filter", webtest.Open(i.URL+"/certificates?time=between&repository=acme%2Fapp"), webtest.See("[name=from]"))
	b.Evaluate(set("from", from))
	b.Evaluate(set("to", to))
	b.Do("find", webtest.Click("#find"), webtest.See(`input[name=from][value="`+from.UTC().Format(field)+`"]`), webtest.See("a.serial"))
	if got, want := b.Evaluate("document.querySelector('[name=to]').value"), to.In(zone).Format(field); got != want {
		t.Errorf("the filter ends at %q, want %q", got, want)
	}
	b.Picture("elsewhere-1280-light", 1280)
	b.Do("filter what came before", webtest.Open(i.URL+"/certificates?time=between&to="+from.UTC().Format(field)), webtest.See(".none"))
	b.Do("come back", webtest.Zone("UTC"))
}

// card checks that a row on a telephone shows who, status, until and one action; the
// rest opens.
func card(t *testing.T, b *webtest.Browser, i *issuertest.Issuer) {
	t.Helper()
	const shown = `Array.from(document.querySelectorAll("tbody tr:first-child > td")).filter((e) => e.checkVisibility()).map((e) => e.className.split(" ")[0]).join(" ")`
	for path, want := range map[string]string{
		"/certificates": "name state until act more", "/sessions": "name state until act more", "/engines": "name state until act more",
	} {
		b.Do("look at a telephone", webtest.Telephone(), webtest.Open(i.URL+path), webtest.See("tbody td.act a"))
		if got := b.Evaluate(shown); got != want {
			t.Errorf("a card of %s shows %q, want %q", path, got, want)
		}
		if got := b.Evaluate(`String(document.querySelectorAll("tbody tr:first-child td.act a").length)`); got != "1" {
			t.Errorf("a card of %s has %s actions", path, got)
		}
		b.Do("open the rest", webtest.Click("tbody tr:first-child summary"), webtest.See("tbody tr:first-child dl"))
		b.Picture("opened"+strings.ReplaceAll(path, "/", "-")+"-390-light", 390)
	}
	b.Do("back to the desk", webtest.Desk())
	if got := b.Evaluate(`String(document.querySelectorAll("td.more, .button.phone").length > 0 && !Array.from(document.querySelectorAll("td.more, .button.phone")).some((e) => e.checkVisibility()))`); got != "true" {
		t.Error("a desk shows what is for telephones")
	}
	b.Do("back", webtest.Open(i.URL+"/certificates?repository=acme%2Fapp"), webtest.Click("a.serial"), webtest.See("#revoke"))
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

// afterwards saves pictures of the pages after the revocation.
func afterwards(b *webtest.Browser, axe webtest.Axe, i *issuertest.Issuer, serial string) {
	for name, path := range map[string]string{
		"certificate-revoked": "/certificates/" + serial, "certificates": "/certificates?repository=" + url.QueryEscape("acme/app"),
		"events-after": "/events", "blocks": "/blocks",
	} {
		b.Hold(axe, name, i.URL+path)
	}
	b.Do("log out", webtest.Click("#log-out"), webtest.See("#login-staff"))
}
