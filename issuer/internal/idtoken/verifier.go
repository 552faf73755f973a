package idtoken

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// Leeway is the allowed clock difference for exp, nbf and iat.
const Leeway = 30 * time.Second

// AudiencePrefix is the start of every audience of mayfly. A URL is never such an
// audience, because a runner hands out tokens for any URL.
const AudiencePrefix = "mayfly:"

// maxTokenID bounds jti, which is part of the store's key.
const maxTokenID = 256

// Options configures how a Verifier fetches keys. The zero value is ready for use.
type Options struct {
	// Logger logs when a provider stops and starts answering; nil discards.
	Logger *slog.Logger
	// RootCAs are trusted for https providers; nil means the system's.
	RootCAs *x509.CertPool
}

// Verifier verifies tokens of a fixed list of providers. It is safe for concurrent
// use. It refreshes its key sets until Close.
type Verifier struct {
	options  Options
	byIssuer map[string]*providerVerifier
}

// providerVerifier is a provider with its keys, which successive Verifiers may share.
type providerVerifier struct {
	Provider
	keys *keySet
}

// NewVerifier starts fetching the keys of providers and returns at once. If a provider
// does not answer, it tries again; until then, Verify returns *UnavailableError for
// its tokens. NewVerifier returns the errors of Provider.Complete and CheckDistinct.
func NewVerifier(providers []Provider, o Options) (*Verifier, error) {
	return newVerifier(providers, o, nil)
}

// With returns a Verifier of other providers that replaces v. Unchanged providers keep
// their key sets; removed ones are no longer refreshed. v still works with the keys
// that it has. Close only the new Verifier. On an error, v is unchanged.
func (v *Verifier) With(providers []Provider) (*Verifier, error) {
	next, err := newVerifier(providers, v.options, v.byIssuer)
	if err != nil {
		return nil, err
	}
	for issuer, t := range v.byIssuer {
		if kept, ok := next.byIssuer[issuer]; !ok || kept.keys != t.keys {
			t.keys.close()
		}
	}
	return next, nil
}

func newVerifier(providers []Provider, o Options, have map[string]*providerVerifier) (*Verifier, error) {
	if len(providers) == 0 {
		return nil, errors.New("no token provider")
	}
	complete := make([]Provider, 0, len(providers))
	for _, p := range providers {
		p, err := p.Complete()
		if err != nil {
			return nil, fmt.Errorf("provider %s: %w", p.Name, err)
		}
		complete = append(complete, p)
	}
	if err := CheckDistinct(complete); err != nil {
		return nil, err
	}
	v := &Verifier{options: o, byIssuer: make(map[string]*providerVerifier, len(complete))}
	for _, p := range complete {
		t := &providerVerifier{Provider: p}
		if old, ok := have[p.Issuer]; ok && sameKeys(old.Provider, p) {
			t.keys = old.keys
		} else {
			t.keys = newKeySet(p.Name, newFetcher(p, o.RootCAs), o.Logger)
		}
		v.byIssuer[p.Issuer] = t
	}
	return v, nil
}

// sameKeys reports whether p's keys are fetched in the same way as old's.
func sameKeys(old, p Provider) bool {
	return old.Name == p.Name && old.Issuer == p.Issuer && old.JWKSURI == p.JWKSURI &&
		old.UnsafeHTTP == p.UnsafeHTTP && old.UnsafeAllowPrivate == p.UnsafeAllowPrivate
}

// Close stops all fetching and waits for it. Tokens of known keys still verify for as
// long as those keys may be used.
func (v *Verifier) Close() {
	var wg sync.WaitGroup
	for _, t := range v.byIssuer {
		wg.Go(t.keys.close)
	}
	wg.Wait()
}

// Verify checks raw, a compact JWS, for audience and returns its claims. The audience
// for a provider of type people is always its client id. Errors: *TokenError;
// *UnavailableError, also when ctx ends first.
func (v *Verifier) Verify(ctx context.Context, raw, audience string) (Claims, error) {
	t, err := parseJWS(raw)
	if err != nil {
		return Claims{}, err
	}
	issuer, ok := t.object[ClaimIssuer].(string)
	if !ok {
		return Claims{}, refuse("iss is missing or not a string")
	}
	p, ok := v.byIssuer[issuer]
	if !ok {
		return Claims{}, refuse("its issuer is none of the providers of this policy")
	}
	// The cheap checks come first: an expired token causes no signature check and no
	// fetch.
	c, err := p.check(t, audience, time.Now())
	if err != nil {
		return Claims{}, err
	}
	key, err := p.keys.key(ctx, t.kid, t.alg)
	if err != nil {
		return Claims{}, err
	}
	if err := t.verify(key); err != nil {
		return Claims{}, &TokenError{Public: "its signature does not verify", Err: err}
	}
	c.verified = true
	return Claims{c}, nil
}

// Restore returns claims that a Verifier verified at a login and that the issuer has
// kept in its own store since. They count only as a person's claims: the provider must
// still be of type people with the same issuer and audience. Restore checks no times;
// a login has its own. Never pass it data from outside.
func (v *Verifier) Restore(provider string, payload []byte) (Claims, error) {
	for _, t := range v.byIssuer {
		if t.Name != provider || t.Type != People {
			continue
		}
		c, err := readClaims(t.Provider, payload)
		if err != nil {
			return Claims{}, fmt.Errorf("restore login: %w", err)
		}
		if c.issuer != t.Issuer || c.audience != t.ClientID || c.subject == "" {
			return Claims{}, refuse("it belongs to another provider than %s is now; log in again", provider)
		}
		c.verified, c.restored = true, true
		return Claims{c}, nil
	}
	return Claims{}, refuse("provider %s is no longer one of people; log in again", provider)
}

// check checks everything but the signature: header, audience, times, and the rules of
// the provider's type.
func (p *providerVerifier) check(t *jws, audience string, now time.Time) (*claims, error) {
	if !slices.Contains(p.Algorithms, t.alg) {
		return nil, refuse("alg is not one that provider %s is pinned to (%s)", p.Name, strings.Join(p.Algorithms, ", "))
	}
	c := &claims{provider: p.Provider, issuer: p.Issuer, payload: t.payload, object: t.object}
	var err error
	if c.audience, err = p.checkAudience(t.object, audience); err != nil {
		return nil, err
	}
	if c.subject, _ = t.object[ClaimSubject].(string); c.subject == "" {
		return nil, refuse("sub is missing or not a string")
	}
	if err := p.checkTokenID(c); err != nil {
		return nil, err
	}
	if err := p.checkTimes(c, now); err != nil {
		return nil, err
	}
	if p.Type == People {
		return c, p.checkPerson(t)
	}
	return c, nil
}

func (p *providerVerifier) checkAudience(object map[string]any, want string) (string, error) {
	switch {
	case p.Type == People:
		want = p.ClientID
	case !strings.HasPrefix(want, AudiencePrefix):
		return "", refuse("no audience of mayfly was asked for")
	}
	got, err := oneAudience(object)
	if err != nil {
		return "", &TokenError{Public: err.Error() + "; want " + want}
	}
	if got != want {
		return "", refuse("it is made for audience %.80q, and this issuer takes %s", got, want)
	}
	return got, nil
}

func (p *providerVerifier) checkTokenID(c *claims) error {
	v, ok := c.object[ClaimID]
	if !ok && !p.Type.SingleUse() {
		return nil
	}
	if c.tokenID, ok = v.(string); !ok || c.tokenID == "" {
		return refuse("jti is missing or not a string")
	}
	if len(c.tokenID) > maxTokenID {
		return refuse("jti is longer than %d bytes", maxTokenID)
	}
	return nil
}

func (p *providerVerifier) checkTimes(c *claims, now time.Time) error {
	exp, ok, err := timeClaim(c.object, ClaimExpiry)
	if err != nil || !ok {
		return &TokenError{Public: "exp is missing or not a time", Err: err}
	}
	iat, ok, err := timeClaim(c.object, ClaimIssuedAt)
	if err != nil || !ok {
		return &TokenError{Public: "iat is missing or not a time", Err: err}
	}
	nbf, hasNBF, err := timeClaim(c.object, ClaimNotBefore)
	if err != nil {
		return &TokenError{Public: "nbf is not a time", Err: err}
	}
	switch limit := p.Type.MaxLifetime(); {
	case now.After(exp.Add(Leeway)):
		return refuse("it expired at %s (now %s)", stamp(exp), stamp(now))
	case iat.After(now.Add(Leeway)):
		return refuse("iat is in the future: %s (now %s)", stamp(iat), stamp(now))
	case hasNBF && nbf.After(now.Add(Leeway)):
		return refuse("nbf is in the future: %s (now %s)", stamp(nbf), stamp(now))
	case !exp.After(iat):
		return refuse("exp is not after iat")
	case exp.Sub(iat) > limit:
		return refuse("it lives for %v; tokens of type %s may live for %v", exp.Sub(iat), p.Type, limit)
	}
	c.issuedAt, c.expiresAt = iat, exp
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// checkPerson refuses other tokens that the same provider signs with the same keys:
// access tokens (RFC 9068), logout tokens (OpenID Connect Back-Channel Logout), and ID
// tokens for another client.
func (p *providerVerifier) checkPerson(t *jws) error {
	switch mediaType(t.typ) {
	case "at+jwt":
		return refuse("it is an access token; want an ID token")
	case "logout+jwt":
		return refuse("it is a logout token; want an ID token")
	}
	if _, ok := t.object[ClaimEvents]; ok {
		return refuse("it has events, as logout tokens do; want an ID token")
	}
	if azp, ok := t.object[ClaimAuthorizedParty]; ok && azp != any(p.ClientID) {
		return refuse("azp is another client; want %s", p.ClientID)
	}
	return nil
}
