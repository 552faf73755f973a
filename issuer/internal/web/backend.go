package web

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// Backend is what the page asks of the issuer. Its errors are shown by Problem.
type Backend interface {
	Info() wire.Info
	// Client reaches a provider of type people within the bounds of its keys.
	Client(provider string) (*http.Client, error)
	// Verify checks an ID token that a login of the provider returned, and
	// returns its claims as the store keeps them.
	Verify(ctx context.Context, provider, raw string) (json.RawMessage, error)
	// Person decides again who the claims of a login are. An error means that
	// the policy grants no role now.
	Person(ctx context.Context, provider string, claims json.RawMessage) (Person, error)

	// PutLogin keeps a login and records it as an event; DeleteLogin ends it.
	PutLogin(ctx context.Context, p Person, l Login) error
	Login(ctx context.Context, id string) (*Login, error)
	DeleteLogin(ctx context.Context, id, by string) error
	// TakeLink spends the link of an ID and returns what it logs in as.
	// ErrNoLogin: there is none, or it was spent or has expired.
	TakeLink(ctx context.Context, id string) (*Login, error)
	// Forbidden records an attempt without the role.
	Forbidden(ctx context.Context, provider string, claims json.RawMessage, what string)
	// Read records that a person looked at a certificate's claims.
	Read(ctx context.Context, by, serial string)

	Overview(ctx context.Context) (Overview, error)
	Engines(ctx context.Context) (wire.List[wire.EngineStatus], error)
	// RunURL is where the CI system shows a run of a repository, "" where that
	// is not known. identity is a SPIFFE ID, or a provider's name, a slash and a
	// subject. What run holds after a slash is not of its number.
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
	// Problem is what may be told of an error, and its status.
	Problem(err error) *wire.Problem
}

// Person is who looks, as decided for one request.
type Person struct {
	Name  string // what events call By
	Admin bool   // else a viewer
	Rule  string
	// ByLink: a link that the issuer's host made logged them in, not a provider.
	ByLink bool
}

// Login is one login to the page. ID is the SHA-256 (hex) of the cookie's
// secret.
type Login struct {
	ID, Provider, Subject string
	Claims                json.RawMessage
	CreatedAt, ExpiresAt  time.Time
}

// Overview is the first page.
type Overview struct {
	Hours       []Hour // ascending, one per hour, the last is the present one
	Engines     int    // of the policy
	Awake       int    // engines
	Valid       int    // certificates
	ValidMore   bool   // there may be more than Valid
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

// Expiry is an end that an operator must act before.
type Expiry struct {
	What     string
	NotAfter time.Time
}

// Policy is the rules in force.
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
