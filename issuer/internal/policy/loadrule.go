package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/grant"
	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/client/configfile"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

// ordinaryEvents are the GitHub events whose runs are as trusted as the code that they
// build. All others need unsafe_allow_privileged_events: pull_request_target,
// workflow_run and issue_comment run with the base branch's ref and claims, on input
// from any user.
var ordinaryEvents = []string{
	"push", "workflow_dispatch", "schedule", "merge_group", "release", "deployment", eventPullRequest,
}

const eventPullRequest = "pull_request"

func (l *loader) loadRules(in []fileRule) {
	if len(in) == 0 {
		l.bad(path{"rules"}, "rules: there is none, so nothing would be granted")
		return
	}
	if len(in) > maxRules {
		l.bad(path{"rules"}, "rules: more than %d", maxRules)
		return
	}
	names := map[string]bool{}
	for i, f := range in {
		where, at := fmt.Sprintf("rules[%d]", i), path{"rules", i}
		switch {
		case !isRuleName(f.Name):
			l.bad(at.to("name"), "%s.name: want letters, digits, '.', '_' and '-', at most 128", where)
		case names[f.Name]:
			l.bad(at.to("name"), "%s.name: two rules are named %s", where, f.Name)
		default:
			where = "rule " + f.Name
		}
		names[f.Name] = true
		l.loadRule(where, at, f)
	}
}

func (l *loader) loadRule(where string, at path, f fileRule) {
	p, ok := l.set.provider(f.Provider)
	if !ok {
		l.bad(at.to("provider"), "%s.provider: there is no provider %s", where, quote(f.Provider))
		return
	}
	r := &rule{
		name: f.Name, provider: p,
		allRepositories: f.AllRepositories, privilegedEvents: f.UnsafeAllowPrivilegedEvents,
	}
	if r.match, ok = l.loadMatch(where, at.to("match"), p.Type, &f.Match); !ok {
		return
	}
	if err := checkWho(r); err != nil {
		l.bad(at.to("match"), "%s: %v%s", where, err, r.mistyped(whoClaims(p.Type)))
	}
	if err := checkEvents(r); err != nil {
		l.bad(at.to("match", idtoken.ClaimEventName), "%s: %v%s", where, err, r.mistyped([]string{idtoken.ClaimEventName}))
	}
	if err := l.loadGrant(r, f.Grant); err != nil {
		key, _, _ := strings.Cut(err.Error(), ":") // if the error begins with a key
		l.bad(at.to("grant", key), "%s.grant: %v", where, err)
	}
	l.set.rules = append(l.set.rules, r)
}

// condition returns the rule's condition on a claim.
func (r *rule) condition(claim string) (condition, bool) {
	i := slices.IndexFunc(r.match, func(c condition) bool { return c.claim == claim })
	if i < 0 {
		return condition{}, false
	}
	return r.match[i], true
}

func (r *rule) has(claim string) bool {
	_, ok := r.condition(claim)
	return ok
}

// mistyped returns the end of the message that a claim is missing. It names a claim of
// the rule that no token has and that resembles one of claims.
func (r *rule) mistyped(claims []string) string {
	for _, c := range r.match {
		if _, ok := known(r.provider.Type, c.claim); ok {
			continue
		}
		if near := configfile.Nearest(c.claim, claims); near != "" && !r.has(near) {
			return fmt.Sprintf("; in place of %s, did you mean %s?", c.claim, near)
		}
	}
	return ""
}

// checkWho refuses a rule that does not identify, by immutable ids, whose tokens it
// admits. Such a rule would admit every tenant of the provider.
func checkWho(r *rule) error {
	if r.provider.Type != idtoken.GitHub && r.allRepositories {
		return fmt.Errorf("all_repositories is for providers of type github")
	}
	switch r.provider.Type {
	case idtoken.GitHub:
		byRepository := r.has(idtoken.ClaimRepositoryID)
		switch {
		case byRepository && r.allRepositories:
			return fmt.Errorf("all_repositories and match.repository_id contradict each other")
		case byRepository:
		case !r.has(idtoken.ClaimRepositoryOwnerID):
			return fmt.Errorf("match.repository_id is missing: names of repositories can be taken over, and without an id the rule is for everybody on the server")
		case !r.allRepositories:
			return fmt.Errorf("match.repository_id is missing: all repositories of an owner need all_repositories: true next to match")
		}
	case idtoken.Fly:
		if !r.has(idtoken.ClaimOrgID) || !r.has(idtoken.ClaimAppID) {
			return fmt.Errorf("match.org_id and match.app_id are both required for providers of type fly")
		}
	case idtoken.OIDC:
		if !r.has(idtoken.ClaimSubject) && !r.has(idtoken.ClaimProjectID) {
			return fmt.Errorf("match.sub (or GitLab's match.project_id) is required for providers of type oidc")
		}
	case idtoken.People:
		if r.has(idtoken.ClaimSubject) {
			return nil
		}
		verified, ok := r.condition(idtoken.ClaimEmailVerified)
		yes := ok && len(verified.values) == 1 && verified.values[0].equal(true)
		if !r.has(idtoken.ClaimEmail) || !yes {
			return fmt.Errorf("match.sub, or match.email with email_verified: true, is required for providers of type people")
		}
	}
	return nil
}

func checkEvents(r *rule) error {
	if r.provider.Type != idtoken.GitHub {
		if r.privilegedEvents {
			return fmt.Errorf("unsafe_allow_privileged_events is for providers of type github")
		}
		return nil
	}
	events, ok := r.condition(idtoken.ClaimEventName)
	if !ok {
		return fmt.Errorf("match.event_name is missing: list the events that may use the engine (%s)", strings.Join(ordinaryEvents, ", "))
	}
	for _, e := range events.values {
		if r.privilegedEvents || slices.Contains(ordinaryEvents, e.text) {
			continue
		}
		if !slices.Contains(githubEvents, e.text) {
			hint := "an event that is new at GitHub needs unsafe_allow_privileged_events: true next to match"
			if near := configfile.Nearest(e.text, githubEvents); near != "" {
				hint = fmt.Sprintf("did you mean %s? (%s)", quote(near), hint)
			}
			return fmt.Errorf("match.event_name: GitHub has no event %s; %s", quote(e.text), hint)
		}
		return fmt.Errorf("match.event_name: %s runs with the base repository's trust on input of strangers; if that is meant, say unsafe_allow_privileged_events: true next to match", quote(e.text))
	}
	return nil
}

func (l *loader) loadGrant(r *rule, g fileGrant) error {
	switch {
	case g.Role != "" && g.Profile != "":
		return fmt.Errorf("a rule grants a role or a certificate, not both")
	case g.Role != "":
		return loadRole(r, g)
	case g.Profile == "":
		return fmt.Errorf("want profile: client, profile: server or role")
	}
	r.profile, r.engines, r.dns = grant.Profile(g.Profile), g.Engines, g.DNS
	limit := r.profile.MaxTTL()
	if limit == 0 {
		return fmt.Errorf("profile: want client or server")
	}
	ttl, err := time.ParseDuration(g.TTL)
	if err != nil {
		return fmt.Errorf("ttl: want a duration like 1h or 30m")
	}
	if ttl < time.Second || ttl > limit || ttl%time.Second != 0 {
		return fmt.Errorf("ttl: %s is not within 1s and %v in whole seconds, the cap of profile %s", g.TTL, limit, r.profile)
	}
	r.ttl = ttl
	if err := l.checkEngines(r); err != nil {
		return err
	}
	return l.checkDNS(r)
}

func loadRole(r *rule, g fileGrant) error {
	r.role = Role(g.Role)
	switch {
	case r.role != Viewer && r.role != Admin:
		return fmt.Errorf("role: want viewer or admin")
	case r.provider.Type != idtoken.People:
		return fmt.Errorf("role: only providers of type people may be granted one, and %s is of type %s", r.provider.Name, r.provider.Type)
	case len(g.Engines) > 0 || len(g.DNS) > 0 || g.TTL != "":
		return fmt.Errorf("role: engines, dns and ttl go with a profile")
	}
	return nil
}

func (l *loader) checkEngines(r *rule) error {
	if len(r.engines) == 0 || len(r.engines) > identity.MaxEngines {
		return fmt.Errorf("engines: want 1 to %d", identity.MaxEngines)
	}
	for i, name := range r.engines {
		if _, ok := l.set.engine(name); !ok {
			return fmt.Errorf("engines: there is no engine %s", quote(name))
		}
		if slices.Contains(r.engines[:i], name) {
			return fmt.Errorf("engines: %s is listed twice", name)
		}
	}
	return nil
}

// checkDNS checks that a server's only DNS name is that of its one engine.
func (l *loader) checkDNS(r *rule) error {
	if r.profile == grant.Client {
		if len(r.dns) > 0 {
			return fmt.Errorf("dns goes with profile: server")
		}
		return nil
	}
	if len(r.engines) != 1 {
		return fmt.Errorf("engines: a server grant names exactly one engine")
	}
	e, _ := l.set.engine(r.engines[0])
	if len(r.dns) != 1 {
		return fmt.Errorf("dns: want exactly the engine's server_name, [%s]", quote(e.ServerName))
	}
	name := r.dns[0]
	switch {
	case strings.Contains(name, "*"):
		return fmt.Errorf("dns: %s has a wildcard", quote(name))
	case name != e.ServerName:
		return fmt.Errorf("dns: %s is not the server_name of engine %s, %s", quote(name), e.Name, quote(e.ServerName))
	case l.options.PermittedDNS != nil && !slices.ContainsFunc(l.options.PermittedDNS, func(c string) bool { return within(name, c) }):
		return fmt.Errorf("dns: %s is outside the CA's name constraints (%s)", quote(name), strings.Join(l.options.PermittedDNS, ", "))
	}
	return nil
}

// within reports whether constraint permits name, as in crypto/x509: it permits its
// own name and those below it. One that begins with a dot permits only those below it.
func within(name, constraint string) bool {
	constraint = strings.ToLower(constraint)
	if constraint == "" {
		return true
	}
	if strings.HasPrefix(constraint, ".") {
		return strings.HasSuffix(name, constraint)
	}
	return name == constraint || strings.HasSuffix(name, "."+constraint)
}
