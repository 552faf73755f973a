package policy

import (
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/ca/grant"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

// Role is the role that an admin call requires. The empty Role means no role.
type Role string

// The roles. An admin may do everything that a viewer may.
const (
	Viewer Role = "viewer"
	Admin  Role = "admin"
)

// Engine is one build engine of the file.
type Engine struct {
	Name       string
	Endpoint   string // tcp://host:port or edge://host:port
	ServerName string // the DNS name in its certificate
}

// Options holds what Parse checks a file against.
type Options struct {
	// File is the file's name in errors. Empty: policy.yaml.
	File string
	// TrustDomain is the CA's; empty means that it is unknown and not checked.
	TrustDomain string
	// PermittedDNS are the CA's name constraints, as in
	// x509.Certificate.PermittedDNSDomains; nil means that they are unknown and not
	// checked.
	PermittedDNS []string
}

// Set is a valid policy file. It is immutable.
type Set struct {
	trustDomain spiffeid.TrustDomain
	providers   []idtoken.Provider // complete, sorted by name
	engines     []Engine           // sorted by name
	rules       []*rule            // in file order
	tests       []testCase
	findings    []Finding
}

// TrustDomain returns the SPIFFE trust domain of the file.
func (s *Set) TrustDomain() spiffeid.TrustDomain { return s.trustDomain }

// Audience returns the audience of tokens for certificates.
func (s *Set) Audience() string { return idtoken.AudiencePrefix + s.trustDomain.Name() }

// SessionsAudience returns the audience of tokens that report sessions. Such a token
// is not good for a certificate.
func (s *Set) SessionsAudience() string { return s.Audience() + ":sessions" }

// Providers returns the token providers, sorted by name.
func (s *Set) Providers() []idtoken.Provider {
	out := make([]idtoken.Provider, len(s.providers))
	for i, p := range s.providers {
		out[i] = p
		out[i].Algorithms = slices.Clone(p.Algorithms)
	}
	return out
}

// Engines returns the engines, sorted by name.
func (s *Set) Engines() []Engine { return slices.Clone(s.engines) }

// Findings returns the problems of a file that is valid, in file order. Some findings
// may be intended.
func (s *Set) Findings() []Finding { return slices.Clone(s.findings) }

func (s *Set) provider(name string) (idtoken.Provider, bool) {
	for _, p := range s.providers {
		if p.Name == name {
			return p, true
		}
	}
	return idtoken.Provider{}, false
}

func (s *Set) engine(name string) (Engine, bool) {
	for _, e := range s.engines {
		if e.Name == name {
			return e, true
		}
	}
	return Engine{}, false
}

// RuleView is a rule for people to read.
type RuleView struct {
	Name         string
	Provider     string
	ProviderType idtoken.Type
	Match        []MatchView // in the order of comparison: identifying claims first, then file order
	Profile      grant.Profile
	Role         Role
	Engines      []string
	DNS          []string
	TTL          time.Duration
	// AllRepositories and UnsafeAllowPrivilegedEvents are the keys next to match.
	AllRepositories             bool
	UnsafeAllowPrivilegedEvents bool
}

// MatchView is one key of a rule's match. Any of Values matches.
type MatchView struct {
	Claim  string
	Values []string // as JSON
}

// Rules returns the rules in file order.
func (s *Set) Rules() []RuleView {
	out := make([]RuleView, 0, len(s.rules))
	for _, r := range s.rules {
		v := RuleView{
			Name: r.name, Provider: r.provider.Name, ProviderType: r.provider.Type,
			Profile: r.profile, Role: r.role, Engines: slices.Clone(r.engines), DNS: slices.Clone(r.dns), TTL: r.ttl,
			AllRepositories: r.allRepositories, UnsafeAllowPrivilegedEvents: r.privilegedEvents,
		}
		for _, c := range r.match {
			m := MatchView{Claim: c.claim}
			for _, val := range c.values {
				m.Values = append(m.Values, val.String())
			}
			v.Match = append(v.Match, m)
		}
		out = append(out, v)
	}
	return out
}
