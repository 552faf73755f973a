package tokensource

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"time"
)

// The retry policy of HTTP sources. GitHub publishes no limits, so these values
// follow its clients. They also retry the socket time-out, which @actions/core
// does not.
const (
	fetchAttempts = 5
	fetchTimeout  = 20 * time.Second // per attempt
	fetchTotal    = 90 * time.Second
	fetchDelayMin = 500 * time.Millisecond
	fetchDelayMax = 8 * time.Second
	maxAnswer     = 64 << 10
)

// fetcher asks an HTTP endpoint for a token, with retries.
type fetcher struct {
	client *http.Client
	// fallback is used after the first network error; nil means client.
	fallback *http.Client
	request  func(context.Context) (*http.Request, error)
	// parse returns the token in the body of a 200.
	parse func(body []byte) (string, error)
	// retry reports whether an answer with this status and body is transient. Nil
	// means only the statuses that always are.
	retry func(status int, body []byte) bool
}

// statusError is an answer that is not a success. Body is the endpoint's text,
// cleaned. It is never a token: tokens come only with 200.
type statusError struct {
	Status int
	Body   string
}

func (e *statusError) Error() string {
	if e.Body == "" {
		return fmt.Sprintf("answered %d %s", e.Status, http.StatusText(e.Status))
	}
	return fmt.Sprintf("answered %d %s: %s", e.Status, http.StatusText(e.Status), e.Body)
}

// temporaryError marks a transient error.
type temporaryError struct{ error }

func (e temporaryError) Unwrap() error { return e.error }

func temporary(err error) bool {
	var t temporaryError
	return errors.As(err, &t)
}

func (f *fetcher) fetch(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTotal)
	defer cancel()
	client := f.client
	delay := fetchDelayMin
	for attempt := 1; ; attempt++ {
		token, err := f.once(ctx, client)
		if err == nil {
			return token, nil
		}
		var status *statusError
		if !errors.As(err, &status) && f.fallback != nil {
			client = f.fallback
		}
		if !temporary(err) {
			return "", err
		}
		if attempt == fetchAttempts {
			return "", fmt.Errorf("%w (after %d attempts)", err, attempt)
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%w (after %d attempts)", err, attempt)
		case <-time.After(delay/2 + rand.N(delay/2)):
		}
		delay = min(2*delay, fetchDelayMax)
	}
}

func (f *fetcher) once(ctx context.Context, client *http.Client) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := f.request(ctx)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		if errors.Is(err, errRedirect) {
			return "", errRedirect
		}
		return "", temporaryError{networkError(err)}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return "", temporaryError{networkError(err)}
	}
	if len(body) > maxAnswer {
		return "", fmt.Errorf("answer is larger than %d bytes", maxAnswer)
	}
	if resp.StatusCode != http.StatusOK {
		err := &statusError{Status: resp.StatusCode, Body: excerpt(body)}
		if isTransient(resp.StatusCode) || f.retry != nil && f.retry(resp.StatusCode, body) {
			return "", temporaryError{err}
		}
		return "", err
	}
	return f.parse(body)
}

func isTransient(status int) bool {
	return status == http.StatusRequestTimeout || status == http.StatusTooManyRequests || status >= 500
}

var errRedirect = errors.New("answered a redirect, which is refused")

// newClient returns an HTTP client for one endpoint. It follows no redirects, keeps
// no cookies and reuses no connections.
func newClient(tr *http.Transport) *http.Client {
	tr.DisableKeepAlives = true
	tr.ResponseHeaderTimeout = fetchTimeout
	tr.MaxResponseHeaderBytes = maxAnswer
	return &http.Client{
		Transport:     tr,
		Timeout:       fetchTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return errRedirect },
	}
}

// newHTTPS returns a client for a public endpoint, and a client that uses only
// HTTP/1.1, for front ends that answer HTTP_1_1_REQUIRED or lose streams.
func newHTTPS() (client, http1 *http.Client) {
	transport := func(h2 bool) *http.Transport {
		p := new(http.Protocols)
		p.SetHTTP1(true)
		p.SetHTTP2(h2)
		return &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			Protocols:           p,
			TLSHandshakeTimeout: 10 * time.Second,
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
			DialContext:         (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		}
	}
	return newClient(transport(true)), newClient(transport(false))
}

// networkError removes the URL from an HTTP client's error, because the query may
// contain secrets of the platform.
func networkError(err error) error {
	var u *url.Error
	if !errors.As(err, &u) {
		return err
	}
	if u.Timeout() {
		return fmt.Errorf("no answer in time: %w", u.Err)
	}
	return u.Err
}

// excerpt makes an endpoint's text safe and short enough for one line of a terminal.
func excerpt(body []byte) string {
	const most = 200
	out := make([]rune, 0, most)
	for _, r := range string(body) {
		if len(out) == most {
			return string(out) + "…"
		}
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) || (r >= 0x2028 && r <= 0x202e) || (r >= 0x2066 && r <= 0x2069) || r == 0xfffd {
			r = ' '
		}
		if r == ' ' && (len(out) == 0 || out[len(out)-1] == ' ') {
			continue
		}
		out = append(out, r)
	}
	return string(out)
}
