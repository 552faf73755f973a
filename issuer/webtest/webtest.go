// Package webtest drives a real Chromium on the admin page, for tests of any package.
// It clicks as a person does, saves pictures of pages, and checks their accessibility
// with axe-core.
//
// It needs chromium (Debian: chromium) and, for Axe, npm. Where they are missing, a
// test is skipped, or fails with MAYFLY_TEST_REQUIRE=all.
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

// Screen widths, in CSS pixels.
const desk, telephone = 1280, 390

// Browser is a Chromium with one page open. It ends with the test.
type Browser struct {
	t   testing.TB
	ctx context.Context
}

// Options configures a Browser.
type Options struct {
	// NoScript turns JavaScript off.
	NoScript bool
}

// Need returns the path of Chromium, and skips the test if there is none. Call it
// first in a test whose later steps need the browser.
func Need(t testing.TB) string {
	t.Helper()
	path, err := find("chromium", "chromium-browser", "google-chrome")
	if err != nil {
		missing(t, "no chromium in PATH: install chromium")
	}
	return path
}

// Start starts a browser that accepts the certificate of any local issuer.
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
		_ = chromedp.Cancel(ctx) // waits for the browser, so that its folder can be removed
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

// missing skips the test, or fails it where skipping is not allowed.
func missing(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("MAYFLY_TEST_REQUIRE") == "all" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// Step is one action of a person.
type Step = chromedp.Action[chromedp.Void]

// Do runs steps in order.
func (b *Browser) Do(what string, steps ...Step) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		where, _ := chromedp.Run(b.ctx, chromedp.Location())
		b.t.Fatalf("%s, at %s: %v", what, where, err)
	}
}

// Open opens an address, Click clicks, See waits until an element is visible, Type
// types into a field.
func Open(url string) Step    { return chromedp.Navigate(url) }
func Click(css string) Step   { return chromedp.Click(chromedp.CSS(css)) }
func See(css string) Step     { return chromedp.WaitVisible(chromedp.CSS(css)) }
func Type(css, s string) Step { return chromedp.SendKeys(chromedp.CSS(css), s) }

// Value sets a field and replaces its content.
func Value(css, s string) Step {
	return chromedp.SetAttributeValue(chromedp.CSS(css), "value", s)
}

// Text returns the text of an element.
func (b *Browser) Text(css string) string {
	b.t.Helper()
	got, err := chromedp.Run(b.ctx, chromedp.TextContent(chromedp.CSS(css)))
	if err != nil {
		b.t.Fatalf("read %s: %v", css, err)
	}
	return strings.Join(strings.Fields(got), " ")
}

// Evaluate returns the value of a JavaScript expression. It waits for a promise.
func (b *Browser) Evaluate(expression string) string {
	b.t.Helper()
	got, err := chromedp.Run(b.ctx, chromedp.Evaluate[string](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("evaluate: %v", err)
	}
	return got
}

// Scheme sets the colour scheme that the reader prefers.
func Scheme(name string) Step {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		return t.Call(ctx, "Emulation.setEmulatedMedia", map[string]any{
			"features": []map[string]string{{"name": "prefers-color-scheme", "value": name}},
		}, nil)
	})
}

// Zone sets the reader's time zone, such as Asia/Kolkata.
func Zone(name string) Step {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		return t.Call(ctx, "Emulation.setTimezoneOverride", map[string]any{"timezoneId": name}, nil)
	})
}

// Script turns scripts on or off for pages opened from now on. Evaluate needs scripts.
// It does not run the scripts that an open page was not allowed to run.
func Script(on bool) Step {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		return t.Call(ctx, "Emulation.setScriptExecutionDisabled", map[string]any{"value": !on}, nil)
	})
}

// Desk and Telephone set the width of the screen.
func Desk() Step      { return chromedp.EmulateViewport(desk, 900) }
func Telephone() Step { return chromedp.EmulateViewport(telephone, 900) }

// Pictures saves pictures of a page in the test's artifacts, for people to check: at
// the widths of a desk and a telephone, light and dark. It fails if the page is wider
// than the screen. extra runs after each loading.
func (b *Browser) Pictures(name, url string, extra ...Step) {
	b.t.Helper()
	b.pictures(name, url, extra, func(string, int) {})
	b.Do("back to the desk", Desk())
}

// pictures is like Pictures, and calls f after each picture with its name and width.
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

// Hold checks a page for different readers: as Pictures does, and on a telephone
// without script. It fails if axe-core finds a fault, or if a table at a desk's width
// breaks a word.
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

// brokenWords is a JavaScript expression for the words in tables that span more than
// one line. A word is a run of letters and digits, because a line may end after any
// other character.
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

// Picture saves the current page, on a screen of width.
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
