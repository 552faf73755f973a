package idtoken

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Claim names of RFC 7519 and OpenID Connect that this package reads.
const (
	ClaimIssuer          = "iss"
	ClaimSubject         = "sub"
	ClaimAudience        = "aud"
	ClaimExpiry          = "exp"
	ClaimNotBefore       = "nbf"
	ClaimIssuedAt        = "iat"
	ClaimID              = "jti"
	ClaimAuthorizedParty = "azp"
	ClaimEvents          = "events"
	ClaimEmail           = "email"
	ClaimEmailVerified   = "email_verified"
)

// Claim names of GitHub Actions.
const (
	ClaimRepository        = "repository"
	ClaimRepositoryID      = "repository_id"
	ClaimRepositoryOwner   = "repository_owner"
	ClaimRepositoryOwnerID = "repository_owner_id"
	ClaimVisibility        = "repository_visibility"
	ClaimWorkflowRef       = "workflow_ref"
	ClaimWorkflowSHA       = "workflow_sha"
	ClaimJobWorkflowRef    = "job_workflow_ref"
	ClaimJobWorkflowSHA    = "job_workflow_sha"
	ClaimRef               = "ref"
	ClaimSHA               = "sha"
	ClaimEventName         = "event_name"
	ClaimEnvironment       = "environment"
	ClaimRunnerEnvironment = "runner_environment"
	ClaimRunID             = "run_id"
	ClaimRunAttempt        = "run_attempt"
	ClaimCheckRunID        = "check_run_id"
	ClaimActor             = "actor"
)

// Claim names of Fly Machines, and of GitLab.
const (
	ClaimOrgID     = "org_id"
	ClaimAppID     = "app_id"
	ClaimMachineID = "machine_id"
	ClaimProjectID = "project_id"
)

// Claims holds the claims of one token. It is immutable. Only a Verifier makes
// verified Claims, and the zero Claims are refused everywhere.
type Claims struct{ c *claims }

type claims struct {
	provider  Provider
	audience  string
	issuer    string
	subject   string
	tokenID   string
	issuedAt  time.Time
	expiresAt time.Time
	payload   string
	object    map[string]any // Get returns copies of its values
	verified  bool
	restored  bool
}

// none takes the place of the zero Claims, so that every method works on them.
var none claims

func (c Claims) get() *claims {
	if c.c == nil {
		return &none
	}
	return c.c
}

// IsZero reports whether c is the zero Claims.
func (c Claims) IsZero() bool { return c.c == nil }

// Verified reports whether a Verifier verified c. Recorded claims, made for
// explanations and tests, are not verified.
func (c Claims) Verified() bool { return c.get().verified }

// Restored reports whether c was verified earlier, at a login, and is now read from
// the issuer's own store. Such claims may be granted a role and never a certificate.
func (c Claims) Restored() bool { return c.get().restored }

// Provider returns the configuration that c was verified with.
func (c Claims) Provider() Provider { return c.get().provider.clone() }

// Audience returns the one audience that c was verified for.
func (c Claims) Audience() string { return c.get().audience }

// Issuer returns iss.
func (c Claims) Issuer() string { return c.get().issuer }

// Subject returns sub.
func (c Claims) Subject() string { return c.get().subject }

// TokenID returns jti, or "" if the provider has none.
func (c Claims) TokenID() string { return c.get().tokenID }

// IssuedAt returns iat, in UTC.
func (c Claims) IssuedAt() time.Time { return c.get().issuedAt }

// ExpiresAt returns exp, in UTC.
func (c Claims) ExpiresAt() time.Time { return c.get().expiresAt }

// SingleUse reports whether the token is good for one certificate only.
func (c Claims) SingleUse() bool { return c.get().provider.Type.SingleUse() }

// Get returns a claim as its JSON value: string, json.Number, bool, nil, []any or
// map[string]any, the last two as copies. It returns false for a claim that the token
// does not have.
func (c Claims) Get(name string) (any, bool) {
	v, ok := c.get().object[name]
	return copyValue(v), ok
}

// String returns a claim that is a JSON string. It returns false for any other claim
// and for a missing one.
func (c Claims) String(name string) (string, bool) {
	s, ok := c.get().object[name].(string)
	return s, ok
}

// Names returns the names of the token's claims, sorted.
func (c Claims) Names() []string { return slices.Sorted(maps.Keys(c.get().object)) }

// JSON returns the token's payload, byte for byte.
func (c Claims) JSON() json.RawMessage { return json.RawMessage(c.get().payload) }

func copyValue(v any) any {
	switch v := v.(type) {
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = copyValue(e)
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = copyValue(e)
		}
		return out
	}
	return v
}

// MaxPayloadBytes bounds the payload of recorded and restored claims. For a token,
// MaxTokenBytes bounds it.
const MaxPayloadBytes = 64 << 10

// ParseClaims makes unverified claims from the payload of a token or of a test. The
// policy explains them but grants nothing for them. Times, audience and issuer are not
// checked; members of the wrong type count as missing.
func ParseClaims(p Provider, payload []byte) (Claims, error) {
	c, err := readClaims(p, payload)
	if err != nil {
		return Claims{}, err
	}
	return Claims{c}, nil
}

func readClaims(p Provider, payload []byte) (*claims, error) {
	if len(payload) > MaxPayloadBytes {
		return nil, fmt.Errorf("claims are larger than %d bytes", MaxPayloadBytes)
	}
	text := string(payload)
	object, err := parseObject(text)
	if err != nil {
		return nil, fmt.Errorf("claims: %w", err)
	}
	c := &claims{provider: p.clone(), payload: text, object: object}
	c.issuer, _ = object[ClaimIssuer].(string)
	c.subject, _ = object[ClaimSubject].(string)
	c.tokenID, _ = object[ClaimID].(string)
	c.audience, _ = oneAudience(object)
	c.issuedAt, _, _ = timeClaim(object, ClaimIssuedAt)
	c.expiresAt, _, _ = timeClaim(object, ClaimExpiry)
	return c, nil
}

// oneAudience returns aud, which is a string or an array of one (RFC 7519 section
// 4.1.3). A token for several services is refused.
func oneAudience(object map[string]any) (string, error) {
	switch aud := object[ClaimAudience].(type) {
	case string:
		return aud, nil
	case []any:
		if len(aud) == 1 {
			if s, ok := aud[0].(string); ok {
				return s, nil
			}
		}
		return "", errors.New("aud does not hold exactly one string")
	}
	return "", errors.New("aud is missing or not a string")
}
