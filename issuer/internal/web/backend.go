package web

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// Backend is the page's interface to the issuer. Problem converts its errors.
type Backend interface {
	Info() wire.Info
	// Client returns an HTTP client for a provider of type people, with the bounds
	// used for fetching its keys.
	Client(provider string) (*http.Client, error)
	// Verify checks an ID token from a login of the provider, and returns its claims
	// in the store's form.
	Verify(ctx context.Context, provider, raw string) (json.RawMessage, error)
	// Person decides the person and role of a login from its claims. An error means
	// that the policy grants no role now.
	Person(ctx context.Context, provider string, claims json.RawMessage) (Person, error)

	// PutLogin stores a login and records an event; DeleteLogin ends the login.
	PutLogin(ctx context.Context, p Person, l Login) error
	Login(ctx context.Context, id string) (*Login, error)
	DeleteLogin(ctx context.Context, id, by string) error
	// TakeLink uses up the link with an ID and returns its login. It returns
	// ErrNoLogin if the link is unknown, used or expired.
	TakeLink(ctx context.Context, id string) (*Login, error)
	// Forbidden records an attempt without the required role.
	Forbidden(ctx context.Context, provider string, claims json.RawMessage, what string)
	// Read records that a person viewed a certificate's claims.
	Read(ctx context.Context, by, serial string)

	Overview(ctx context.Context) (Overview, error)
	Engines(ctx context.Context) (wire.List[wire.EngineStatus], error)
	// RunURL returns the URL of a run in the CI system, or "" if it is unknown.
	// identity is a SPIFFE ID, or a provider's name, a slash and a subject. In run,
	// the number ends at the first slash.
	RunURL(identity, repository, run string) string
	Certificates(ctx context.Context, v url.Values) (wire.List[wire.Certificate], error)
	Certificate(ctx context.Context, serial string) (*wire.CertificateDetail, error)
	Sessions(ctx context.Context, v url.Values) (wire.List[wire.Session], error)
	Events(ctx context.Context, v url.Values) (wire.List[wire.Event], error)
	Blocks(ctx context.Context) (wire.List[wire.Block], error)
	Revoke(ctx context.Context, by string, req wire.RevokeRequest) (*wire.RevokeResponse, error)
	Unblock(ctx context.Context, id, by string) error
	Explain(req wire.ExplainRequest) (*wire.ExplainResponse, error)
	Policy() Policy
	// Problem returns the public part of an error, and its status.
	Problem(err error) *wire.Problem
}

// Person is the user of the page, as decided for one request.
type Person struct {
	Name  string // as in an event's By
	Admin bool   // false means a viewer
	Rule  string
	// ByLink is set for a login by an admin link instead of a provider.
	ByLink bool
}

// Login is one login to the page. ID is the SHA-256 (hex) of the cookie's secret.
type Login struct {
	ID, Provider, Subject string
	Claims                json.RawMessage
	CreatedAt, ExpiresAt  time.Time
}

// Overview is the data of the first page.
type Overview struct {
	Hours       []Hour // ascending, one per hour, up to the current hour
	Engines     int    // of the policy
	Awake       int    // engines
	Valid       int    // certificates
	ValidMore   bool   // there may be more certificates than Valid
	Live        int    // sessions
	Cut         int    // sessions that an engine cut in the last 24 hours
	CRLNumber   int64
	CRLSignedAt time.Time
	Expiries    []Expiry
	Warnings    []string
}

// Hour is one bar of the chart.
type Hour struct {
	Start          time.Time
	Issued, Denied int64
}

// Expiry is an expiry date before which an operator must act.
type Expiry struct {
	What     string
	NotAfter time.Time
}

// Policy describes the current policy.
type Policy struct {
	Providers []string // names
	Warnings  []string
	Rules     []Rule
}

// Rule is one row of the policy's table.
type Rule struct {
	Name, Provider, Grants string
	Match                  []string // claim = value or value
}
