package web_test

import (
	"bytes"
	"context"
	"fmt"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// chromium begins a browser, or skips the test where there is none.
func chromium(t *testing.T, settings string) context.Context {
	t.Helper()
	var path string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			path = p
			break
		}
	}
	if path == "" {
		if os.Getenv("MAYFLY_TEST_REQUIRE") == "all" {
			t.Fatal("no chromium in PATH, and MAYFLY_TEST_REQUIRE=all")
		}
		t.Skip("no chromium in PATH")
	}
	o := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path),
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("ignore-certificate-errors", true), chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("blink-settings", settings), chromedp.WSURLReadTimeout(time.Minute))
	ctx, cancel := chromedp.NewExecAllocator(context.WithoutCancel(t.Context()), o...)
	t.Cleanup(cancel)
	ctx, stop := chromedp.NewContext(ctx)
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // waits for the browser, so that its folder can go
		stop()
	})
	ctx, cancel = context.WithTimeout(ctx, 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// An admin logs in, finds a certificate by its repository, is told what
// revoking it touches, revokes it and sees it revoked.
func TestBrowser(t *testing.T) {
	t.Run("light", func(t *testing.T) { adminRevokes(t, chromium(t, "preferredColorScheme=1"), "light") })
	t.Run("dark without script", func(t *testing.T) {
		adminRevokes(t, chromium(t, "preferredColorScheme=0,scriptEnabled=false"), "dark")
	})
}

func adminRevokes(t *testing.T, ctx context.Context, scheme string) {
	i := issuertest.Start(t, issuertest.Options{})
	issued, err := i.Issue(i.GitHubToken(map[string]any{"repository": "acme/app", "run_id": "4711", "actor": "octocat"}))
	if err != nil {
		t.Fatal(err)
	}
	report := wire.SessionsRequest{Reports: []wire.SessionReport{{Kind: wire.SessionOpen, ID: issued.Serial, Serial: issued.Serial, At: time.Now(), RemoteAddr: "192.0.2.7:4242", BytesIn: 1 << 20, BytesOut: 5 << 30}}}
	if err := i.Call("POST", wire.PathSessions, i.SessionsToken(nil), report, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Issue(i.GitHubToken(map[string]any{"ref": "refs/heads/evil"})); err == nil {
		t.Fatal("another branch got a certificate")
	}
	do := func(what string, steps ...chromedp.Action[chromedp.Void]) {
		t.Helper()
		if err := chromedp.Do(ctx, steps...); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	text := func(css string) string {
		t.Helper()
		got, err := chromedp.Run(ctx, chromedp.TextContent(chromedp.CSS(css)))
		if err != nil {
			t.Fatalf("read %s: %v", css, err)
		}
		return got
	}
	click := func(css string) chromedp.Action[chromedp.Void] { return chromedp.Click(chromedp.CSS(css)) }
	see := func(css string) chromedp.Action[chromedp.Void] { return chromedp.WaitVisible(chromedp.CSS(css)) }
	write := func(css, value string) chromedp.Action[chromedp.Void] {
		return chromedp.SendKeys(chromedp.CSS(css), value)
	}
	do("log in", chromedp.Navigate(i.URL+"/login"), click("#login-staff"), see("#email"),
		chromedp.SetAttributeValue(chromedp.CSS("#email"), "value", issuertest.Admin), click("#sign-in"), see(".tiles"))
	pictures(t, ctx, i, scheme, "overview", "/")
	pictures(t, ctx, i, scheme, "sessions", "/sessions")
	do("search", chromedp.Navigate(i.URL+"/certificates"), write("#repository", "acme/app"), click("#find"),
		see(`input[value="acme/app"]`), click("a.serial"), see("#reason"))
	serial := text("#serial")
	do("revoke", write("#reason", "laptop stolen"), click("#revoke"), see("#confirm"))
	if cuts := text("#cuts"); serial != issued.Serial || cuts != "1 live connection" {
		t.Errorf("revoking %q (want %q) cuts %q", serial, issued.Serial, cuts)
	}
	do("confirm", click("#confirm"), see("#done"), chromedp.Navigate(i.URL+"/certificates/"+issued.Serial), see("#status"))
	if status := text("#status"); status != wire.StatusRevoked {
		t.Errorf("status %q", status)
	}
	for name, path := range map[string]string{
		"certificate": "/certificates/" + issued.Serial, "certificates": "/certificates?repository=acme%2Fapp",
		"events": "/events", "blocks": "/blocks", "policy": "/policy",
	} {
		pictures(t, ctx, i, scheme, name, path)
	}
	do("log out", click("#log-out"), see("#login-staff"))
}

// pictures keeps a page at two widths for somebody to look at, and fails when
// it is wider than the screen.
func pictures(t *testing.T, ctx context.Context, i *issuertest.Issuer, scheme, name, path string) {
	t.Helper()
	for _, width := range []int{1280, 390} {
		if err := chromedp.Do(ctx, chromedp.EmulateViewport(int64(width), 900), chromedp.Navigate(i.URL+path), chromedp.WaitVisible(chromedp.CSS("h1"))); err != nil {
			t.Fatalf("picture of %s: %v", path, err)
		}
		shot, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
		if err != nil {
			t.Fatalf("picture of %s: %v", path, err)
		}
		if c, err := png.DecodeConfig(bytes.NewReader(shot)); err != nil || c.Width > width {
			t.Errorf("%s is %d px wide on a screen of %d (%v)", path, c.Width, width, err)
		}
		file := filepath.Join(t.ArtifactDir(), fmt.Sprintf("%s-%d-%s.png", name, width, scheme))
		if err := os.WriteFile(file, shot, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
