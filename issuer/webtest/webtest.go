// Package webtest drives a real Chromium against the admin page, for tests of
// any room: it clicks as a person does, keeps pictures of pages, and asks
// axe-core for what a person with another way of reading would stumble over.
//
// It needs chromium (Debian: chromium) and, for Axe, npm. Where they are
// missing a test is skipped, or fails with MAYFLY_TEST_REQUIRE=all.
package webtest

import (
	"bytes"
	"context"
	"fmt"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// The widths of screens, in CSS pixels.
const desk, telephone = 1280, 390

// Browser is a Chromium with one page open. It ends with the test.
type Browser struct {
	t   testing.TB
	ctx context.Context
}

// Options of a Browser.
type Options struct {
	// NoScript turns JavaScript off.
	NoScript bool
}

// Need returns the path of Chromium, and skips the test where there is none. A
// test whose later parts build on what a browser did calls it first.
func Need(t testing.TB) string {
	t.Helper()
	path, err := find("chromium", "chromium-browser", "google-chrome")
	if err != nil {
		missing(t, "no chromium in PATH: install chromium")
	}
	return path
}

// Start starts a browser that takes the certificate of any local issuer.
func Start(t testing.TB, o Options) *Browser {
	t.Helper()
	path := Need(t)
	settings := "scriptEnabled=true"
	if o.NoScript {
		settings = "scriptEnabled=false"
	}
	flags := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path),
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.WindowSize(desk, 900), chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("ignore-certificate-errors", true), chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("blink-settings", settings), chromedp.WSURLReadTimeout(time.Minute))
	ctx, cancel := chromedp.NewExecAllocator(context.WithoutCancel(t.Context()), flags...)
	t.Cleanup(cancel)
	ctx, stop := chromedp.NewContext(ctx)
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // waits for the browser, so that its folder can go
		stop()
	})
	ctx, cancel = context.WithTimeout(ctx, 4*time.Minute)
	t.Cleanup(cancel)
	return &Browser{t: t, ctx: ctx}
}

func find(names ...string) (string, error) {
	for _, name := range names {
		if p, err := exec.LookPath(name); err == nil {
			return p, nil
		}
	}
	return "", exec.ErrNotFound
}

// missing skips, or fails where nothing may be skipped.
func missing(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("MAYFLY_TEST_REQUIRE") == "all" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// Step is one thing that a person does.
type Step = chromedp.Action[chromedp.Void]

// Do takes steps in order.
func (b *Browser) Do(what string, steps ...Step) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		where, _ := chromedp.Run(b.ctx, chromedp.Location())
		b.t.Fatalf("%s, at %s: %v", what, where, err)
	}
}

// Open goes to an address, Click clicks, See waits until something is visible,
// Type writes into a field.
func Open(url string) Step    { return chromedp.Navigate(url) }
func Click(css string) Step   { return chromedp.Click(chromedp.CSS(css)) }
func See(css string) Step     { return chromedp.WaitVisible(chromedp.CSS(css)) }
func Type(css, s string) Step { return chromedp.SendKeys(chromedp.CSS(css), s) }

// Value sets a field whatever was in it.
func Value(css, s string) Step {
	return chromedp.SetAttributeValue(chromedp.CSS(css), "value", s)
}

// Text is what an element says.
func (b *Browser) Text(css string) string {
	b.t.Helper()
	got, err := chromedp.Run(b.ctx, chromedp.TextContent(chromedp.CSS(css)))
	if err != nil {
		b.t.Fatalf("read %s: %v", css, err)
	}
	return strings.Join(strings.Fields(got), " ")
}

// Evaluate returns the value of a JavaScript expression, a promise's when it is
// one.
func (b *Browser) Evaluate(expression string) string {
	b.t.Helper()
	got, err := chromedp.Run(b.ctx, chromedp.Evaluate[string](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("evaluate: %v", err)
	}
	return got
}

// Scheme is a colour scheme that the reader prefers.
func Scheme(name string) Step {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		return t.Call(ctx, "Emulation.setEmulatedMedia", map[string]any{
			"features": []map[string]string{{"name": "prefers-color-scheme", "value": name}},
		}, nil)
	})
}

// Zone is a time zone that the reader is in, such as Asia/Kolkata.
func Zone(name string) Step {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		return t.Call(ctx, "Emulation.setTimezoneOverride", map[string]any{"timezoneId": name}, nil)
	})
}

// Script lets the pages that are opened from now on run script, or not. Evaluate
// wants it, and does not run what an open page was kept from.
func Script(on bool) Step {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		return t.Call(ctx, "Emulation.setScriptExecutionDisabled", map[string]any{"value": !on}, nil)
	})
}

// Desk and Telephone set the width of the screen.
func Desk() Step      { return chromedp.EmulateViewport(desk, 900) }
func Telephone() Step { return chromedp.EmulateViewport(telephone, 900) }

// Pictures keeps a page among the test's artifacts at a desk's width and a
// telephone's, light and dark, for somebody to look at, and fails where it is
// wider than the screen. extra are taken after each loading.
func (b *Browser) Pictures(name, url string, extra ...Step) {
	b.t.Helper()
	b.pictures(name, url, extra, func(string, int) {})
	b.Do("back to the desk", Desk())
}

// pictures is Pictures, and calls f after each picture with its name and width.
func (b *Browser) pictures(name, url string, extra []Step, f func(as string, width int)) {
	b.t.Helper()
	for _, width := range []int{desk, telephone} {
		for _, scheme := range []string{"light", "dark"} {
			as := fmt.Sprintf("%s-%d-%s", name, width, scheme)
			b.Do("open "+as, append([]Step{Scheme(scheme), chromedp.EmulateViewport(int64(width), 900), Open(url), See("h1")}, extra...)...)
			b.Picture(as, width)
			f(as, width)
		}
	}
}

// Hold looks at a page as different readers see it: as
// Pictures does, and on a telephone without script. It fails where axe-core finds
// a fault, and where a table at a desk breaks a word.
func (b *Browser) Hold(axe Axe, name, url string, extra ...Step) {
	b.t.Helper()
	b.pictures(name, url, extra, func(as string, width int) {
		b.t.Helper()
		b.Accessible(axe, as)
		if broken := b.Evaluate(brokenWords); width == desk && broken != "" {
			b.t.Errorf("%s breaks words of a table: %s", as, broken)
		}
	})
	b.Do("open "+name+" without script", append([]Step{Script(false), Open(url), See("h1")}, extra...)...)
	b.Do("let axe-core run", Script(true), Scheme("light"))
	b.Accessible(axe, name+", without script")
	b.Do("back to the desk", Desk())
}

// brokenWords is a JavaScript expression for the words in tables that stand in
// more than one line: runs of letters and digits, since a line may end after
// anything else.
const brokenWords = `(() => {
	const broken = [], range = document.createRange();
	for (const cell of document.querySelectorAll("th, td")) {
		const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
		for (let text; text = texts.nextNode();) {
			for (const word of text.data.matchAll(/[\p{L}\p{N}]+/gu)) {
				range.setStart(text, word.index);
				range.setEnd(text, word.index + word[0].length);
				if (new Set(Array.from(range.getClientRects(), (r) => r.top)).size > 1) broken.push(word[0]);
			}
		}
	}
	return broken.join(" ");
})()`

// Picture keeps what is shown now, on a screen of width.
func (b *Browser) Picture(name string, width int) {
	b.t.Helper()
	shot, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		b.t.Fatalf("picture of %s: %v", name, err)
	}
	if c, err := png.DecodeConfig(bytes.NewReader(shot)); err != nil || c.Width > width {
		b.t.Errorf("%s is %d px wide on a screen of %d (%v)", name, c.Width, width, err)
	}
	if err := os.WriteFile(filepath.Join(b.t.ArtifactDir(), name+".png"), shot, 0o600); err != nil {
		b.t.Fatal(err)
	}
}
