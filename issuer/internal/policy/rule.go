package policy

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/grant"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

// rule grants something to the matching tokens of one provider. It is immutable once
// loaded.
type rule struct {
	name             string
	provider         idtoken.Provider
	match            []condition
	profile          grant.Profile // either profile or role is set
	role             Role
	engines          []string
	dns              []string
	ttl              time.Duration
	allRepositories  bool
	privilegedEvents bool
}

// condition is one key of match: the claim must be present and equal one value.
type condition struct {
	claim       string
	identifying bool // identifies the token's owner, and is compared first
	values      []value
}

func (c condition) admits(claims idtoken.Claims) bool {
	got, ok := claims.Get(c.claim)
	return ok && slices.ContainsFunc(c.values, func(v value) bool { return v.equal(got) })
}

// value is compared with a claim: a string, a boolean or a whole number. The type
// counts: "1" is not 1, and a list is neither.
type value struct {
	kind kind
	text string // of a string or a number, as written
	yes  bool
	// pattern reports whether text has a '*' at the end of a path segment.
	pattern bool
}

type kind int

const (
	stringValue kind = iota
	boolValue
	numberValue
)

func (v value) equal(got any) bool {
	switch got := got.(type) {
	case string:
		if v.kind != stringValue {
			return false
		}
		if v.pattern {
			return matchPath(v.text, got)
		}
		return got == v.text
	case bool:
		return v.kind == boolValue && got == v.yes
	case json.Number:
		return v.kind == numberValue && string(got) == v.text
	}
	return false
}

// String returns v as JSON.
func (v value) String() string {
	switch v.kind {
	case boolValue:
		if v.yes {
			return "true"
		}
		return "false"
	case numberValue:
		return v.text
	}
	return quote(v.text)
}

// matchPath compares segment by segment. A '*' at the end of a segment matches any
// further bytes of that segment (at least one, if it is the whole segment). It matches
// no control character, and so never crosses '/' or a line.
func matchPath(pattern, got string) bool {
	for {
		want, moreWant, wantMore := strings.Cut(pattern, "/")
		have, moreHave, haveMore := strings.Cut(got, "/")
		if !matchSegment(want, have) || wantMore != haveMore {
			return false
		}
		if !wantMore {
			return true
		}
		pattern, got = moreWant, moreHave
	}
}

func matchSegment(want, have string) bool {
	prefix, ok := strings.CutSuffix(want, "*")
	if !ok {
		return want == have
	}
	rest, ok := strings.CutPrefix(have, prefix)
	if !ok || (prefix == "" && rest == "") {
		return false
	}
	return strings.IndexFunc(rest, func(r rune) bool {
		return r < 0x20 || (r >= 0x7f && r < 0xa0) || r == '\u2028' || r == '\u2029'
	}) < 0
}

// quote returns s as a JSON string, as short as JSON allows.
func quote(s string) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		return `""`
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// mismatch is the first condition of a rule that a token fails.
type mismatch struct {
	claim   string
	got     any
	present bool
	want    []value
}

// firstMismatch compares claims with the rule. It returns the first mismatch (or false
// if all conditions hold) and the distance of the token from the rule. A mismatch in
// an identifying claim outweighs any number of others.
func (r *rule) firstMismatch(claims idtoken.Claims, engine string) (first mismatch, missed bool, distance int) {
	for _, c := range r.match {
		if c.admits(claims) {
			continue
		}
		if !missed {
			got, ok := claims.Get(c.claim)
			first, missed = mismatch{claim: c.claim, got: got, present: ok, want: c.values}, true
		}
		distance++
		if c.identifying {
			distance += 1000
		}
	}
	if engine != "" && !slices.Contains(r.engines, engine) {
		if !missed {
			first, missed = mismatch{claim: claimEngine, got: engine, present: true}, true
			for _, e := range r.engines {
				first.want = append(first.want, value{text: e})
			}
		}
		distance++
	}
	return first, missed, distance
}
