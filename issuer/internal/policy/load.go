package policy

import (
	"errors"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/ca/grant"
	"github.com/mayfly-ca/mayfly/client/configfile"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

// maxProblems bounds how many problems of one file Parse returns.
const maxProblems = 20

// Parse reads a policy file. If the file has problems, it returns them joined, and no
// Set. Each error is a *configfile.Error.
func Parse(data []byte, o Options) (*Set, error) {
	doc, f, err := readFile(o.File, data)
	if err != nil {
		return nil, err
	}
	l := loader{options: o, doc: doc, set: &Set{}}
	l.head(f)
	l.loadProviders(f.Providers)
	l.loadEngines(f.Engines)
	l.loadRules(f.Rules)
	l.loadTests(f.Tests)
	if len(l.problems) > 0 {
		if more := len(l.problems) - maxProblems; more > 0 {
			l.problems = append(l.problems[:maxProblems], l.doc.Errorf(nil, "and %d more", more))
		}
		return nil, errors.Join(l.problems...)
	}
	l.set.findings = check(doc, l.set)
	return l.set, nil
}

// loader builds a Set and collects problems.
type loader struct {
	options  Options
	doc      *configfile.Document
	set      *Set
	problems []error
}

// path is the path to a value of the file, by keys and indexes.
type path []any

func (p path) to(steps ...any) path { return append(slices.Clone(p), steps...) }

// of returns the path from a claim to its value i. A single value may be no list.
func (p path) of(c condition, i int) path {
	if len(c.values) == 1 {
		return p
	}
	return p.to(i)
}

// bad records a problem with the value at p.
func (l *loader) bad(p path, format string, args ...any) {
	l.problems = append(l.problems, l.doc.Errorf(p, format, args...))
}

func (l *loader) head(f *file) {
	if f.Version != 1 {
		l.bad(path{"version"}, "version: want 1")
	}
	at := path{"trust_domain"}
	if !grant.ValidHostName(f.TrustDomain) || !strings.Contains(f.TrustDomain, ".") {
		l.bad(at, "trust_domain: want a lower-case DNS name of two labels or more, like ci.example.com")
		return
	}
	td, err := spiffeid.TrustDomainFromString(f.TrustDomain)
	switch {
	case err != nil:
		l.bad(at, "trust_domain: %v", err)
	case l.options.TrustDomain != "" && td.Name() != l.options.TrustDomain:
		l.bad(at, "trust_domain is %s, the CA's is %s; write the CA's", td.Name(), l.options.TrustDomain)
	default:
		l.set.trustDomain = td
	}
}

// isName reports whether s is [a-z][a-z0-9-]*, of at most 63 bytes.
func isName(s string) bool {
	if s == "" || len(s) > 63 || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	for _, b := range []byte(s) {
		if (b < 'a' || b > 'z') && (b < '0' || b > '9') && b != '-' {
			return false
		}
	}
	return true
}

// isRuleName is like isName, but accepts a little more.
func isRuleName(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for i, b := range []byte(s) {
		alnum := (b >= 'a' && b <= 'z') || (b >= 'A' && b <= 'Z') || (b >= '0' && b <= '9')
		if !alnum && (i == 0 || !strings.ContainsRune("._-", rune(b))) {
			return false
		}
	}
	return true
}

func isIP(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func (l *loader) loadProviders(in map[string]fileProvider) {
	if len(in) == 0 || len(in) > maxProviders {
		l.bad(path{"providers"}, "providers: want 1 to %d", maxProviders)
		return
	}
	for _, name := range sortedKeys(in) {
		if !isName(name) || name == claimEngine {
			l.bad(path{"providers", name}, "providers: %s: a name is [a-z][a-z0-9-]*, and not engine, which begins the identities of engines", quote(name))
			continue
		}
		f := in[name]
		p, err := idtoken.Provider{
			Name: name, Type: idtoken.Type(f.Type), Issuer: f.Issuer, ClientID: f.ClientID, JWKSURI: f.JWKSURI,
			Algorithms: f.Algorithms, ServerURL: f.ServerURL,
			UnsafeHTTP: f.UnsafeHTTP, UnsafeAllowPrivate: f.UnsafeAllowPrivate,
		}.Complete()
		if err != nil {
			l.bad(path{"providers", name}, "providers.%s: %v", name, err)
			continue
		}
		l.set.providers = append(l.set.providers, p)
	}
	if err := idtoken.CheckDistinct(l.set.providers); err != nil {
		l.bad(path{"providers"}, "providers: %v", err)
	}
}

func (l *loader) loadEngines(in map[string]fileEngine) {
	if len(in) > maxEngines {
		l.bad(path{"engines"}, "engines: more than %d", maxEngines)
		return
	}
	for _, name := range sortedKeys(in) {
		f := in[name]
		if !isName(name) {
			l.bad(path{"engines", name}, "engines: %s: a name is [a-z][a-z0-9-]*", quote(name))
			continue
		}
		if err := checkEndpoint(f.Endpoint); err != nil {
			l.bad(path{"engines", name, "endpoint"}, "engines.%s.endpoint: %v", name, err)
		}
		if !grant.ValidHostName(f.ServerName) {
			l.bad(path{"engines", name, "server_name"}, "engines.%s.server_name: want a lower-case DNS name without wildcard", name)
		}
		l.set.engines = append(l.set.engines, Engine{Name: name, Endpoint: f.Endpoint, ServerName: f.ServerName})
	}
}

func checkEndpoint(s string) error {
	wrong := errors.New("want tcp://host:port or edge://host:port")
	if len(s) > maxValueBytes {
		return wrong
	}
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "tcp" && u.Scheme != "edge") || u.Opaque != "" || u.User != nil ||
		u.Path != "" || u.RawQuery != "" || u.ForceQuery || strings.Contains(s, "#") {
		return wrong
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil || port == 0 {
		return wrong
	}
	if host := u.Hostname(); !isIP(host) && !grant.ValidHostName(host) {
		return wrong
	}
	return nil
}
