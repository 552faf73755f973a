package sidecar_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mayfly-ca/mayfly/client/tokensource"
	"github.com/mayfly-ca/mayfly/client/wire"
	sidecar "github.com/mayfly-ca/mayfly/engine-sidecar"
)

// TestErrorHints checks the log of an issuer's refusal. The sidecar has no
// interactive command line, so the hint names a key of its configuration or of
// the policy.
func TestErrorHints(t *testing.T) {
	t.Parallel()
	problem := func(name, claim, rule string) error {
		return &wire.Problem{Type: wire.ProblemPrefix + name, Status: 403, Detail: "refused", Claim: claim, Rule: rule}
	}
	for name, tt := range map[string]struct {
		err  error
		hint string // the beginning; empty: no hint
	}{
		"another engine":         {problem(wire.ProblemDenied, "engine", "engine"), "correct engine, or add this engine to the engines of rule engine"},
		"a machine not named":    {problem(wire.ProblemDenied, "app_id", "engine"), "if this machine is meant, write its app_id into the match of rule engine"},
		"no rule":                {problem(wire.ProblemDenied, "", ""), "add a rule with profile: server"},
		"another audience":       {&wire.Problem{Type: wire.ProblemPrefix + wire.ProblemBadToken, Status: 401, Detail: `token refused: it is made for audience "x"`}, "leave audience out"},
		"an expired token":       {&wire.Problem{Type: wire.ProblemPrefix + wire.ProblemBadToken, Status: 401, Detail: "token refused: it expired"}, "correct token_source"},
		"a token used before":    {problem(wire.ProblemReplay, "", ""), "correct token_source"},
		"blocked":                {problem(wire.ProblemBlocked, "", ""), "ask an admin"},
		"no issuer":              {&wire.Problem{Status: 404, Title: "Not Found"}, "correct issuer: its host or its port"},
		"a proxy with trouble":   {&wire.Problem{Status: 502, Title: "Bad Gateway"}, ""},
		"the issuer is at fault": {problem(wire.ProblemInternal, "", ""), ""},
		"a token's own hint":     {&tokensource.Error{Source: "file /t", Err: errors.New("it is empty"), Hint: "write a token"}, "write a token"},
		"an error without one":   {errors.New("x"), ""},
	} {
		attrs := sidecar.ErrorAttrs(fmt.Errorf("mint: %w", tt.err))
		if strings.Contains(fmt.Sprint(attrs[1]), "\n") {
			t.Errorf("%s: the error has a second line: %q", name, attrs[1])
		}
		if tt.hint == "" {
			if len(attrs) != 2 {
				t.Errorf("%s: %q, want no hint", name, attrs)
			}
			continue
		}
		if len(attrs) != 4 || !strings.HasPrefix(fmt.Sprint(attrs[3]), tt.hint) {
			t.Errorf("%s: %q, want the hint %q", name, attrs, tt.hint)
			continue
		}
		if diff := cmp.Diff([]any{"error", "hint"}, []any{attrs[0], attrs[2]}); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
