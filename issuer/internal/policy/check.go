package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/mayfly-ca/mayfly/ca/grant"
	"github.com/mayfly-ca/mayfly/client/configfile"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

// Severity is the severity of a Finding in mayfly-issuer policy check.
type Severity string

const (
	// SeverityError is for a clear mistake, such as a rule that never matches.
	SeverityError Severity = "error"
	// SeverityWarning is for what may be intended, and is dangerous or useless.
	SeverityWarning Severity = "warning"
)

// Finding is a problem in a file that Parse accepts. It is for policy check, the log
// and the page: an issuer serves such a file.
type Finding struct {
	Severity Severity
	Rule     string // "" for a finding that is not about one rule
	Place    configfile.Error
}

// String returns the text without its position in the file.
func (f Finding) String() string { return f.Place.Text }

// maxFindings bounds the log lines for one file.
const maxFindings = 100

// checker collects findings.
type checker struct {
	doc *configfile.Document
	set *Set
	out []Finding
}

// check finds problems that Parse cannot refuse, because files in use have them.
func check(doc *configfile.Document, s *Set) []Finding {
	c := &checker{doc: doc, set: s}
	c.providers()
	c.engines()
	for i, r := range s.rules {
		at := path{"rules", i}
		if len(c.out) > maxFindings {
			break
		}
		if r.privilegedEvents {
			c.foundKey(SeverityWarning, r.name, at.to("unsafe_allow_privileged_events"), "unsafe_allow_privileged_events: such a run may build what a stranger wrote, under the base branch's name")
		}
		for _, cond := range r.match {
			c.condition(r, at.to("match", cond.claim), cond)
		}
		c.events(r, at.to("match"))
	}
	slices.SortStableFunc(c.out, func(a, b Finding) int { return cmp.Compare(a.Place.Line, b.Place.Line) })
	return c.out
}

// found adds a finding at a value.
func (c *checker) found(s Severity, rule string, at path, format string, args ...any) {
	c.add(s, rule, c.doc.Errorf(at, format, args...))
}

// foundKey adds a finding at the last key of at.
func (c *checker) foundKey(s Severity, rule string, at path, format string, args ...any) {
	c.add(s, rule, c.doc.KeyErrorf(at, format, args...))
}

func (c *checker) add(s Severity, rule string, place *configfile.Error) {
	if len(c.out) > maxFindings {
		return
	}
	if rule != "" {
		place.Text = "rule " + rule + ": " + place.Text
	}
	if len(c.out) == maxFindings {
		s, place.Text = SeverityWarning, fmt.Sprintf("there are more than %d findings; what follows was not checked", maxFindings)
	}
	c.out = append(c.out, Finding{Severity: s, Rule: rule, Place: *place})
}

func (c *checker) providers() {
	for _, p := range c.set.providers {
		at := path{"providers", p.Name}
		if p.UnsafeHTTP {
			c.foundKey(SeverityWarning, "", at.to("unsafe_http"), "provider %s: unsafe_http: its keys come over plain http", p.Name)
		}
		if p.UnsafeAllowPrivate {
			c.foundKey(SeverityWarning, "", at.to("unsafe_allow_private"), "provider %s: unsafe_allow_private: its keys may come from private addresses", p.Name)
		}
	}
}

// engines finds engines that no certificate can be for. It also finds engines open
// both to pull requests and to builds of branches, by one rule or by two: a pull
// request can poison the cache that the branch builds from.
func (c *checker) engines() {
	isPR := func(event string) bool { return strings.HasPrefix(event, eventPullRequest) }
	for _, e := range c.set.engines {
		var prs, branches, clients []string
		served, at := false, path{"engines", e.Name}
		for _, r := range c.set.rules {
			if !slices.Contains(r.engines, e.Name) {
				continue
			}
			if r.profile == grant.Server {
				served = true
				continue
			}
			clients = append(clients, r.name)
			if r.admitsEvent(isPR) {
				prs = append(prs, r.name)
			}
			if r.admitsEvent(func(event string) bool { return !isPR(event) }) {
				branches = append(branches, r.name)
			}
		}
		switch {
		case !served && len(clients) > 0:
			c.foundKey(SeverityError, "", at, "engine %s: no rule with profile: server grants it, so its sidecar gets no certificate and the clients of rule %s reach nothing; add one", e.Name, firstNames(clients))
		case !served:
			c.foundKey(SeverityWarning, "", at, "engine %s: no rule grants it; add one, or drop the engine", e.Name)
		}
		if len(prs) > 0 && len(branches) > 0 {
			c.foundKey(SeverityWarning, "", at, "rules %s (pull requests) and %s (branches) share engine %s: a pull request's build can poison the cache that the branch builds from; give pull requests an engine of their own", firstNames(prs), firstNames(branches), e.Name)
		}
	}
}

// firstNames lists at most five names, and the number of the others.
func firstNames(names []string) string {
	const most = 5
	if more := len(names) - most; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), more)
	}
	return strings.Join(names, ", ")
}

func (r *rule) admitsEvent(is func(string) bool) bool {
	c, ok := r.condition(idtoken.ClaimEventName)
	return ok && r.profile == grant.Client && r.provider.Type == idtoken.GitHub &&
		slices.ContainsFunc(c.values, func(v value) bool { return is(v.text) })
}

// condition finds a claim that no token has, and values that it never has.
func (c *checker) condition(r *rule, at path, cond condition) {
	t := r.provider.Type
	severity := SeverityError
	if t == idtoken.OIDC {
		severity = SeverityWarning // any provider may be meant
	}
	info, ok := known(t, cond.claim)
	if !ok {
		hint := "mayfly does not know it; check the spelling in a token"
		if near := configfile.Nearest(cond.claim, slices.Sorted(maps.Keys(claimsOf(t)))); near != "" {
			hint = fmt.Sprintf("did you mean %s?", near)
		}
		c.foundKey(severity, r.name, at, "claim %s is not in tokens of type %s; %s", cond.claim, t, hint)
		return
	}
	for i, v := range cond.values {
		value := at.of(cond, i)
		if why := info.wrong(v); why != "" {
			c.found(severity, r.name, value, "%s %s never matches: %s %s", cond.claim, v, cond.claim, why)
		} else if t == idtoken.OIDC && cond.claim == idtoken.ClaimRef && r.has(idtoken.ClaimProjectID) && strings.HasPrefix(v.text, "refs/") {
			c.found(severity, r.name, value, "%s %s never matches: GitLab's ref is the bare name; match ref_path, or write the name with ref_type", cond.claim, v)
		}
	}
}

// eventRefs maps some events to the start of their refs.
var eventRefs = map[string]string{
	eventPullRequest: "refs/pull/",
	"merge_group":    "refs/heads/gh-readonly-queue/",
	"release":        "refs/tags/",
}

// events finds events whose runs never have a ref that the rule admits.
func (c *checker) events(r *rule, at path) {
	events, _ := r.condition(idtoken.ClaimEventName)
	refs, ok := r.condition(idtoken.ClaimRef)
	if !ok || r.provider.Type != idtoken.GitHub {
		return
	}
	for i, e := range events.values {
		start, special := eventRefs[e.text]
		if !special || slices.ContainsFunc(refs.values, func(v value) bool { return canBegin(v, start) }) {
			continue
		}
		severity := SeverityWarning
		if len(events.values) == 1 {
			severity = SeverityError
		}
		c.found(severity, r.name, at.to(events.claim).of(events, i), "event_name %s never matches: the ref of such a run begins with %s, and the rule's ref does not", e, start)
	}
}
