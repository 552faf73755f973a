package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/ca/grant"
	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

// claimEngine is the name of the requested engine in a denial. No token has a claim
// for it.
const claimEngine = "engine"

// MaxRoleAge is how long after its iat a person's token may still be granted a role.
// It does not apply to the restored claims of a login, which were checked at the
// login.
const MaxRoleAge = time.Hour

// maxGotBytes bounds Denial.Got.
const maxGotBytes = 256

// Want is what a request is for. Decide refuses the zero Want.
type Want int

// The values of Want.
const (
	// WantCertificate tries rules that grant a certificate.
	WantCertificate Want = iota + 1
	// WantRole tries rules that grant a role.
	WantRole
	// WantSessions tries rules of profile server, for a machine that reports
	// sessions: its Decision has Identity and Engines, and no Grant.
	WantSessions
)

// Request is what the token's bearer asks for.
type Request struct {
	Want Want
	// Engine is the one engine that the certificate is for; empty means all engines of
	// the rule.
	Engine string
	// OneEngine refuses a certificate for several engines: Decide returns a
	// *SeveralEnginesError if the rule grants several and Engine is empty.
	OneEngine bool
}

// Decision is what a rule grants. The zero Decision grants nothing.
type Decision struct {
	Rule     string
	Role     Role             // WantRole
	Identity spiffeid.ID      // WantCertificate and WantSessions
	Grant    grant.Grant      // WantCertificate
	Engines  []Engine         // WantCertificate and WantSessions
	Provider idtoken.Provider // the provider of the token
}

// IsZero reports whether d grants nothing.
func (d Decision) IsZero() bool { return d.Rule == "" }

// Denial is the error for claims that no rule admits: 403. It names the claim that
// failed and the caller's own value, and never the values in a rule.
type Denial struct {
	Rule  string // the nearest rule; "" if no rule was tried
	Claim string // the claim that failed, or "engine"; "" if Rule is ""
	Got   string // the caller's value as JSON, cut to 256 bytes; "" if missing
	// Engines lists the engines that Rule grants, if only the engine did not match.
	// Without an engine in the request, the token would get all of them.
	Engines []string
}

// Error returns the text for the log.
func (d *Denial) Error() string {
	switch {
	case d.Claim == "":
		return "denied: no rule is for such a token and such a request"
	case d.Got == "":
		return fmt.Sprintf("denied: claim %s is missing (nearest rule %s)", d.Claim, d.Rule)
	}
	return fmt.Sprintf("denied: claim %s is %s (nearest rule %s)", d.Claim, d.Got, d.Rule)
}

// SeveralEnginesError is the error for Request.OneEngine when the matching rule grants
// several engines.
type SeveralEnginesError struct {
	Rule    string
	Engines []string
}

// Error returns the text for the log.
func (e *SeveralEnginesError) Error() string {
	return fmt.Sprintf("rule %s grants several engines: %s", e.Rule, strings.Join(e.Engines, ", "))
}

// Errors of a caller that did not verify the claims, or not for this purpose.
var (
	ErrUnverified = errors.New("policy: claims were not verified")
	ErrAudience   = errors.New("policy: claims were verified for another audience")
	ErrProvider   = errors.New("policy: claims were verified under another configuration of the provider")
)

// Decide returns what the first matching rule grants, among the rules that grant what
// r wants. Errors: *Denial; *SeveralEnginesError; *idtoken.TokenError if a role is
// wanted with too old a token; and the errors above, which mean a bug in the caller.
func (s *Set) Decide(c idtoken.Claims, r Request) (Decision, error) {
	if err := s.checkClaims(c, r); err != nil {
		return Decision{}, err
	}
	if r.Want == WantRole && !c.Restored() && time.Since(c.IssuedAt()) > MaxRoleAge+idtoken.Leeway {
		return Decision{}, &idtoken.TokenError{Public: "it was issued more than an hour ago; log in again"}
	}
	o, err := s.judge(c, r, nil)
	if err != nil {
		return Decision{}, err
	}
	return o.decision(c, r)
}

// outcome is what a rule grants for claims.
type outcome struct {
	rule    *rule
	engines []Engine
	who     identity.Identity // for a certificate
}

// judge compares claims with the rules that grant what r wants, in file order. The
// first match among the rules of the claims' provider decides. Decide, Explain and
// RunTests all call it. It checks no signature and no times. visit, if not nil, is
// called for each rule with whether the claims fail it, and where; judge then compares
// the rules after the first match too.
func (s *Set) judge(c idtoken.Claims, r Request, visit func(*rule, bool, mismatch)) (outcome, error) {
	p := c.Provider()
	if r.Want == WantSessions && p.Type == idtoken.People {
		return outcome{}, &Denial{}
	}
	var (
		matched bool
		granted outcome
		err     error = &Denial{}
		least         = math.MaxInt
	)
	for _, rule := range s.rules {
		if !rule.grants(r.Want) {
			continue
		}
		if rule.provider.Name != p.Name {
			if visit != nil {
				visit(rule, true, mismatch{claim: idtoken.ClaimIssuer, got: p.Issuer, present: true, want: []value{{text: rule.provider.Issuer}}})
			}
			continue
		}
		m, missed, distance := rule.firstMismatch(c, r.Engine)
		switch {
		case !missed && !matched:
			matched = true
			granted, err = s.grant(rule, c, r)
			if visit == nil {
				return granted, err
			}
		case missed && !matched && distance < least:
			d := &Denial{Rule: rule.name, Claim: m.claim, Got: m.text()}
			if m.claim == claimEngine {
				d.Engines = slices.Clone(rule.engines)
			}
			least, err = distance, d
		}
		if visit != nil {
			visit(rule, missed, m)
		}
	}
	return granted, err
}

// checkClaims refuses claims that a Verifier did not make for this request.
func (s *Set) checkClaims(c idtoken.Claims, r Request) error {
	if !c.Verified() {
		return ErrUnverified
	}
	p := c.Provider()
	if have, ok := s.provider(p.Name); !ok || !have.Equal(p) {
		return ErrProvider
	}
	want := s.Audience()
	switch r.Want {
	case WantCertificate:
		if c.Restored() {
			return ErrUnverified
		}
	case WantSessions:
		want = s.SessionsAudience()
		if c.Restored() {
			return ErrUnverified
		}
	case WantRole:
	default:
		return fmt.Errorf("policy: nothing is wanted (%d)", r.Want)
	}
	if p.Type == idtoken.People {
		want = p.ClientID
	} else if r.Want == WantRole {
		return &Denial{}
	}
	if c.Audience() != want {
		return ErrAudience
	}
	return nil
}

// grants reports whether r grants w.
func (r *rule) grants(w Want) bool {
	switch w {
	case WantCertificate:
		return r.profile != ""
	case WantRole:
		return r.role != ""
	case WantSessions:
		return r.profile == grant.Server
	}
	return false
}

// text returns the caller's value as JSON, truncated, or "" if missing.
func (m *mismatch) text() string {
	if !m.present {
		return ""
	}
	return asJSON(m.got)
}

func asJSON(v any) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return "?"
	}
	s := strings.TrimSuffix(b.String(), "\n")
	if len(s) <= maxGotBytes {
		return s
	}
	s = s[:maxGotBytes]
	for len(s) > 0 && !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + "..."
}
