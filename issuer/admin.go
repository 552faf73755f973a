package issuer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
)

// Person is the caller of an admin call. It is decided for each request.
type Person struct {
	Name     string // as in an event's By: provider/email if the email is verified, else provider/sub
	Provider string
	Subject  string
	Role     policy.Role
	Rule     string
	Until    time.Time // when the Bearer token expires for admin calls
}

// requireRole verifies the request's Bearer token and requires a role. A verified
// token without the role gets 403 forbidden-role and is recorded as an event.
func (s *Server) requireRole(w http.ResponseWriter, r *http.Request, want policy.Role) (Person, error) {
	raw, err := bearer(r)
	if err != nil {
		return Person{}, err
	}
	ctx := r.Context()
	rules := s.policies.load()
	claims, err := rules.verifier.Verify(ctx, raw, rules.set.Audience())
	if err != nil {
		return Person{}, err
	}
	info := infoOf(ctx)
	info.identity = subjectName(claims)
	if err := s.perID.take(w, r, limitKey(claims)); err != nil {
		return Person{}, err
	}
	p, err := s.roleOf(claims, rules.set)
	if err == nil {
		err = checkRole(p.Role, want)
	}
	var stale *idtoken.TokenError // issued longer ago than policy.MaxRoleAge
	if errors.As(err, &stale) {
		return Person{}, err
	}
	if err != nil {
		return Person{}, s.forbidden(ctx, claims, r.Method+" "+routeOf(r), err)
	}
	info.rule = p.Rule
	return p, nil
}

// roleOf returns the person with the role that the policy grants to claims now.
func (s *Server) roleOf(claims idtoken.Claims, set *policy.Set) (Person, error) {
	d, err := set.Decide(claims, policy.Request{Want: policy.WantRole})
	if err != nil {
		return Person{}, err
	}
	name := claims.Subject()
	// An unverified email address may belong to another person, and events would name
	// that person.
	if verified, _ := claims.Get(idtoken.ClaimEmailVerified); verified == true {
		if email, ok := claims.String(idtoken.ClaimEmail); ok {
			name = email
		}
	}
	provider := d.Provider.Name
	until := claims.IssuedAt().Add(policy.MaxRoleAge)
	if end := claims.ExpiresAt(); end.Before(until) {
		until = end
	}
	return Person{Name: provider + "/" + name, Provider: provider, Subject: claims.Subject(), Role: d.Role, Rule: d.Rule, Until: until}, nil
}

// Role decides the role of a logged-in person again, from the claims recorded at the
// login to the page. The error is a *policy.Denial when the policy no longer grants a
// role.
func (s *Server) Role(claims idtoken.Claims) (Person, error) {
	return s.roleOf(claims, s.policies.load().set)
}

// checkRole returns nil if have covers want. Admin covers viewer.
func checkRole(have, want policy.Role) error {
	if have == policy.Admin || (have == policy.Viewer && want == policy.Viewer) {
		return nil
	}
	return fmt.Errorf("role is %q, this call wants %q", string(have), string(want))
}

// forbidden records an attempt without the required role.
func (s *Server) forbidden(ctx context.Context, c idtoken.Claims, what string, cause error) error {
	return s.recordForbidden(ctx, eventOf(store.EventForbidden, c), what, cause)
}

func (s *Server) recordForbidden(ctx context.Context, ev store.Event, what string, cause error) error {
	ev.Reason = what
	if err := s.authority.Store().Denied(ctx, ev); err != nil {
		s.logger.ErrorContext(ctx, "event not recorded", "type", ev.Type, "err", err)
	}
	return forbiddenRole("this call needs a role that the policy does not grant to this token", cause)
}

// whoami handles GET /v1/whoami.
func (s *Server) whoami(w http.ResponseWriter, r *http.Request) error {
	p, err := s.requireRole(w, r, policy.Viewer)
	if err != nil {
		return err
	}
	if err := noQuery(r); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, wire.Whoami{
		Name: p.Name, Provider: p.Provider, Subject: p.Subject, Role: string(p.Role), Rule: p.Rule, Until: p.Until.UTC(),
	})
}

// Read records that a person viewed the full record of a certificate.
func (s *Server) Read(ctx context.Context, by, serial string) {
	infoOf(ctx).serial = serial
	ev := store.Event{Time: time.Now().UTC(), Type: store.EventAdminRead, By: truncate(by), Serial: serial}
	if err := s.authority.Store().Append(ctx, ev); err != nil {
		s.logger.ErrorContext(ctx, "event not recorded", "type", ev.Type, "err", err)
	}
}

// recordDenial records a policy denial. It returns the denial even if the event could
// not be written.
func (s *Server) recordDenial(ctx context.Context, c idtoken.Claims, cause error) error {
	var denial *policy.Denial
	if !errors.As(cause, &denial) {
		return cause
	}
	s.metrics.denied(denial.Claim)
	ev := eventOf(store.EventDenied, c)
	ev.Rule, ev.Reason = denial.Rule, denial.Claim
	if ev.Reason == "" {
		ev.Reason = "no rule"
	}
	if denial.Got != "" {
		ev.Detail = map[string]string{"got": truncate(denial.Got)}
	}
	if err := s.authority.Store().Denied(ctx, ev); err != nil {
		s.logger.ErrorContext(ctx, "event not recorded", "type", ev.Type, "err", err)
	}
	return cause
}

// Reasons of denials that are not caused by a claim.
const (
	blockedReason = "blocked"
	floorReason   = "before the floor"
)

// recordRefusal records why a token that the policy admits got no certificate.
func (s *Server) recordRefusal(ctx context.Context, c idtoken.Claims, d policy.Decision, cause error) error {
	var (
		blocked *store.BlockedError
		replay  *store.ReplayError
		refused *ca.RefusedError
		ev      store.Event
		label   string
	)
	switch {
	case errors.As(cause, &blocked):
		ev, label = eventOf(store.EventDenied, c), blockedReason
		ev.Reason, ev.Detail = blockedReason, map[string]string{"block": blocked.Block.ID}
	case errors.As(cause, &replay):
		ev, label = eventOf(store.EventReplay, c), store.EventReplay
		ev.Serial, ev.Reason = replay.Serial, replay.Why+", certificate "+replay.Serial
	case errors.Is(cause, store.ErrBeforeFloor):
		ev, label = eventOf(store.EventDenied, c), floorReason
		ev.Reason = floorReason
	case errors.As(cause, &refused):
		return cause
	default:
		return unavailable("issue", cause)
	}
	ev.Rule = d.Rule
	s.metrics.denied(label)
	if err := s.authority.Store().Denied(ctx, ev); err != nil {
		s.logger.ErrorContext(ctx, "event not recorded", "type", ev.Type, "err", err)
	}
	return cause
}

// eventOf returns an event filled from verified claims.
func eventOf(kind string, c idtoken.Claims) store.Event {
	ev := store.Event{Time: time.Now().UTC(), Type: kind, Identity: truncate(subjectName(c)), By: truncate(subjectName(c))}
	if v, ok := c.String("repository"); ok {
		ev.Repository = truncate(v)
	}
	if v, ok := c.String("run_id"); ok {
		ev.RunID = truncate(v)
	}
	return ev
}

// truncate cuts a claim's text for an event to 256 bytes, at a rune boundary.
func truncate(s string) string {
	const limit = 256
	if len(s) <= limit {
		return s
	}
	for i := limit; i > 0; i-- {
		if s[i]&0xc0 != 0x80 {
			return s[:i]
		}
	}
	return ""
}
