package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/ca/issuance"
	"github.com/mayfly-ca/mayfly/issuer/idtoken"
)

// ordinaryEvents are those of GitHub that run with the trust of what they
// build. All others need unsafe_allow_privileged_events: pull_request_target,
// workflow_run and issue_comment run with the base branch's ref and claims on
// input that anybody may write.
var ordinaryEvents = []string{
	"push", "workflow_dispatch", "schedule", "merge_group", "release", "deployment", eventPullRequest,
}

const eventPullRequest = "pull_request"

func (l *loader) loadRules(in []fileRule) {
	if len(in) == 0 {
		l.bad("rules: there is none, so nothing would be granted to anybody")
		return
	}
	if len(in) > maxRules {
		l.bad("rules: more than %d", maxRules)
		return
	}
	names := map[string]bool{}
	for i, f := range in {
		where := fmt.Sprintf("rules[%d]", i)
		switch {
		case !isRuleName(f.Name):
			l.bad("%s.name: want letters, digits, '.', '_' and '-', at most 128", where)
		case names[f.Name]:
			l.bad("%s.name: two rules are named %s", where, f.Name)
		default:
			where = "rule " + f.Name
		}
		names[f.Name] = true
		l.loadRule(where, f)
	}
}

func (l *loader) loadRule(where string, f fileRule) {
	p, ok := l.set.provider(f.Provider)
	if !ok {
		l.bad("%s.provider: there is no provider %s", where, quote(f.Provider))
		return
	}
	r := &rule{
		name: f.Name, provider: p,
		allRepositories: f.AllRepositories, privilegedEvents: f.UnsafeAllowPrivilegedEvents,
	}
	var err error
	if r.match, err = loadMatch(p.Type, &f.Match); err != nil {
		l.bad("%s.match: %w", where, err)
		return
	}
	if err := checkWho(r); err != nil {
		l.bad("%s: %w", where, err)
	}
	if err := checkEvents(r); err != nil {
		l.bad("%s: %w", where, err)
	}
	if err := l.loadGrant(r, f.Grant); err != nil {
		l.bad("%s.grant: %w", where, err)
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

// checkWho refuses a rule that does not say, by immutable ids, whose tokens it
// admits: such a rule admits every tenant of the provider.
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
			return fmt.Errorf("match.repository_id is missing: all repositories of an owner need all_repositories: true beside match")
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
		if !slices.Contains(ordinaryEvents, e.text) && !r.privilegedEvents {
			return fmt.Errorf("match.event_name: %s runs with the base repository's trust on input of strangers; if that is meant, say unsafe_allow_privileged_events: true beside match", quote(e.text))
		}
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
	r.profile, r.engines, r.dns = issuance.Profile(g.Profile), g.Engines, g.DNS
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

// checkDNS lets a server be named as its one engine and as nothing else.
func (l *loader) checkDNS(r *rule) error {
	if r.profile == issuance.Client {
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

// within follows crypto/x509: a constraint permits its own name and those
// below it, or only those below it where it begins with a dot.
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

// warningsOf says what the file may do and perhaps should not.
func warningsOf(s *Set) []string {
	var out []string
	for _, p := range s.providers {
		if p.UnsafeHTTP {
			out = append(out, fmt.Sprintf("provider %s: unsafe_http: its keys come over plain http", p.Name))
		}
		if p.UnsafeAllowPrivate {
			out = append(out, fmt.Sprintf("provider %s: unsafe_allow_private: its keys may come from private addresses", p.Name))
		}
	}
	for _, r := range s.rules {
		if r.privilegedEvents {
			out = append(out, fmt.Sprintf("rule %s: unsafe_allow_privileged_events: such a run may build what a stranger wrote, under the base branch's name", r.name))
		}
	}
	return append(out, sharedCaches(s)...)
}

// sharedCaches finds engines that a rule opens to pull requests and a rule, the
// same or another, to builds of branches: the first can poison the cache that
// the second builds from.
func sharedCaches(s *Set) []string {
	isPR := func(event string) bool { return strings.HasPrefix(event, eventPullRequest) }
	var out []string
	for _, e := range s.engines {
		var prs, branches []string
		for _, r := range s.rules {
			if !slices.Contains(r.engines, e.Name) {
				continue
			}
			if r.admitsEvent(isPR) {
				prs = append(prs, r.name)
			}
			if r.admitsEvent(func(event string) bool { return !isPR(event) }) {
				branches = append(branches, r.name)
			}
		}
		if len(prs) > 0 && len(branches) > 0 {
			out = append(out, fmt.Sprintf("rules %s (pull requests) and %s (branches) share engine %s: a pull request's build can poison the cache that the branch builds from; give pull requests an engine of their own", few(prs), few(branches), e.Name))
		}
	}
	return out
}

// few names the first names.
func few(names []string) string {
	const most = 5
	if more := len(names) - most; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), more)
	}
	return strings.Join(names, ", ")
}

func (r *rule) admitsEvent(is func(string) bool) bool {
	c, ok := r.condition(idtoken.ClaimEventName)
	return ok && r.profile == issuance.Client && r.provider.Type == idtoken.GitHub &&
		slices.ContainsFunc(c.values, func(v value) bool { return is(v.text) })
}
