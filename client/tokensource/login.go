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

// Login gets an ID token for a person from an OpenID provider: by device code
// (RFC 8628) or in a browser on this machine by authorization code and PKCE
// (RFC 7636, RFC 8252 section 7.3).
//
// The token comes straight from the provider's token endpoint over TLS, so its
// signature is not checked here (OpenID Connect Core 3.1.3.7 item 6); issuer,
// audience, nonce and expiry are, and mayfly's issuer verifies all of it.
type Login struct {
	// Issuer is the provider's issuer, exactly: https, or http on loopback.
	Issuer string
	// ClientID is the provider's name for mayfly.
	ClientID string
	// Show tells the person where to go. Required for Device; for Browser it
	// is called when Open failed or is nil.
	Show func(LoginPrompt)
	// Open shows a URL in the person's browser. Nil: only Show.
	Open func(url string) error
	// Transport reaches the provider; nil is http.DefaultTransport.
	Transport http.RoundTripper
}

// LoginPrompt is what a person needs in order to log in. Its strings come from
// the provider.
type LoginPrompt struct {
	URL string // to be opened
	// Code is to be typed there; empty for Browser, and where URL carries it.
	Code      string
	ExpiresAt time.Time
}

// LoginToken is the outcome of a login. IDToken is a secret.
type LoginToken struct {
	IDToken   string
	Issuer    string
	ClientID  string
	Subject   string // for people: email, else sub
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

// ErrNoDeviceFlow: the provider offers no device authorization endpoint.
var ErrNoDeviceFlow = errors.New("the login provider offers no device login")

// Bounds of what a provider may answer, and of one request to it.
const (
	maxLoginBody    = 256 << 10
	maxLoginToken   = 16 << 10
	loginTimeout    = 20 * time.Second
	loginScope      = "openid email profile"
	maxDeviceExpiry = 30 * time.Minute
)

// loginProvider is the part of a discovery document that a login needs
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
// hosts, as large providers have them, but only https, unless the issuer
// itself is http on loopback.
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

// secureURL admits https, and http to loopback where plain is allowed.
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
			return ue.Err // its URL may carry what is not to be shown
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
		_ = json.Unmarshal(raw, &e) // a page in place of JSON leaves the status
		return &LoginError{Code: excerpt([]byte(e.Error)), Description: excerpt([]byte(e.Description)), Status: resp.StatusCode}
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("the answer is not JSON: %w", err)
	}
	return nil
}

// accept checks an ID token as far as a client must, and describes it.
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

// loginClaims is what a client looks at in its own ID token.
type loginClaims struct {
	Issuer    string        `json:"iss"`
	Subject   string        `json:"sub"`
	Email     string        `json:"email"`
	Audience  loginAudience `json:"aud"`
	Nonce     string        `json:"nonce"`
	IssuedAt  int64         `json:"iat"`
	ExpiresAt int64         `json:"exp"`
}

// loginAudience is a string or an array of them (RFC 7519 section 4.1.3).
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

// payload reads the claims of a compact JWS without its signature.
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
