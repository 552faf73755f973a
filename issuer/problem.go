package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"unicode"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
)

// Error is a refusal with a public text and a private cause. Name is a wire.Problem*
// constant. Err is only for the log.
type Error struct {
	Name       string
	Detail     string   // public: sent to the client
	Claim      string   // denied only
	Rule       string   // denied and several-engines only
	Engines    []string // the engines that Rule grants; on several-engines, and on denied for the engine
	RetryAfter int      // seconds, 0 for none
	Err        error    // may be nil
}

// Error returns the text for the log.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Name + ": " + e.Err.Error()
	}
	return e.Name + ": " + e.Detail
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func badRequest(format string, args ...any) error {
	return &Error{Name: wire.ProblemBadRequest, Detail: fmt.Sprintf(format, args...)}
}

func badToken(format string, args ...any) error {
	return &Error{Name: wire.ProblemBadToken, Detail: fmt.Sprintf(format, args...)}
}

func forbiddenRole(detail string, err error) error {
	return &Error{Name: wire.ProblemForbiddenRole, Detail: detail, Err: err}
}

// unavailable marks an error of the store or the keys as 503, so that the client may
// try again. Errors that already have a problem name stay as they are.
func unavailable(operation string, err error) error {
	if _, ok := problemFor(err); ok {
		return err
	}
	return &Error{Name: wire.ProblemUnavailable, Detail: "the issuer cannot do this now; try again", RetryAfter: 1, Err: fmt.Errorf("%s: %w", operation, err)}
}

// problemFor maps errors to problems; no other function does. It returns false for an
// error without a problem, which is a 500 without detail.
func problemFor(err error) (*Error, bool) {
	var (
		own      *Error
		token    *idtoken.TokenError
		keys     *idtoken.UnavailableError
		denial   *policy.Denial
		several  *policy.SeveralEnginesError
		csr      *ca.CSRError
		blocked  *store.BlockedError
		replay   *store.ReplayError
		tooLarge *http.MaxBytesError
	)
	switch {
	case errors.As(err, &own):
		return own, true
	case errors.As(err, &token):
		return &Error{Name: wire.ProblemBadToken, Detail: "token refused: " + token.Public, Err: err}, true
	case errors.As(err, &keys):
		return &Error{Name: wire.ProblemUnavailable, Detail: "the token's issuer cannot be reached to fetch its keys; try again", RetryAfter: 5, Err: err}, true
	case errors.As(err, &denial):
		return &Error{Name: wire.ProblemDenied, Detail: denialDetail(denial), Claim: denial.Claim, Rule: denial.Rule, Engines: denial.Engines, Err: err}, true
	case errors.As(err, &several):
		return &Error{Name: wire.ProblemSeveralEngines, Detail: several.Error(), Rule: several.Rule, Engines: several.Engines, Err: err}, true
	case errors.As(err, &csr):
		return &Error{Name: wire.ProblemBadCSR, Detail: csr.Error(), Err: err}, true
	case errors.As(err, &blocked):
		return &Error{Name: wire.ProblemBlocked, Detail: blockedDetail(blocked), Err: err}, true
	case errors.As(err, &replay):
		return &Error{Name: wire.ProblemReplay, Detail: replayDetail(replay), Err: err}, true
	case errors.Is(err, store.ErrBeforeFloor):
		return &Error{Name: wire.ProblemBadToken, Detail: "the token was issued before everything was revoked; ask for a fresh one", Err: err}, true
	case errors.Is(err, store.ErrNotFound):
		return &Error{Name: wire.ProblemNotFound, Detail: "nothing with this name is recorded here", Err: err}, true
	case errors.Is(err, store.ErrBadCursor):
		return &Error{Name: wire.ProblemBadRequest, Detail: "cursor: not one that this issuer gave", Err: err}, true
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Name: wire.ProblemUnavailable, Detail: "the issuer was too busy to answer in time; try again", RetryAfter: 1, Err: err}, true
	case errors.As(err, &tooLarge):
		return &Error{Name: wire.ProblemTooLarge, Detail: fmt.Sprintf("the body is larger than %d bytes", tooLarge.Limit), Err: err}, true
	}
	return nil, false
}

func denialDetail(d *policy.Denial) string {
	switch {
	case d.Claim == "":
		return "the policy has no rule for such a token"
	case len(d.Engines) > 0:
		return fmt.Sprintf("rule %s does not grant engine %s; it grants %s", d.Rule, Printable(d.Got), strings.Join(d.Engines, ", "))
	case d.Got == "":
		return fmt.Sprintf("the policy does not admit a token without claim %s (nearest rule: %s)", d.Claim, d.Rule)
	}
	return fmt.Sprintf("the policy does not admit %s %s (nearest rule: %s)", d.Claim, Printable(d.Got), d.Rule)
}

func blockedDetail(e *store.BlockedError) string {
	return "issuing is blocked until " + e.Block.Until.UTC().Format("2006-01-02T15:04:05Z07:00") + "; an admin revoked certificates of this run or identity"
}

func replayDetail(e *store.ReplayError) string {
	switch e.Why {
	case "another key":
		return "this token was used for a certificate with another key; get a fresh token for each certificate"
	case "another grant":
		return "this token was used for a certificate that the policy or the issuer's key does not give now; ask for a fresh token"
	case "":
		return "this token was used before; get a fresh one"
	}
	return "this token was used for a certificate that is " + e.Why + "; get a fresh token"
}

// problemOf returns the problem document for the client.
func problemOf(err error, requestID string) *wire.Problem {
	e, ok := problemFor(err)
	if !ok {
		e = &Error{Name: wire.ProblemInternal, Err: err}
	}
	status := wire.ProblemStatus(e.Name)
	return &wire.Problem{
		Type:       wire.ProblemPrefix + e.Name,
		Title:      problemTitle(e.Name),
		Status:     status,
		Detail:     Printable(e.Detail),
		Instance:   requestID,
		Claim:      e.Claim,
		Rule:       e.Rule,
		Engines:    e.Engines,
		RetryAfter: e.RetryAfter,
	}
}

func problemTitle(name string) string {
	switch name {
	case wire.ProblemBadRequest:
		return "The request is not understood"
	case wire.ProblemBadCSR:
		return "The certificate request is refused"
	case wire.ProblemBadToken:
		return "The token is not accepted"
	case wire.ProblemDenied:
		return "The policy does not admit this token"
	case wire.ProblemBlocked:
		return "Issuing is blocked"
	case wire.ProblemForbiddenRole:
		return "The token does not carry the role"
	case wire.ProblemNotFound:
		return "Not found"
	case wire.ProblemReplay:
		return "The token was used before"
	case wire.ProblemSeveralEngines:
		return "The rule grants several engines"
	case wire.ProblemTooLarge:
		return "The request is too large"
	case wire.ProblemRateLimited:
		return "Too many requests"
	case wire.ProblemUnavailable:
		return "Not available now"
	}
	return "Internal error"
}

// writeProblem writes p as the response.
func writeProblem(w http.ResponseWriter, p *wire.Problem) {
	h := w.Header()
	h.Set("Content-Type", wire.ProblemMediaType)
	h.Set("Cache-Control", "no-store")
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	if p.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer")
	}
	body, err := json.Marshal(p)
	if err != nil {
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(body)
}

// clientGone reports whether err was caused only by the client disconnecting.
func clientGone(ctx context.Context, err error) bool {
	return ctx.Err() != nil && errors.Is(err, context.Canceled)
}

// Printable escapes, as \u, characters that control a terminal or reorder text.
// Strangers choose the text of claims.
func Printable(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}
