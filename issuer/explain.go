package issuer

import (
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
)

// wireExplanation converts the policy's explanation to the wire's type.
func wireExplanation(x policy.Explanation) *wire.ExplainResponse {
	out := &wire.ExplainResponse{
		Allowed: x.Allowed, Rule: x.Rule, Role: string(x.Role), Profile: string(x.Profile), Engines: x.Engines,
		Rules: make([]wire.ExplainRule, 0, len(x.Rules)),
	}
	for _, r := range x.Rules {
		out.Rules = append(out.Rules, wire.ExplainRule{Rule: r.Rule, Matched: r.Matched, Claim: r.Claim, Got: r.Got, Want: r.Want})
	}
	return out
}
