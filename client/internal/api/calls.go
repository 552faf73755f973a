package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// CertificateFilter selects certificates. Zero fields select all. Each field is the
// query parameter of the same name.
type CertificateFilter struct {
	Serial       string // a whole serial or a prefix
	Repository   string
	RepositoryID string
	RunID        string
	Actor        string
	Identity     string
	Profile      string
	Status       string // wire.StatusValid and so on
	Since, Until time.Time
	Limit        int // at most wire.MaxListLimit; 0 means the issuer's default
	Cursor       string
}

func (f CertificateFilter) query() url.Values {
	q := url.Values{}
	setString(q, "serial", f.Serial)
	setString(q, "repository", f.Repository)
	setString(q, "repository_id", f.RepositoryID)
	setString(q, "run_id", f.RunID)
	setString(q, "actor", f.Actor)
	setString(q, "identity", f.Identity)
	setString(q, "profile", f.Profile)
	setString(q, "status", f.Status)
	setTime(q, "since", f.Since)
	setTime(q, "until", f.Until)
	setPage(q, f.Limit, f.Cursor)
	return q
}

// SessionFilter selects sessions. Zero fields select all.
type SessionFilter struct {
	Engine     string
	Serial     string
	RunID      string
	Repository string
	Live       bool // only open sessions
	Cut        bool // only sessions that the engine cut
	// Since and Until bound the time at which a session was opened.
	Since, Until time.Time
	Limit        int
	Cursor       string
}

func (f SessionFilter) query() url.Values {
	q := url.Values{}
	setString(q, "engine", f.Engine)
	setString(q, "serial", f.Serial)
	setString(q, "run_id", f.RunID)
	setString(q, "repository", f.Repository)
	if f.Live {
		q.Set("live", "true")
	}
	if f.Cut {
		q.Set("cut", "true")
	}
	setTime(q, "since", f.Since)
	setTime(q, "until", f.Until)
	setPage(q, f.Limit, f.Cursor)
	return q
}

// EventFilter selects events, newest first. With Forward or After > 0, events are in
// order and begin with the event after After.
type EventFilter struct {
	Type         string
	Serial       string
	Repository   string
	RunID        string
	Since, Until time.Time
	After        int64
	Forward      bool
	Limit        int
	Cursor       string
}

func (f EventFilter) query() url.Values {
	q := url.Values{}
	setString(q, "type", f.Type)
	setString(q, "serial", f.Serial)
	setString(q, "repository", f.Repository)
	setString(q, "run_id", f.RunID)
	setTime(q, "since", f.Since)
	setTime(q, "until", f.Until)
	if f.After > 0 || f.Forward {
		q.Set("after", strconv.FormatInt(f.After, 10))
	}
	setPage(q, f.Limit, f.Cursor)
	return q
}

// Certificates returns one page, newest first.
func (c *Client) Certificates(ctx context.Context, f CertificateFilter) (*Answer[wire.List[wire.Certificate]], error) {
	return call[wire.List[wire.Certificate]](ctx, c, http.MethodGet, wire.PathCertificates, f.query(), nil)
}

// Certificate returns the whole record of one certificate. The serial must have all
// 32 hex digits.
func (c *Client) Certificate(ctx context.Context, serial string) (*Answer[wire.CertificateDetail], error) {
	return call[wire.CertificateDetail](ctx, c, http.MethodGet, wire.PathCertificates+"/"+url.PathEscape(serial), nil, nil)
}

// Revoke revokes certificates. It returns once a committed CRL lists them.
func (c *Client) Revoke(ctx context.Context, r wire.RevokeRequest) (*Answer[wire.RevokeResponse], error) {
	return call[wire.RevokeResponse](ctx, c, http.MethodPost, wire.PathRevocations, nil, r)
}

// Blocks returns the blocks in force.
func (c *Client) Blocks(ctx context.Context) (*Answer[wire.List[wire.Block]], error) {
	return call[wire.List[wire.Block]](ctx, c, http.MethodGet, wire.PathBlocks, nil, nil)
}

// RemoveBlock ends a block early.
func (c *Client) RemoveBlock(ctx context.Context, id string) error {
	_, err := c.do(ctx, http.MethodDelete, wire.PathBlocks+"/"+url.PathEscape(id), nil, nil)
	return err
}

// Sessions returns one page, newest first.
func (c *Client) Sessions(ctx context.Context, f SessionFilter) (*Answer[wire.List[wire.Session]], error) {
	return call[wire.List[wire.Session]](ctx, c, http.MethodGet, wire.PathSessions, f.query(), nil)
}

// Engines returns the policy's engines, with the machines that reported for them.
func (c *Client) Engines(ctx context.Context) (*Answer[wire.List[wire.EngineStatus]], error) {
	return call[wire.List[wire.EngineStatus]](ctx, c, http.MethodGet, wire.PathEngines, nil, nil)
}

// Events returns one page.
func (c *Client) Events(ctx context.Context, f EventFilter) (*Answer[wire.List[wire.Event]], error) {
	return call[wire.List[wire.Event]](ctx, c, http.MethodGet, wire.PathEvents, f.query(), nil)
}

// Whoami returns the person whose token it is, and the role that the policy
// grants now.
func (c *Client) Whoami(ctx context.Context) (*Answer[wire.Whoami], error) {
	return call[wire.Whoami](ctx, c, http.MethodGet, wire.PathWhoami, nil, nil)
}

// Explain asks which rule would admit the claims. It issues nothing.
func (c *Client) Explain(ctx context.Context, r wire.ExplainRequest) (*Answer[wire.ExplainResponse], error) {
	return call[wire.ExplainResponse](ctx, c, http.MethodPost, wire.PathPolicyExplain, nil, r)
}
