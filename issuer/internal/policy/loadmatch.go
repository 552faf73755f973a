package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

// patternClaims are the only claims whose values may hold '*'.
var patternClaims = []string{idtoken.ClaimRef, idtoken.ClaimWorkflowRef, idtoken.ClaimJobWorkflowRef}

// checkedClaims are checked when the token is verified, by more than equality.
var checkedClaims = []string{
	idtoken.ClaimIssuer, idtoken.ClaimAudience, idtoken.ClaimExpiry, idtoken.ClaimNotBefore,
	idtoken.ClaimIssuedAt, idtoken.ClaimID,
}

// whoClaims returns the claims that identify the owner of a token of type t, in the
// order of comparison.
func whoClaims(t idtoken.Type) []string {
	switch t {
	case idtoken.GitHub:
		return []string{idtoken.ClaimRepositoryOwnerID, idtoken.ClaimRepositoryID}
	case idtoken.Fly:
		return []string{idtoken.ClaimOrgID, idtoken.ClaimAppID}
	case idtoken.OIDC:
		return []string{idtoken.ClaimSubject, idtoken.ClaimProjectID}
	case idtoken.People:
		return []string{idtoken.ClaimSubject, idtoken.ClaimEmail, idtoken.ClaimEmailVerified}
	}
	return nil
}

// stringClaim reports whether a claim is known to be a string, so that any other value
// would never match. For GitHub and Fly, these are all claims but the times; for other
// providers, those of OpenID Connect and GitLab's ids.
func stringClaim(t idtoken.Type, claim string) bool {
	if t.SingleUse() {
		return true
	}
	switch claim {
	case idtoken.ClaimSubject, idtoken.ClaimEmail, idtoken.ClaimAuthorizedParty, "name", "preferred_username", "nickname",
		"ref", "ref_type", "sha", "environment", "project_path", "namespace_path", "user_login", "user_email", "pipeline_source",
		idtoken.ClaimProjectID, "namespace_id", "user_id", "pipeline_id", "job_id":
		return true
	}
	return false
}

// loadMatch reads a rule's match. It returns false if it cannot.
func (l *loader) loadMatch(where string, at path, t idtoken.Type, n *yaml.Node) ([]condition, bool) {
	if n.Kind != yaml.MappingNode || len(n.Content) == 0 {
		l.bad(at, "%s.match: want claims and their values; a rule without any is for everybody", where)
		return nil, false
	}
	if len(n.Content)/2 > maxMatchKeys {
		l.bad(at, "%s.match: more than %d claims", where, maxMatchKeys)
		return nil, false
	}
	who := whoClaims(t)
	var out []condition
	for i := 0; i < len(n.Content); i += 2 {
		claim := n.Content[i].Value
		c, bad, err := loadCondition(t, claim, n.Content[i+1])
		if err != nil {
			l.problems = append(l.problems, l.doc.ErrorAt(bad, "%s.match.%s: %v", where, claim, err))
			return nil, false
		}
		c.identifying = slices.Contains(who, claim)
		out = append(out, c)
	}
	rank := func(c condition) int {
		if i := slices.Index(who, c.claim); i >= 0 {
			return i
		}
		return len(who)
	}
	slices.SortStableFunc(out, func(a, b condition) int { return rank(a) - rank(b) })
	return out, true
}

// loadCondition reads one claim's values. With an error it returns the wrong value.
func loadCondition(t idtoken.Type, claim string, n *yaml.Node) (condition, *yaml.Node, error) {
	c := condition{claim: claim}
	if claim == "" || len(claim) > 256 {
		return c, n, errors.New("a claim has a name of 1 to 256 bytes")
	}
	if slices.Contains(checkedClaims, claim) {
		return c, n, errors.New("is checked with the token and not by rules")
	}
	nodes := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		nodes = n.Content
	}
	if len(nodes) == 0 || len(nodes) > maxValues {
		return c, n, fmt.Errorf("want 1 to %d values", maxValues)
	}
	for _, n := range nodes {
		v, err := loadValue(t, claim, n)
		if err != nil {
			return c, n, err
		}
		c.values = append(c.values, v)
	}
	return c, nil, nil
}

func loadValue(t idtoken.Type, claim string, n *yaml.Node) (value, error) {
	if n.Kind != yaml.ScalarNode {
		return value{}, errors.New("a value is a string, a boolean or a whole number")
	}
	if len(n.Value) > maxValueBytes {
		return value{}, fmt.Errorf("a value is longer than %d bytes", maxValueBytes)
	}
	isString := stringClaim(t, claim)
	switch n.Tag {
	case "!!str":
		return loadString(claim, n.Value)
	case "!!bool":
		if isString {
			return value{}, fmt.Errorf("%s is a boolean, and this claim is a string: quote it, %s", n.Value, quote(n.Value))
		}
		return value{kind: boolValue, yes: strings.EqualFold(n.Value, "true")}, nil
	case "!!int", "!!float":
		if isString {
			return value{}, fmt.Errorf("%s is a number, and this claim is a string: quote it, %s", n.Value, quote(n.Value))
		}
		if !wholeNumber(n.Value) {
			return value{}, fmt.Errorf("%s: a number is written in whole decimal digits; if the claim is a string, quote it, %s", n.Value, quote(n.Value))
		}
		return value{kind: numberValue, text: n.Value}, nil
	case "!!null":
		return value{}, errors.New("there is no value; a missing claim never matches")
	}
	return value{}, fmt.Errorf("%s reads as another type: quote it, %s", n.Value, quote(n.Value))
}

func wholeNumber(s string) bool {
	digits := strings.TrimPrefix(s, "-")
	if digits == "" || len(digits) > 18 || (digits[0] == '0' && s != "0") {
		return false
	}
	return strings.Trim(digits, "0123456789") == ""
}

func loadString(claim, s string) (value, error) {
	v := value{text: s}
	switch {
	case claim == idtoken.ClaimEmailVerified:
		return v, errors.New("is a boolean: write true without quotes")
	case (claim == idtoken.ClaimRepositoryID || claim == idtoken.ClaimRepositoryOwnerID) && !wholeNumber(s):
		return v, fmt.Errorf("%s is not an id: ids are digits (mayfly policy suggest prints them)", quote(s))
	case !strings.Contains(s, "*"):
		return v, nil
	case !slices.Contains(patternClaims, claim):
		return v, fmt.Errorf("%s: '*' is only for %s", quote(s), strings.Join(patternClaims, ", "))
	}
	for segment := range strings.SplitSeq(s, "/") {
		if i := strings.IndexByte(segment, '*'); i >= 0 && i != len(segment)-1 {
			return v, fmt.Errorf("%s: '*' stands at the end of a path segment only, once", quote(s))
		}
	}
	v.pattern = true
	return v, nil
}
