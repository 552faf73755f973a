package tokensource

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Login gets an ID token for a person from an OpenID provider. It uses a device
// code (RFC 8628), or a browser on this machine with an authorization code and PKCE
// (RFC 7636, RFC 8252 section 7.3).
//
// The token comes directly from the provider's token endpoint over TLS, so Login
// does not check its signature (OpenID Connect Core 3.1.3.7 item 6). Login checks
// issuer, audience, nonce and expiry. mayfly's issuer verifies all of the token.
type Login struct {
	// Issuer is the provider's exact issuer URL: https, or http on loopback.
	Issuer string
	// ClientID is the client ID of mayfly at the provider.
	ClientID string
	// Show shows the person the URL to open. Device requires it. Browser calls it
	// if Open failed or is nil.
	Show func(LoginPrompt)
	// Open opens a URL in the person's browser. If it is nil, Browser calls only Show.
	Open func(url string) error
	// Transport sends the requests to the provider; nil means http.DefaultTransport.
	Transport http.RoundTripper
}

// LoginPrompt has the data that a person needs to log in. Its strings come from
// the provider.
type LoginPrompt struct {
	URL string // for the person to open
	// Code is the code to type at URL. It is empty for Browser.
	Code      string
	ExpiresAt time.Time
}

// LoginToken is the result of a login. IDToken is a secret.
type LoginToken struct {
	IDToken   string
	Issuer    string
	ClientID  string
	Subject   string // for display: email, else sub
	IssuedAt  time.Time
	ExpiresAt time.Time
}

// LoginError is a provider's refusal (RFC 6749 section 5.2).
type LoginError struct {
	Code        string // such as access_denied
	Description string
	Status      int
}

func (e *LoginError) Error() string {
	switch {
	case e.Description != "":
		return fmt.Sprintf("the login provider answered %s: %s", e.Code, e.Description)
	case e.Code != "":
		return "the login provider answered " + e.Code
	}
	return fmt.Sprintf("the login provider answered with status %d", e.Status)
}

// ErrNoDeviceFlow means that the provider has no device authorization endpoint.
var ErrNoDeviceFlow = errors.New("the login provider offers no device login")

// Bounds of a provider's answers, and of one request to it.
const (
	maxLoginBody    = 256 << 10
	maxLoginToken   = 16 << 10
	loginTimeout    = 20 * time.Second
	loginScope      = "openid email profile"
	maxDeviceExpiry = 30 * time.Minute
)

// loginProvider has the members of a discovery document that a login needs
// (OpenID Connect Discovery 1.0 section 3, RFC 8628 section 4).
type loginProvider struct {
	Issuer   string   `json:"issuer"`
	AuthURL  string   `json:"authorization_endpoint"`
	TokenURL string   `json:"token_endpoint"`
	Device   string   `json:"device_authorization_endpoint"`
	PKCE     []string `json:"code_challenge_methods_supported"`
}

// loginClient talks to one provider.
type loginClient struct {
	login Login
	http  *http.Client
	p     loginProvider
}

// discover reads the provider's discovery document. Endpoints may be on other
// hosts, as at large providers. They must be https, unless the issuer itself is
// http on loopback.
func (l Login) discover(ctx context.Context) (*loginClient, error) {
	if err := secureURL(l.Issuer, true); err != nil {
		return nil, fmt.Errorf("login issuer: %w", err)
	}
	if l.ClientID == "" {
		return nil, errors.New("login: no client id")
	}
	c := &loginClient{login: l, http: &http.Client{
		Transport: l.Transport,
		Timeout:   loginTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("the login provider redirects, which is refused")
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(l.Issuer, "/")+"/.well-known/openid-configuration", nil)
	if err != nil {
		return nil, err
	}
	if err := c.do(req, &c.p); err != nil {
		return nil, fmt.Errorf("discover login provider %s: %w", l.Issuer, err)
	}
	if c.p.Issuer != l.Issuer {
		return nil, fmt.Errorf("discover login provider %s: the document names the issuer %q", l.Issuer, c.p.Issuer)
	}
	plain := strings.HasPrefix(l.Issuer, "http:")
	for _, u := range []string{c.p.AuthURL, c.p.TokenURL, c.p.Device} {
		if u == "" {
			continue
		}
		if err := secureURL(u, plain); err != nil {
			return nil, fmt.Errorf("discover login provider %s: endpoint: %w", l.Issuer, err)
		}
	}
	if c.p.TokenURL == "" {
		return nil, fmt.Errorf("discover login provider %s: no token endpoint", l.Issuer)
	}
	return c, nil
}

// secureURL accepts https, and http to loopback if plain is set.
func secureURL(raw string, plain bool) error {
	u, err := url.Parse(raw)
	if err != nil {
		return err
	}
	switch {
	case u.Host == "" || u.User != nil || u.Fragment != "":
		return fmt.Errorf("%q is not a plain URL", raw)
	case u.Scheme == "https":
		return nil
	case u.Scheme == "http" && plain && loopbackHost(u.Hostname()):
		return nil
	}
	return fmt.Errorf("%q is neither https nor http on loopback", raw)
}

func loopbackHost(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// post sends a form to an endpoint and decodes its JSON answer.
func (c *loginClient) post(ctx context.Context, endpoint string, form url.Values, into any) error {
	form.Set("client_id", c.login.ClientID)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return c.do(req, into)
}

func (c *loginClient) do(req *http.Request, into any) error {
	req.Header.Set("Accept", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			return ue.Err // without the URL, which may contain secrets
		}
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxLoginBody+1))
	if err != nil {
		return err
	}
	if len(raw) > maxLoginBody {
		return fmt.Errorf("the answer is over %d bytes", maxLoginBody)
	}
	if resp.StatusCode != http.StatusOK {
		var e struct {
			Error       string `json:"error"`
			Description string `json:"error_description"`
		}
		_ = json.Unmarshal(raw, &e) // for a page instead of JSON, only the status is known
		return &LoginError{Code: excerpt([]byte(e.Error)), Description: excerpt([]byte(e.Description)), Status: resp.StatusCode}
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("the answer is not JSON: %w", err)
	}
	return nil
}

// accept makes the checks of an ID token that a client must make, and describes the token.
func (c *loginClient) accept(raw, nonce string, now time.Time) (*LoginToken, error) {
	if raw == "" {
		return nil, errors.New("the login provider sent no ID token")
	}
	claims, err := payload(raw)
	if err != nil {
		return nil, err
	}
	switch {
	case claims.Issuer != c.login.Issuer:
		return nil, fmt.Errorf("the ID token's issuer is %q, not %q", claims.Issuer, c.login.Issuer)
	case !slices.Contains(claims.Audience, c.login.ClientID):
		return nil, fmt.Errorf("the ID token is for %q, not for %q", []string(claims.Audience), c.login.ClientID)
	case nonce != "" && claims.Nonce != nonce:
		return nil, errors.New("the ID token's nonce is not the one that was sent")
	case !now.Before(time.Unix(claims.ExpiresAt, 0)):
		return nil, errors.New("the ID token has expired already: check this machine's clock")
	}
	subject := claims.Email
	if subject == "" {
		subject = claims.Subject
	}
	return &LoginToken{
		IDToken: raw, Issuer: claims.Issuer, ClientID: c.login.ClientID, Subject: subject,
		IssuedAt: time.Unix(claims.IssuedAt, 0).UTC(), ExpiresAt: time.Unix(claims.ExpiresAt, 0).UTC(),
	}, nil
}

// loginClaims has the claims that a client reads in its own ID token.
type loginClaims struct {
	Issuer    string        `json:"iss"`
	Subject   string        `json:"sub"`
	Email     string        `json:"email"`
	Audience  loginAudience `json:"aud"`
	Nonce     string        `json:"nonce"`
	IssuedAt  int64         `json:"iat"`
	ExpiresAt int64         `json:"exp"`
}

// loginAudience is a string or an array of strings (RFC 7519 section 4.1.3).
type loginAudience []string

// UnmarshalJSON implements json.Unmarshaler.
func (a *loginAudience) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*a = loginAudience{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

// payload returns the claims of a compact JWS and does not verify the signature.
func payload(raw string) (*loginClaims, error) {
	if len(raw) > maxLoginToken {
		return nil, fmt.Errorf("the ID token is over %d bytes", maxLoginToken)
	}
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return nil, errors.New("the ID token is not a compact JWS")
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(parts[1])
	if err != nil {
		return nil, fmt.Errorf("the ID token's payload: %w", err)
	}
	c := &loginClaims{}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("the ID token's payload: %w", err)
	}
	return c, nil
}
