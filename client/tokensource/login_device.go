package tokensource

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// deviceAnswer is the answer of RFC 8628 section 3.2.
type deviceAnswer struct {
	DeviceCode string `json:"device_code"`
	UserCode   string `json:"user_code"`
	URI        string `json:"verification_uri"`
	URIWhole   string `json:"verification_uri_complete"`
	ExpiresIn  int64  `json:"expires_in"`
	Interval   int64  `json:"interval"`
}

// tokenAnswer has the members of OpenID Connect Core 3.1.3.3 that a login needs.
// Access and refresh tokens are not read.
type tokenAnswer struct {
	IDToken string `json:"id_token"`
}

// maxDeviceInterval bounds the seconds between two polls that a provider may
// request.
const maxDeviceInterval = 60

// deviceGrant is the grant type of RFC 8628 section 3.4.
const deviceGrant = "urn:ietf:params:oauth:grant-type:device_code"

// Device logs in with a code that the person types on any other machine. Its errors
// include ErrNoDeviceFlow, and *LoginError if the person or the provider refused.
func (l Login) Device(ctx context.Context) (*LoginToken, error) {
	if l.Show == nil {
		return nil, errors.New("login: there is no terminal to show the code on")
	}
	c, err := l.discover(ctx)
	if err != nil {
		return nil, err
	}
	if c.p.Device == "" {
		return nil, ErrNoDeviceFlow
	}
	var d deviceAnswer
	if err := c.post(ctx, c.p.Device, url.Values{"scope": {loginScope}}, &d); err != nil {
		return nil, fmt.Errorf("ask for a device code: %w", err)
	}
	if d.DeviceCode == "" || d.UserCode == "" || d.URI == "" {
		return nil, errors.New("ask for a device code: the answer lacks the code or the address")
	}
	// Check the address, because the person is about to open it.
	if err := secureURL(d.URI, strings.HasPrefix(l.Issuer, "http:")); err != nil {
		return nil, fmt.Errorf("ask for a device code: address: %w", err)
	}
	life := maxDeviceExpiry
	if s := d.ExpiresIn; s > 0 && s < int64(maxDeviceExpiry/time.Second) {
		life = time.Duration(s) * time.Second
	}
	ctx, cancel := context.WithTimeoutCause(ctx, life, errors.New("the code has expired before the login was finished"))
	defer cancel()
	l.Show(LoginPrompt{URL: d.URI, Code: d.UserCode, ExpiresAt: time.Now().Add(life)})
	return c.poll(ctx, d)
}

// poll requests the token until the person has answered (RFC 8628 section 3.5).
func (c *loginClient) poll(ctx context.Context, d deviceAnswer) (*LoginToken, error) {
	interval := time.Duration(min(d.Interval, maxDeviceInterval)) * time.Second
	if d.Interval <= 0 {
		interval = 5 * time.Second
	}
	timer := time.NewTimer(interval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-timer.C:
		}
		var t tokenAnswer
		err := c.post(ctx, c.p.TokenURL, url.Values{"grant_type": {deviceGrant}, "device_code": {d.DeviceCode}}, &t)
		if err == nil {
			return c.accept(t.IDToken, "", time.Now())
		}
		var refused *LoginError
		switch {
		case !errors.As(err, &refused):
			// The answer was lost: section 3.5 requires slower polls.
			interval = min(2*interval, time.Minute)
		case refused.Code == "authorization_pending":
		case refused.Code == "slow_down":
			interval += 5 * time.Second
		default:
			return nil, refused
		}
		timer.Reset(interval)
	}
}
