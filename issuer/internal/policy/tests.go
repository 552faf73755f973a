package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/client/configfile"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

// testCase is one test of the file.
type testCase struct {
	name         string
	claims       idtoken.Claims
	request      Request
	rule, denied string // exactly one is set
}

// TestResult is the result of one test of the file.
type TestResult struct {
	Name string
	OK   bool
	Want string // "rule NAME" or "denied by CLAIM"
	Got  string
}

// RunTests runs the file's tests against its rules, in file order. It ignores
// audience, times and signatures, because recorded tokens have expired.
func (s *Set) RunTests() []TestResult {
	out := make([]TestResult, 0, len(s.tests))
	for _, t := range s.tests {
		r := TestResult{Name: t.name, Want: "rule " + t.rule, Got: "denied"}
		if t.denied != "" {
			r.Want = "denied by " + t.denied
		}
		var d *Denial
		switch o, err := s.judge(t.claims, t.request, nil); {
		case err == nil:
			r.Got = "rule " + o.rule.name
		case errors.As(err, &d) && d.Claim != "":
			r.Got = "denied by " + d.Claim
		}
		r.OK = r.Got == r.Want
		out = append(out, r)
	}
	return out
}

func (l *loader) loadTests(in []fileTest) {
	if len(in) > maxTests {
		l.bad(path{"tests"}, "tests: more than %d", maxTests)
		return
	}
	for i, f := range in {
		if f.Name == "" {
			f.Name = "tests[" + strconv.Itoa(i) + "]"
		}
		t, err := l.loadTest(f)
		var at *configfile.Error
		switch {
		case errors.As(err, &at):
			l.problems = append(l.problems, at)
			continue
		case err != nil:
			l.bad(path{"tests", i}, "test %s: %v", quote(f.Name), err)
			continue
		}
		l.set.tests = append(l.set.tests, t)
	}
}

func (l *loader) loadTest(f fileTest) (testCase, error) {
	t := testCase{name: f.Name, rule: f.Rule, denied: f.Denied, request: Request{Engine: f.Engine}}
	switch f.Want {
	case "", "certificate":
		t.request.Want = WantCertificate
	case "role":
		t.request.Want = WantRole
	default:
		return t, errors.New("want: certificate or role")
	}
	p, ok := l.set.provider(f.Provider)
	if !ok {
		return t, fmt.Errorf("provider: there is no provider %s", quote(f.Provider))
	}
	if (f.Rule == "") == (f.Denied == "") {
		return t, errors.New("say rule, the name of the one that must admit, or denied, the claim that must fail")
	}
	if f.Rule != "" && !l.hasRule(f.Rule) {
		return t, fmt.Errorf("rule: there is no rule %s", quote(f.Rule))
	}
	if f.Claims.Kind != yaml.MappingNode {
		return t, errors.New("claims: want claims and their values")
	}
	v, err := l.claimValue(p.Type, "", &f.Claims)
	if err != nil {
		return t, err
	}
	if claims, ok := v.(map[string]any); ok {
		complete(claims, p.Type)
	}
	payload, err := json.Marshal(v)
	if err != nil {
		return t, fmt.Errorf("claims: %w", err)
	}
	t.claims, err = idtoken.ParseClaims(p, payload)
	return t, err
}

// complete adds claims that every token of the type has and that name a certificate. A
// test may leave out claims that its rule does not match.
func complete(claims map[string]any, t idtoken.Type) {
	names := []string{idtoken.ClaimSubject}
	switch t {
	case idtoken.GitHub:
		names = append(names, idtoken.ClaimRepositoryOwnerID, idtoken.ClaimRepositoryID)
	case idtoken.Fly:
		names = append(names, idtoken.ClaimAppID, idtoken.ClaimMachineID)
	}
	for _, name := range names {
		if _, ok := claims[name]; !ok {
			claims[name] = "(not in the test)"
		}
	}
}

func (l *loader) hasRule(name string) bool {
	for _, r := range l.set.rules {
		if r.name == name {
			return true
		}
	}
	return false
}

// claimValue converts YAML to the value that JSON would have. It refuses a number for
// a claim that is a string in every token.
func (l *loader) claimValue(t idtoken.Type, claim string, n *yaml.Node) (any, error) {
	switch n.Kind {
	case yaml.MappingNode:
		out := make(map[string]any, len(n.Content)/2)
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i].Value
			v, err := l.claimValue(t, key, n.Content[i+1])
			if err != nil {
				return nil, err
			}
			out[key] = v
		}
		return out, nil
	case yaml.SequenceNode:
		out := make([]any, 0, len(n.Content))
		for _, c := range n.Content {
			v, err := l.claimValue(t, claim, c)
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		return out, nil
	}
	switch n.Tag {
	case "!!null":
		return nil, nil
	case "!!bool":
		var b bool
		err := n.Decode(&b)
		return b, err
	case "!!int", "!!float":
		if isTime(claim) && wholeNumber(n.Value) {
			return json.Number(n.Value), nil
		}
		if stringClaim(t, claim) || !wholeNumber(n.Value) {
			return nil, l.doc.ErrorAt(n, "claims: %s: %s is a number, and tokens have a string here: quote it, %s", claim, n.Value, quote(n.Value))
		}
		return json.Number(n.Value), nil
	}
	return n.Value, nil
}

func isTime(claim string) bool {
	return claim == idtoken.ClaimExpiry || claim == idtoken.ClaimIssuedAt || claim == idtoken.ClaimNotBefore
}
