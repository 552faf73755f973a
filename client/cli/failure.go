package cli

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/client"
	"github.com/mayfly-ca/mayfly/client/admin"
	"github.com/mayfly-ca/mayfly/client/tokensource"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// Exit codes. Scripts and the GitHub Action branch on them: they never change.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
	exitDenied = 3 // policy said no (403)
	exitIssuer = 4 // issuer unreachable, 429 or 503: the same call may succeed later
	exitEngine = 5 // engine unreachable, or it refused
)

// failure is an error as a person is told it: what happened and where, what to
// change, and the exit code.
type failure struct {
	code  int
	what  string
	hints []string
	err   error
}

func (f *failure) Error() string { return f.what }

// Unwrap exposes the cause.
func (f *failure) Unwrap() error { return f.err }

// failf makes a failure; the hint is not optional.
func failf(code int, hint, format string, args ...any) *failure {
	err := fmt.Errorf(format, args...)
	return &failure{code: code, what: err.Error(), hints: []string{hint}, err: err}
}

// commandStatus is the exit code of exec's command, passed on in silence.
type commandStatus int

func (s commandStatus) Error() string { return fmt.Sprintf("the command ended with status %d", int(s)) }

// told turns any error into what a person is told.
func told(err error) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	for _, explain := range []func(error) *failure{toldByEngine, toldByIssuer, toldOfToken, toldOfReach} {
		if f := explain(err); f != nil {
			return f
		}
	}
	if errors.Is(err, context.Canceled) {
		return &failure{code: exitFailed, what: "interrupted", hints: []string{"run it again to finish"}, err: err}
	}
	return &failure{code: exitFailed, what: err.Error(), err: err,
		hints: []string{"`mayfly doctor` checks the way to the engine step by step"}}
}

// toldByEngine explains an engine that refused, ended a relay, is another, or
// does not answer.
func toldByEngine(err error) *failure {
	f := &failure{code: exitEngine, what: err.Error(), err: err}
	var rejected *client.RejectedError
	var cut *client.CutError
	var untrusted *client.UntrustedEngineError
	var asleep *client.EngineUnreachableError
	switch {
	case errors.As(err, &cut):
		f.what = refusalWords(cut.Engine, cut.Reason, cut.Serial, "it ended the connection")
		if cut.Renewal != nil {
			f.what += "; renewing the certificate fails: " + told(cut.Renewal).what
		}
		f.hints = []string{reasonHint(cut.Reason, cut.Serial)}
	case errors.As(err, &rejected):
		f.what = refusalWords(rejected.Engine, rejected.Reason, rejected.Serial, rejected.Endpoint+" refused it")
		if rejected.Err != nil {
			f.what += " (" + rejected.Err.Error() + ")"
		}
		f.hints = []string{reasonHint(rejected.Reason, rejected.Serial)}
	case errors.As(err, &untrusted):
		f.what = untrusted.Error()
		f.hints = []string{"the endpoint and server_name of engine " + untrusted.Engine + " in the issuer's policy must be those of a sidecar of the same issuer; if they are, somebody else answers there"}
	case errors.As(err, &asleep):
		f.what = asleep.Error()
		f.hints = []string{"look at the engine's machine and its sidecar's log, and whether this network may reach " + asleep.Endpoint + "; --wake-timeout waits longer"}
	default:
		return nil
	}
	return f
}

// refusalWords says who refused or ended what, and why.
func refusalWords(engine, reason, serial, did string) string {
	if words := engineWords(reason); words != "" {
		return fmt.Sprintf("engine %s: %s (certificate %s): %s", engine, words, serial, did)
	}
	return fmt.Sprintf("engine %s: %s, serial %s: %s", engine, certificateWords(reason), serial, did)
}

// certificateWords says a reason that lies in the certificate.
func certificateWords(reason string) string {
	switch reason {
	case wire.ReasonRevoked:
		return "certificate revoked"
	case wire.ReasonExpired:
		return "certificate expired"
	case wire.ReasonWrongEngine:
		return "certificate is not granted for this engine"
	}
	return "certificate refused (" + reason + ")"
}

// engineWords says a reason that lies at the engine or in between; empty for
// any other.
func engineWords(reason string) string {
	switch reason {
	case wire.ReasonFeedStale:
		return "it has no fresh revocation list and admits nobody (feed_stale)"
	case wire.ReasonLimit:
		return "it has as many connections as it takes (limit)"
	case wire.ReasonDraining:
		return "it is about to stop (draining)"
	case client.ReasonUnknownCA:
		return "it trusts the root of another issuer"
	case client.ReasonSilence:
		return fmt.Sprintf("its machine has said nothing for %v", wire.ControlSilence)
	case client.ReasonLost:
		return "the connection broke and nobody said why"
	}
	return ""
}

// reasonHint says what to change after a refusal.
func reasonHint(reason, serial string) string {
	switch reason {
	case wire.ReasonRevoked:
		return "`mayfly certs show " + serial + "` says who revoked it and why, `mayfly blocks list` until when its run gets no other"
	case wire.ReasonExpired:
		return "compare the clocks of both machines, and look above for why it was not renewed"
	case wire.ReasonWrongEngine:
		return "name an engine of the rule's grant with --engine, or add this one to the rule"
	case wire.ReasonFeedStale:
		return "the engine's sidecar does not reach the issuer: look at its log"
	case wire.ReasonLimit, wire.ReasonDraining:
		return "run it again later"
	case client.ReasonUnknownCA:
		return "engine and job must have the same MAYFLY_ISSUER"
	}
	return "the sidecar's log has the reason, under serial " + serial
}

// toldOfReach explains an issuer that gave no answer.
func toldOfReach(err error) *failure {
	hint := "check the URL, this machine's network, and the issuer's /healthz"
	var i *client.IssuerUnreachableError
	var a *admin.UnreachableError
	switch {
	case errors.As(err, &i):
		err = i
	case errors.As(err, &a):
		err = a
	default:
		return nil
	}
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	var dns *net.DNSError
	switch {
	case errors.As(err, &unknown):
		hint = "the issuer's TLS certificate is of no CA that this machine trusts: give its roots with --ca-file, or, where it serves mayfly's own, the root's fingerprint with --trust-anchor"
	case errors.As(err, &invalid), errors.As(err, &name):
		hint = "the issuer's TLS certificate is not valid for this URL now: check the URL and this machine's clock"
	case errors.As(err, &dns) && dns.IsNotFound:
		hint = "the host does not exist: correct --issuer"
	}
	return &failure{code: exitIssuer, what: err.Error(), err: err, hints: []string{hint}}
}

// toldOfToken explains a token that could not be had.
func toldOfToken(err error) *failure {
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
		f := &failure{code: exitFailed, what: fmt.Sprintf("id token from %s: %v", t.Source, t.Err), err: err}
		for line := range strings.Lines(t.Hint) {
			f.hints = append(f.hints, strings.TrimRight(line, "\n"))
		}
		switch {
		case len(f.hints) > 0:
		case t.Temporary:
			f.hints = []string{"the platform's token endpoint has trouble: run the job again"}
		default:
			f.hints = []string{"`mayfly doctor` checks the source of tokens; --token-source names another"}
		}
		return f
	}
	return nil
}

// toldByIssuer explains an answer of the issuer that is not a success.
func toldByIssuer(err error) *failure {
	var p *wire.Problem
	if !errors.As(err, &p) {
		return nil
	}
	f := &failure{code: exitFailed, what: p.Error(), err: p}
	if p.Name() == "" {
		f.what = fmt.Sprintf("issuer: %d %s, which is no answer of a mayfly issuer", p.Status, p.Title)
	}
	switch p.Name() {
	case wire.ProblemDenied:
		f.hints = deniedHints(p)
	case wire.ProblemSeveralEngines:
		f.code = exitUsage
		f.hints = []string{"choose one with --engine or MAYFLY_ENGINE"}
	case wire.ProblemBlocked:
		f.hints = []string{"an admin revoked this run or identity and refuses it new certificates for a time: `mayfly blocks list` shows why and until when"}
	case wire.ProblemForbiddenRole:
		f.hints = []string{"the login's rule grants no role, or viewer where admin is needed: see the rules of type people in the issuer's policy"}
	case wire.ProblemBadToken:
		f.hints = []string{"the issuer does not accept the token: `mayfly doctor` shows its claims beside what the issuer wants"}
	case wire.ProblemReplay:
		f.hints = []string{"each token buys one certificate: fetch a fresh one, do not hand the same one to two programs"}
	case wire.ProblemBadCSR:
		f.hints = []string{"the key must be P-256, P-384, Ed25519, or RSA of 2048 bits or more"}
	case wire.ProblemNotFound:
		f.hints = []string{"`mayfly certs list` shows what there is; certificates that expired long ago are pruned"}
	case wire.ProblemBadRequest, wire.ProblemTooLarge:
		f.hints = []string{"correct what it names; if that is right, compare `mayfly version` with the issuer's version"}
	}
	switch p.Status {
	case http.StatusForbidden:
		f.code = exitDenied
	case http.StatusTooManyRequests:
		f.code = exitIssuer
		f.hints = []string{"too many requests from here: " + again(p.RetryAfter)}
	case http.StatusServiceUnavailable, http.StatusBadGateway, http.StatusGatewayTimeout:
		f.code = exitIssuer
		f.hints = []string{"the issuer cannot serve now: " + again(p.RetryAfter) + "; its log and /readyz say why"}
	}
	if len(f.hints) == 0 {
		f.hints = []string{"the issuer's log says more" + requestID(p) + "; if something else answers there, correct --issuer"}
	}
	return f
}

func again(seconds int) string {
	if seconds > 0 {
		return "try again in " + span(time.Duration(seconds)*time.Second)
	}
	return "try again in a minute"
}

func requestID(p *wire.Problem) string {
	if p.Instance == "" {
		return ""
	}
	return " at request " + p.Instance
}

func deniedHints(p *wire.Problem) []string {
	h := "no rule of the issuer's policy admits this token"
	switch {
	case p.Claim == "engine":
		return []string{"name an engine that the rule grants with --engine, or leave it out; `mayfly doctor` without it shows which ones those are"}
	case p.Rule != "" && p.Claim != "":
		h = fmt.Sprintf("the nearest rule is %s, and the claim that it does not take is %s", p.Rule, p.Claim)
	case p.Claim != "":
		h = "the claim that no rule takes is " + p.Claim
	}
	return []string{h, "`mayfly policy suggest`, run in this job, prints the rule that would admit it"}
}

// toldAdmin is told for an admin's command, whose token is a person's.
func toldAdmin(err error) *failure {
	f := told(err)
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
