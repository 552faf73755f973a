package cli

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/client/tokensource"
	"github.com/mayfly-ca/mayfly/client/wire"
)

type loginCommand struct {
	Provider string `help:"Name of the login provider, where the issuer has several." placeholder:"NAME"`
	Device   bool   `help:"Show a code to type in a browser on any machine, as where there is none here."`
	Forget   bool   `hidden:"" help:"The same as mayfly logout."`
}

func (loginCommand) Help() string {
	return `Opens the browser; without one, or with --device, it shows a code to type on another machine. The ID token is kept in a 0600 file in the user's configuration folder until it expires. Admin commands want one that was issued within the last hour. Later commands without --issuer go to the issuer of the last login.

A login also serves as a token source: a laptop that a rule admits can use mayfly exec.`
}

// Run logs in.
func (c *loginCommand) Run(ctx context.Context, p *program) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	if err := p.needIssuer(); err != nil {
		return err
	}
	store, err := loginStore()
	if err != nil {
		return err
	}
	if c.Forget {
		return p.logout(store)
	}
	info, err := p.info(ctx)
	if err != nil {
		return err
	}
	provider, err := c.choose(info.Login)
	if err != nil {
		return err
	}
	t, err := c.login(ctx, p, provider)
	if err != nil {
		return loginFailure(provider, err)
	}
	err = store.Save(p.issuerKey(), tokensource.StoredLogin{Provider: provider.Provider, Issuer: t.Issuer, ClientID: t.ClientID,
		Subject: t.Subject, IDToken: t.IDToken, IssuedAt: t.IssuedAt, ExpiresAt: t.ExpiresAt,
		CAFile: p.CAFile, TrustAnchor: p.TrustAnchor}, time.Now())
	if err != nil {
		return failf(exitFailed, "mayfly must be able to write "+store.Path, "%w", err)
	}
	if p.JSON {
		p.json(map[string]any{"provider": provider.Provider, "subject": t.Subject, "expires_at": t.ExpiresAt})
		return nil
	}
	p.note("logged in as %s until %s", t.Subject, p.instant(t.ExpiresAt))
	return nil
}

type logoutCommand struct{}

func (logoutCommand) Help() string {
	return `Deletes the login from the user's configuration folder, and with it the issuer that it remembers. The provider's own session in the browser goes on.`
}

// Run logs out of the issuer.
func (logoutCommand) Run(p *program) error {
	store, err := loginStore()
	if err != nil {
		return err
	}
	if p.Issuer == "" {
		if err := p.recallIssuer(); err != nil {
			return err
		}
	}
	if p.Issuer == "" {
		p.note("there was no login")
		return nil
	}
	return p.logout(store)
}

func (p *program) logout(store tokensource.LoginStore) error {
	found, err := store.Remove(p.issuerKey())
	if err != nil {
		return failf(exitFailed, "delete "+store.Path+" by hand", "%w", err)
	}
	if !found {
		p.note("there was no login for %s", p.Issuer)
		return nil
	}
	p.note("logged out of %s", p.Issuer)
	return nil
}

// recallIssuer sets the issuer of the last login, if there is one.
func (p *program) recallIssuer() error {
	store, err := loginStore()
	if err != nil {
		return nil // no home folder, as in a service: no login is stored
	}
	issuer, login, err := store.Latest()
	switch {
	case errors.Is(err, tokensource.ErrNoLogin):
		return nil
	case err != nil:
		return failf(exitFailed, "name the issuer with --issuer, or delete "+store.Path, "%w", err)
	}
	p.Issuer = issuer
	if p.CAFile == "" && p.TrustAnchor == "" {
		p.CAFile, p.TrustAnchor = login.CAFile, login.TrustAnchor
	}
	return nil
}

type whoamiCommand struct{}

func (whoamiCommand) Help() string {
	return `Asks the issuer, which decides the role by its policy now. Of MAYFLY_ADMIN_TOKEN, else of the stored login.`
}

// Run shows the person as the issuer sees them.
func (whoamiCommand) Run(ctx context.Context, p *program) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	calls, err := p.admin()
	if err != nil {
		return err
	}
	a, err := calls.Whoami(ctx)
	if err != nil {
		return err
	}
	if p.JSON {
		p.body(a.Body)
		return nil
	}
	w := a.Value
	p.printf("%s\n", escapeText(w.Name))
	p.facts("  ", []fact{
		{"role", w.Role + ", by rule " + w.Rule, nil}, {"until", p.instant(w.Until), nil}, {"subject", w.Subject, nil}, {"issuer", p.Issuer, nil},
	})
	return nil
}

func (c *loginCommand) choose(offered []wire.Login) (wire.Login, error) {
	var names []string
	for _, l := range offered {
		if l.Provider == c.Provider || (c.Provider == "" && len(offered) == 1) {
			return l, nil
		}
		names = append(names, l.Provider)
	}
	switch {
	case len(offered) == 0:
		return wire.Login{}, failf(exitFailed, "add a provider of type people, and a rule that grants it a role, to the issuer's policy", "the issuer offers no login")
	case c.Provider == "":
		return wire.Login{}, usagef("choose with --provider: "+strings.Join(names, ", "), "the issuer offers several logins")
	}
	return wire.Login{}, usagef("it offers: "+strings.Join(names, ", "), "the issuer offers no login %q", c.Provider)
}

func (c *loginCommand) login(ctx context.Context, p *program, provider wire.Login) (*tokensource.LoginToken, error) {
	l := tokensource.Login{Issuer: provider.Issuer, ClientID: provider.ClientID, Open: openBrowser, Show: func(q tokensource.LoginPrompt) {
		if q.Code == "" {
			p.note("open this address to log in: %s", q.URL)
			return
		}
		p.note("open %s and type the code %s", q.URL, q.Code)
	}}
	if c.Device {
		return l.Device(ctx)
	}
	if !canBrowse() {
		t, err := l.Device(ctx)
		if !errors.Is(err, tokensource.ErrNoDeviceFlow) {
			return t, err
		}
		l.Open = nil
	}
	return l.Browser(ctx)
}

// loginFailure explains a failed login.
func loginFailure(l wire.Login, err error) error {
	var refused *tokensource.LoginError
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, tokensource.ErrNoDeviceFlow):
		return failf(exitFailed, "leave out --device: the address that is shown can be opened in a browser on this machine", "%s: %w", l.Issuer, err)
	case errors.As(err, &refused) && refused.Code == "access_denied":
		return failf(exitFailed, "log in as someone whom the provider admits to client "+l.ClientID, "%w", err)
	case errors.As(err, &refused) && (refused.Code == "unauthorized_client" || refused.Code == "invalid_client"):
		return failf(exitFailed, "at the provider, client "+l.ClientID+" must be a public client with redirects to http://127.0.0.1 and, for --device, the device grant", "%w", err)
	}
	return failf(exitFailed, "check that "+l.Issuer+" is reachable from here and knows the client "+l.ClientID, "log in with %s: %w", l.Provider, err)
}

// canBrowse guesses whether a browser can open on this machine.
func canBrowse() bool {
	if os.Getenv("SSH_CONNECTION") != "" || os.Getenv("CI") != "" {
		return false
	}
	return runtime.GOOS == "darwin" || os.Getenv("DISPLAY") != "" || os.Getenv("WAYLAND_DISPLAY") != ""
}

// openBrowser opens a URL in the desktop's browser. Discovery has checked that the
// URL is http(s). openBrowser does not wait for the browser.
func openBrowser(u string) error {
	name := "xdg-open"
	if runtime.GOOS == "darwin" {
		name = "open"
	}
	cmd := exec.Command(name, u)
	if err := cmd.Start(); err != nil {
		return err
	}
	go cmd.Wait()
	return nil
}

// loginStore returns the store of logins.
func loginStore() (tokensource.LoginStore, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return tokensource.LoginStore{}, failf(exitFailed, "set HOME or XDG_CONFIG_HOME, or use MAYFLY_ADMIN_TOKEN", "find the folder of stored logins: %w", err)
	}
	return tokensource.LoginStore{Path: filepath.Join(dir, "mayfly", "login.json")}, nil
}

// issuerKey returns the issuer's URL in the form that the login store uses.
func (p *program) issuerKey() string { return strings.TrimRight(p.Issuer, "/") }
