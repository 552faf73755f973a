package policy

import (
	"errors"
	"strings"

	"github.com/mayfly-ca/mayfly/ca/grant"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

// Explanation holds the rule that would match claims, or for each rule the first claim
// that does not match. It is for people to read and grants nothing.
type Explanation struct {
	Allowed bool
	Rule    string
	Role    Role
	Profile grant.Profile
	Engines []string
	Rules   []ExplainedRule // those that grant what the request wants, in file order
}

// ExplainedRule is one rule of an Explanation.
type ExplainedRule struct {
	Rule    string
	Matched bool
	Claim   string // the first that does not match; "iss" if the rule is of another provider
	Got     string // the token's value as JSON; "" when missing
	Want    string // the rule's values as JSON, or a text on what a certificate needs
}

// Explain returns what Decide would decide. It accepts recorded claims as well as
// verified ones, and checks no audience, times or signature. A zero Want is denied, as
// by Decide.
func (s *Set) Explain(c idtoken.Claims, r Request) Explanation {
	var x Explanation
	first := -1 // the rule that decides
	o, err := s.judge(c, r, func(rule *rule, missed bool, m mismatch) {
		e := ExplainedRule{Rule: rule.name, Matched: !missed}
		if missed {
			e.Claim, e.Got, e.Want = m.claim, m.text(), wanted(m.want)
		} else if first < 0 {
			first = len(x.Rules)
		}
		x.Rules = append(x.Rules, e)
	})
	var denial *Denial
	switch {
	case err == nil:
		x.Allowed, x.Rule, x.Role, x.Profile = true, o.rule.name, o.rule.role, o.rule.profile
		for _, e := range o.engines {
			x.Engines = append(x.Engines, e.Name)
		}
	case first >= 0 && errors.As(err, &denial):
		// The rule matched, but the certificate cannot be made.
		x.Rules[first] = ExplainedRule{Rule: x.Rules[first].Rule, Claim: denial.Claim, Got: denial.Got, Want: "a value that fits into a certificate"}
	}
	return x
}

func wanted(values []value) string {
	parts := make([]string, len(values))
	for i, v := range values {
		parts[i] = v.String()
	}
	return strings.Join(parts, " or ")
}
