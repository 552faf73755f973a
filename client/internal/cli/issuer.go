package cli

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/client"
	"github.com/mayfly-ca/mayfly/client/internal/api"
	"github.com/mayfly-ca/mayfly/client/tokensource"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// adminTimeout bounds one call of an admin command.
const adminTimeout = 30 * time.Second

// issuer returns the issuer's client for the global flags.
func (p *program) issuer() (*client.Issuer, error) {
	if err := p.needIssuer(); err != nil {
		return nil, err
	}
	i, err := client.NewIssuer(p.Issuer, p.CAFile, p.TrustAnchor)
	if err != nil {
		return nil, usagef(strings.Join(hintsOf(err), " "), "%w", err)
	}
	if p.Audience != "" {
		if err := tokensource.CheckAudience(p.Audience); err != nil {
			return nil, usagef("leave --audience and MAYFLY_AUDIENCE out: the issuer names its own", "%w", err)
		}
	}
	return i, nil
}

func (p *program) info(ctx context.Context) (wire.Info, error) {
	i, err := p.issuer()
	if err != nil {
		return wire.Info{}, err
	}
	return i.Info(ctx)
}

// admin returns the client of the admin API. Its token is MAYFLY_ADMIN_TOKEN, or
// else the token of the stored login.
func (p *program) admin() (*api.Client, error) {
	p.asAdmin = true
	i, err := p.issuer()
	if err != nil {
		return nil, err
	}
	hc := *i.HTTPClient()
	hc.Timeout = adminTimeout
	token := func(context.Context) (string, error) { return os.Getenv("MAYFLY_ADMIN_TOKEN"), nil }
	if os.Getenv("MAYFLY_ADMIN_TOKEN") == "" {
		store, err := loginStore()
		if err != nil {
			return nil, err
		}
		login := tokensource.LoginSource{Store: store, Issuer: p.issuerKey()}
		token = func(ctx context.Context) (string, error) { return login.Token(ctx, "") }
	}
	return api.New(api.Config{Issuer: i.String(), HTTPClient: &hc, Token: token})
}

// source returns the source of the job's ID tokens. With auto and no recognised
// platform, it uses the person's stored login.
func (p *program) source() (tokensource.Source, error) {
	s, err := tokensource.Parse(p.TokenSource)
	if err == nil {
		return s, nil
	}
	var te *tokensource.Error
	if !errors.As(err, &te) {
		return nil, usagef("set --token-source to auto, github, gitlab, fly, file:PATH, env:NAME or exec:CMD", "%w", err)
	}
	if te.Source != "auto" {
		return nil, err
	}
	store, serr := loginStore()
	if serr != nil {
		return nil, err
	}
	if p.Issuer == "" {
		if err := p.recallIssuer(); err != nil {
			return nil, err
		}
	}
	if _, ferr := store.Find(p.issuerKey(), time.Now()); ferr != nil {
		if errors.Is(ferr, tokensource.ErrNoLogin) {
			return nil, err
		}
		return nil, ferr
	}
	return tokensource.LoginSource{Store: store, Issuer: p.issuerKey()}, nil
}

// json prints v as one line.
func (p *program) json(v any) {
	raw, err := json.Marshal(v)
	if err != nil { // only types of this package and of wire reach this
		raw = []byte(`{}`)
	}
	p.body(raw)
}
