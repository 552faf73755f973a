package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/client"
	"github.com/mayfly-ca/mayfly/client/command"
	"github.com/mayfly-ca/mayfly/client/internal/api"
	"github.com/mayfly-ca/mayfly/client/tokensource"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// The exit codes, by their short names.
const (
	exitOK     = command.ExitOK
	exitFailed = command.ExitFailed
	exitUsage  = command.ExitUsage
	exitDenied = command.ExitDenied
	exitIssuer = command.ExitIssuer
	exitEngine = command.ExitEngine
)

// failure is an error for display: what happened and where, what to change, and
// the exit code.
type failure struct {
	code  int
	what  string
	hints []string
	rule  string // YAML to paste, printed after the hints; may be empty
	err   error
}

func (f *failure) Error() string { return f.what }

// Unwrap exposes the cause.
func (f *failure) Unwrap() error { return f.err }

// failf returns a failure. Every failure has a hint.
func failf(code int, hint, format string, args ...any) *failure {
	err := fmt.Errorf(format, args...)
	return &failure{code: code, what: err.Error(), hints: []string{hint}, err: err}
}

// commandStatus is the exit code of exec's command. mayfly returns it without a message.
type commandStatus int

func (s commandStatus) Error() string { return fmt.Sprintf("the command ended with status %d", int(s)) }

// explain returns the message, hints and exit code for err.
func explain(err error) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	var usage *command.UsageError
	if errors.As(err, &usage) {
		return usageFailure(err)
	}
	if errors.Is(err, context.Canceled) {
		return &failure{code: exitFailed, what: "stopped by a signal before it was done", err: err}
	}
	for _, explain := range []func(error) *failure{explainEngine, explainProblem, explainTokenSource, explainUnreachable} {
		if f := explain(err); f != nil {
			return f
		}
	}
	f = &failure{code: exitFailed, what: err.Error(), err: err, hints: hintsOf(err)}
	if len(f.hints) == 0 {
		f.hints = []string{"`mayfly doctor` checks each step on the way to the engine"}
	}
	return f
}

// asFlags replaces setting names in hints of package client by this program's flags.
var asFlags = strings.NewReplacer(
	"the issuer's URL", "--issuer (MAYFLY_ISSUER)",
	"trust_anchor", "--trust-anchor (MAYFLY_TRUST_ANCHOR)",
	"ca_file", "--ca-file (MAYFLY_CA_FILE)",
	"token_source", "--token-source",
	"wake_timeout", "--wake-timeout",
)

// hintsOf returns the hint of an error of package client, one element for each line.
func hintsOf(err error) []string {
	var hints []string
	for line := range strings.Lines(asFlags.Replace(client.Hint(err))) {
		hints = append(hints, strings.TrimRight(line, "\n"))
	}
	return hints
}

// explainEngine explains an engine that refused a connection, ended a relay, has
// another identity, or is unreachable.
func explainEngine(err error) *failure {
	var (
		cut         *client.CutError
		rejected    *client.RejectedError
		untrusted   *client.UntrustedEngineError
		unreachable *client.EngineUnreachableError
	)
	switch {
	case errors.As(err, &cut):
		err = cut
	case errors.As(err, &rejected):
		err = rejected
	case errors.As(err, &untrusted):
		err = untrusted
	case errors.As(err, &unreachable):
		err = unreachable
	default:
		return nil
	}
	return &failure{code: exitEngine, what: err.Error(), err: err, hints: hintsOf(err)}
}

// explainUnreachable explains an issuer that gave no answer.
func explainUnreachable(err error) *failure {
	var i *client.IssuerUnreachableError
	var a *api.UnreachableError
	switch {
	case errors.As(err, &i):
	case errors.As(err, &a):
		i = &client.IssuerUnreachableError{URL: a.Issuer, Err: a.Err}
	default:
		return nil
	}
	return &failure{code: exitIssuer, what: i.Error(), err: err, hints: hintsOf(i)}
}

// explainTokenSource explains why a source gave no token.
func explainTokenSource(err error) *failure {
	var t *tokensource.Error
	switch {
	case errors.Is(err, tokensource.ErrNoLogin), errors.Is(err, tokensource.ErrLoginExpired):
		var cause error = tokensource.ErrNoLogin
		if errors.Is(err, tokensource.ErrLoginExpired) {
			cause = err
		}
		return &failure{code: exitFailed, what: cause.Error(), err: err,
			hints: []string{"run `mayfly login`, or set MAYFLY_ADMIN_TOKEN to an ID token of a people provider"}}
	case errors.As(err, &t):
		f := &failure{code: exitFailed, what: fmt.Sprintf("id token from %s: %v", t.Source, t.Err), err: err, hints: hintsOf(t)}
		switch {
		case len(f.hints) > 0:
		case t.Temporary:
			f.hints = []string{"the platform's token endpoint has trouble: run the job again"}
		default:
			f.hints = []string{"name another source of tokens with --token-source"}
		}
		return f
	}
	return nil
}

// explainProblem explains an answer of the issuer that is not a success.
func explainProblem(err error) *failure {
	var p *wire.Problem
	if !errors.As(err, &p) {
		return nil
	}
	f := &failure{code: exitFailed, what: p.Error(), err: p}
	switch p.Name() {
	case wire.ProblemDenied:
		f.hints = deniedHints(p)
	case wire.ProblemSeveralEngines:
		f.code = exitUsage
		f.hints = []string{"choose one with --engine, MAYFLY_ENGINE, or the action's input engine"}
	case wire.ProblemBlocked:
		f.hints = []string{"ask an admin, who revoked this run or identity: `mayfly blocks list` shows the reason, and `mayfly blocks remove` ends the block"}
	case wire.ProblemForbiddenRole:
		f.hints = []string{"in the issuer's policy, give this login a rule of type people whose grant has the role it needs: viewer to look, admin to change"}
	case wire.ProblemBadToken:
		f.hints = []string{"`mayfly doctor` shows the token's claims next to what the issuer wants"}
		if strings.Contains(p.Detail, "made for audience") {
			f.hints = []string{"leave --audience (MAYFLY_AUDIENCE) out, for the issuer names its own; a token of --token-source must be made for that one"}
		}
	case wire.ProblemReplay:
		f.hints = []string{"give each program a token of its own: a token is good for one certificate"}
	case wire.ProblemBadCSR:
		f.hints = []string{"the key must be P-256, P-384, Ed25519, or RSA of 2048 bits or more"}
	case wire.ProblemNotFound:
		f.hints = []string{"`mayfly certs list` shows what there is; certificates that expired long ago are deleted"}
	case wire.ProblemBadRequest, wire.ProblemTooLarge:
		f.hints = []string{"correct what it names; if that is right, compare `mayfly version` with the issuer's version"}
	case "":
		f.hints = []string{"correct --issuer (MAYFLY_ISSUER): its host or its port"}
		if p.WantsTLS() {
			f.hints = []string{"write https:// in --issuer (MAYFLY_ISSUER)"}
		}
	}
	switch p.Status {
	case http.StatusForbidden:
		f.code = exitDenied
	case http.StatusTooManyRequests:
		f.code = exitIssuer
		f.hints = []string{"too many requests from here: " + retryAfterHint(p.RetryAfter)}
	case http.StatusServiceUnavailable, http.StatusBadGateway, http.StatusGatewayTimeout:
		f.code = exitIssuer
		f.hints = []string{retryAfterHint(p.RetryAfter) + "; the issuer's log and its /readyz say why it cannot serve now"}
	}
	if len(f.hints) == 0 {
		f.hints = []string{"look in the issuer's log" + requestID(p)}
	}
	return f
}

func retryAfterHint(seconds int) string {
	if seconds > 0 {
		return "try again in " + shortDuration(time.Duration(seconds)*time.Second)
	}
	return "try again in a minute"
}

func requestID(p *wire.Problem) string {
	if p.Instance == "" {
		return ""
	}
	return " for request " + p.Instance
}

// deniedHints says how the policy could admit the token. If the claims are known,
// admitting appends the rule.
func deniedHints(p *wire.Problem) []string {
	switch {
	case p.Claim == claimEngine && p.Rule != "":
		return []string{fmt.Sprintf("name one of those with --engine, or add yours to the engines of rule %s in the issuer's policy file (policy.yaml)", p.Rule)}
	case p.Rule == "" || p.Claim == "":
		return []string{"no rule of the issuer's policy is for such a token"}
	}
	return []string{fmt.Sprintf("the nearest rule of the issuer's policy is %s; the claim that it does not admit is %s", p.Rule, p.Claim)}
}

// claimEngine is the claim name in a denial if only the requested engine is not
// granted.
const claimEngine = "engine"

// admitting adds to a denial the rule that would admit the token, and names the
// file for the rule. After a failed job, no other command can run in it.
func (f *failure) admitting(c claimSet, engine string) *failure {
	var p *wire.Problem
	if !errors.As(f.err, &p) || p.Name() != wire.ProblemDenied || p.Claim == claimEngine {
		return f
	}
	s, err := suggest(c, "", cmp.Or(engine, "default"))
	if err != nil {
		return f
	}
	with := *f
	with.rule = s.yaml()
	with.hints = []string{"to admit it, add this under rules in the issuer's policy file (policy.yaml, next to issuer.yaml):"}
	return &with
}

// explainAdmin explains an error of an admin command, whose token is a person's.
func explainAdmin(err error) *failure {
	f := explain(err)
	var p *wire.Problem
	if !errors.As(err, &p) {
		return f
	}
	switch p.Name() {
	case wire.ProblemBadToken:
		f.hints = []string{"`mayfly login` again: admin calls want a login of the last hour"}
		if os.Getenv("MAYFLY_ADMIN_TOKEN") != "" {
			f.hints = []string{"MAYFLY_ADMIN_TOKEN must be an ID token of a people provider, issued within the last hour; without it the stored login is used"}
		}
	case wire.ProblemDenied, wire.ProblemForbiddenRole:
		f.hints = []string{"no rule of type people in the issuer's policy gives this login the role that it needs: viewer to look, admin to change or to see blocks"}
	}
	return f
}
