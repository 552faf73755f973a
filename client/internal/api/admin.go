// Package api calls the issuer's admin API over HTTP. It lists, shows and revokes
// certificates, reads sessions, events and blocks, and asks the policy to explain.
//
// It imports client/wire and the standard library. It decides nothing: the issuer
// judges roles, and the given http.Client sets TLS roots and refuses redirects.
// Answers keep their body, so that a program can print it unchanged.
package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// Config has the issuer's address and the caller's token.
type Config struct {
	// Issuer is the base URL, without the API's path.
	Issuer string
	// HTTPClient sends the requests. It must refuse redirects, which would send the
	// token to another server, and have a timeout. Required.
	HTTPClient *http.Client
	// Token returns the Bearer ID token for each request. Required.
	Token func(ctx context.Context) (string, error)
}

// Client calls the API. It is safe for concurrent use.
type Client struct {
	base  *url.URL
	http  *http.Client
	token func(ctx context.Context) (string, error)
}

// Answer is a decoded answer and its body.
type Answer[T any] struct {
	Value T
	Body  json.RawMessage
}

// UnreachableError means that the issuer gave no answer.
type UnreachableError struct {
	Issuer string
	Err    error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("issuer %s: %v", e.Issuer, e.Err)
}

// Unwrap returns the cause.
func (e *UnreachableError) Unwrap() error { return e.Err }

// New checks c and returns a Client. It sends nothing.
func New(c Config) (*Client, error) {
	base, err := url.Parse(c.Issuer)
	switch {
	case err != nil:
		return nil, fmt.Errorf("issuer URL: %w", err)
	case base.Scheme != "https" && base.Scheme != "http", base.Host == "":
		return nil, fmt.Errorf("issuer URL %q is not an http(s) URL", c.Issuer)
	case c.HTTPClient == nil:
		return nil, errors.New("no HTTP client")
	case c.Token == nil:
		return nil, errors.New("no token")
	}
	return &Client{base: base, http: c.HTTPClient, token: c.Token}, nil
}

// call sends body (nil for none) and decodes a success into an Answer. Its errors
// are *wire.Problem for an answer that is not a success, *UnreachableError if there
// was no answer, and those of Config.Token.
func call[T any](ctx context.Context, c *Client, method, path string, query url.Values, body any) (*Answer[T], error) {
	raw, err := c.do(ctx, method, path, query, body)
	if err != nil {
		return nil, err
	}
	a := &Answer[T]{Body: raw}
	if len(bytes.TrimSpace(raw)) == 0 {
		return a, nil
	}
	if err := json.Unmarshal(raw, &a.Value); err != nil {
		return nil, fmt.Errorf("%s %s: the issuer's answer is not what this program knows: %w", method, path, err)
	}
	return a, nil
}

func (c *Client) do(ctx context.Context, method, path string, query url.Values, body any) ([]byte, error) {
	req, err := c.request(ctx, method, path, query, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		return nil, &UnreachableError{Issuer: c.base.String(), Err: withoutURL(err)}
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, wire.MaxResponseBytes+1))
	switch {
	case err != nil:
		return nil, &UnreachableError{Issuer: c.base.String(), Err: err}
	case len(raw) > wire.MaxResponseBytes:
		return nil, fmt.Errorf("%s %s: the answer is over %d bytes", method, path, wire.MaxResponseBytes)
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		return nil, wire.ReadProblem(resp, raw)
	}
	return raw, nil
}

func (c *Client) request(ctx context.Context, method, path string, query url.Values, body any) (*http.Request, error) {
	token, err := c.token(ctx)
	if err != nil {
		return nil, err
	}
	u := c.base.JoinPath(path)
	u.RawQuery = query.Encode()
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), r)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return req, nil
}

// withoutURL removes the *url.Error around a transport's error, because it would
// repeat the whole query.
func withoutURL(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

func setTime(q url.Values, key string, t time.Time) {
	if !t.IsZero() {
		q.Set(key, t.UTC().Format(time.RFC3339))
	}
}

func setString(q url.Values, key, value string) {
	if value != "" {
		q.Set(key, value)
	}
}

func setPage(q url.Values, limit int, cursor string) {
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	setString(q, "cursor", cursor)
}
