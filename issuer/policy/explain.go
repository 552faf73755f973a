package policy

import (
	"strings"

	"github.com/mayfly-ca/mayfly/ca/issuance"
	"github.com/mayfly-ca/mayfly/issuer/idtoken"
)

// Explanation says which rule would match claims, or per rule the first claim
// that does not. It is told to people and grants nothing.
type Explanation struct {
	Allowed bool
	Rule    string
	Role    Role
	Profile issuance.Profile
	Engines []string
	Rules   []ExplainedRule // those whose grant fits the request, in file order
}

// ExplainedRule is one rule of an Explanation.
type ExplainedRule struct {
	Rule    string
	Matched bool
	Claim   string // the first that does not match; "iss" for another provider's rule
	Got     string // the token's value as JSON; "" when missing
	Want    string // the rule's values as JSON
}

// Explain takes recorded claims as well as verified ones. Audience, times and
// signature are not looked at. A zero Want tries every rule.
func (s *Set) Explain(c idtoken.Claims, r Request) Explanation {
	var x Explanation
	name := c.Provider().Name
	for _, rule := range s.rules {
		if r.Want != 0 && !rule.fits(r.Want) {
			continue
		}
		e := ExplainedRule{Rule: rule.name}
		if rule.provider.Name != name {
			e.Claim, e.Got, e.Want = idtoken.ClaimIssuer, asJSON(c.Provider().Issuer), asJSON(rule.provider.Issuer)
		} else if m, _ := rule.against(c, r.Engine); m != nil {
			e.Claim, e.Got, e.Want = m.claim, m.text(), wanted(m.want)
		} else {
			e.Matched = true
		}
		if e.Matched && !x.Allowed {
			x.Allowed, x.Rule, x.Role, x.Profile = true, rule.name, rule.role, rule.profile
			x.Engines = append([]string(nil), rule.engines...)
			if r.Engine != "" {
				x.Engines = []string{r.Engine}
			}
		}
		x.Rules = append(x.Rules, e)
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
