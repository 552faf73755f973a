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

// claimEngine is how a denial names the requested engine, which no token
// carries.
const claimEngine = "engine"

// MaxRoleAge is how long after its iat a person's token may still be granted a
// role. A login to the page has been granted one in time, and its claims,
// restored, are not held to it.
const MaxRoleAge = time.Hour

// maxGotBytes bounds Denial.Got.
const maxGotBytes = 256

// Want is what a request is for. The zero Want is refused by Decide.
type Want int

// What may be wanted.
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
	// Engine is the one engine that a certificate is wanted for; empty means
	// all of the rule's.
	Engine string
	// OneEngine refuses a certificate for several engines: Decide returns a
	// *SeveralEnginesError where the rule grants several and Engine is empty.
	OneEngine bool
}

// Decision is what a rule grants. The zero Decision grants nothing.
type Decision struct {
	Rule     string
	Role     Role             // WantRole
	Identity spiffeid.ID      // WantCertificate and WantSessions
	Grant    grant.Grant      // WantCertificate
	Engines  []Engine         // WantCertificate and WantSessions
	Provider idtoken.Provider // whose token it is
}

// IsZero reports whether d was made by Decide.
func (d Decision) IsZero() bool { return d.Rule == "" }

// Denial is the answer to claims that no rule admits: 403. It names the claim
// that failed and the caller's own value, and never what a rule wants.
type Denial struct {
	Rule  string // the nearest rule; "" where none is tried at all
	Claim string // the claim that failed, or "engine"; "" with Rule
	Got   string // the caller's value as JSON, cut to 256 bytes; "" when missing
	// Engines are those that Rule grants, where only the engine is missed: the
	// token would get them all by naming none.
	Engines []string
}

// Error gives the log's text.
func (d *Denial) Error() string {
	switch {
	case d.Claim == "":
		return "denied: no rule is for such a token and such a request"
	case d.Got == "":
		return fmt.Sprintf("denied: claim %s is missing (nearest rule %s)", d.Claim, d.Rule)
	}
	return fmt.Sprintf("denied: claim %s is %s (nearest rule %s)", d.Claim, d.Got, d.Rule)
}

// SeveralEnginesError is the answer to Request.OneEngine when the rule that
// matched grants several engines.
type SeveralEnginesError struct {
	Rule    string
	Engines []string
}

// Error gives the log's text.
func (e *SeveralEnginesError) Error() string {
	return fmt.Sprintf("rule %s grants several engines: %s", e.Rule, strings.Join(e.Engines, ", "))
}

// Errors of a caller that did not verify, or not for this.
var (
	ErrUnverified = errors.New("policy: claims were not verified")
	ErrAudience   = errors.New("policy: claims were verified for another audience")
	ErrProvider   = errors.New("policy: claims were verified under another configuration of the provider")
)

// Decide grants what the first fitting rule that matches grants. Errors:
// *Denial; *SeveralEnginesError; *idtoken.TokenError when a role is wanted with too old a token; and
// the errors above, which mean that the calling program is at fault.
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

// outcome is what a rule grants to claims.
type outcome struct {
	rule    *rule
	engines []Engine
	who     identity.Identity // of a certificate
}

// judge holds claims against the rules whose grant is what r wants, in file
// order: the first of their provider that matches decides. Decide, Explain and
// RunTests all ask it. It looks at neither signature nor times. visit, if not
// nil, is called for each rule with whether the claims miss it, and where; then
// the rules after the first match are held against the claims too.
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

// checkClaims refuses what a Verifier did not make for this very request.
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

// grants reports whether what the rule grants is what is wanted.
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

// text is the caller's value as JSON, cut; "" when missing.
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
