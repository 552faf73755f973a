// Package grant defines the permission to issue one certificate: the Grant that
// policy makes and the authority consumes, the two profiles with their caps, and
// the check of a finished leaf against its grant.
//
// It is pure: no I/O, no clock of its own, no smallstep. It imports ca/identity and
// the standard library.
package grant

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/identity"
)

// Profile is the kind of a leaf. The zero value is invalid.
type Profile string

// The two profiles. There are no others.
const (
	Client Profile = "client" // extended key usage clientAuth only
	Server Profile = "server" // extended key usage serverAuth only, with DNS names
)

// Backdate is how far NotBefore lies before the moment of issuing.
const Backdate = 60 * time.Second

// MaxTTL returns the longest lifetime of the profile, whatever policy allows. It is
// 0 for an unknown profile. NotAfter is NotBefore + Backdate + TTL.
func (p Profile) MaxTTL() time.Duration {
	switch p {
	case Client:
		return time.Hour
	case Server:
		return 24 * time.Hour
	}
	return 0
}

// ExtKeyUsage returns the one extended key usage of the profile.
func (p Profile) ExtKeyUsage() (x509.ExtKeyUsage, error) {
	switch p {
	case Client:
		return x509.ExtKeyUsageClientAuth, nil
	case Server:
		return x509.ExtKeyUsageServerAuth, nil
	}
	return 0, fmt.Errorf("unknown profile %q", string(p))
}

// Token identifies the ID token that a grant was made from.
type Token struct {
	Issuer string // iss, exactly
	ID     string // jti; empty only when SingleUse is false
	// SingleUse means that the token gives one certificate. A second use is a
	// replay.
	SingleUse bool
	IssuedAt  time.Time // iat
	ExpiresAt time.Time // exp
}

// Labels are the values that lists, revocations and blocks select by. A field is
// empty if the provider has no such claim.
type Labels struct {
	Repository   string // owner/name, for people
	RepositoryID string
	RunID        string
	Actor        string
}

// Params are the contents of a Grant.
type Params struct {
	Profile  Profile
	TTL      time.Duration
	Provider string // name of the provider in the policy file
	// Identity goes into the leaf: SPIFFE ID, common name, extensions, and the
	// grant extension with engines, rule and run.
	Identity identity.Identity
	DNSNames []string // profile server only
	Token    Token
	Subject  Labels
	// Claims is the verified token's payload, kept in the record.
	Claims json.RawMessage
}

// Embed writes the identity of p, as identity.Embed does, and its DNS names into
// the template of a leaf.
func (p Params) Embed(t *x509.Certificate) error {
	t.DNSNames = slices.Clone(p.DNSNames)
	return identity.Embed(p.Identity, t)
}

// Grant is permission to issue one certificate. It is immutable and made only by
// New. Every function refuses the zero Grant.
type Grant struct{ p *Params }

// New checks that p is complete and within the profile's caps. It returns a Grant
// that shares no memory with p.
func New(p Params) (Grant, error) {
	maxTTL := p.Profile.MaxTTL()
	switch {
	case maxTTL == 0:
		return Grant{}, fmt.Errorf("unknown profile %q", string(p.Profile))
	case p.TTL <= 0 || p.TTL > maxTTL:
		return Grant{}, fmt.Errorf("ttl %v is not within (0, %v] of profile %s", p.TTL, maxTTL, p.Profile)
	case p.TTL%time.Second != 0:
		return Grant{}, fmt.Errorf("ttl %v is not in whole seconds", p.TTL)
	case p.Provider == "":
		return Grant{}, errors.New("no provider")
	case p.Token.Issuer == "":
		return Grant{}, errors.New("no token issuer")
	case p.Token.SingleUse && p.Token.ID == "":
		return Grant{}, errors.New("a single-use token needs an id (jti)")
	case p.Profile == Client && len(p.DNSNames) > 0:
		return Grant{}, errors.New("profile client has no DNS names")
	case p.Profile == Server && (len(p.DNSNames) == 0 || len(p.Identity.Grant.Engines) != 1):
		return Grant{}, errors.New("profile server wants one engine and its DNS name")
	}
	if err := checkNames(p); err != nil {
		return Grant{}, err
	}
	c := clone(p)
	return Grant{p: &c}, nil
}

// checkNames checks the form of the identity. Only profile server may have an
// engine's SPIFFE ID and DNS names, which must be plain host names.
func checkNames(p Params) error {
	if err := p.Identity.Validate(); err != nil {
		return err
	}
	engine, isEngine := identity.Engine(p.Identity.ID)
	switch {
	case p.Profile == Client && isEngine:
		return errors.New("profile client has no engine's SPIFFE ID")
	case p.Profile == Server && (!isEngine || engine != p.Identity.Grant.Engines[0]):
		return errors.New("profile server wants its engine's SPIFFE ID")
	}
	for _, name := range p.DNSNames {
		if !ValidHostName(name) {
			return fmt.Errorf("%q is not a lower-case host name", name)
		}
	}
	return nil
}

// ValidHostName reports whether s is a lower-case host name (RFC 1123, no wildcard, no
// trailing dot, not an IP address).
func ValidHostName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-') {
				return false
			}
		}
	}
	return true
}

// IsZero reports whether g is the zero Grant, which New did not make.
func (g Grant) IsZero() bool { return g.p == nil }

// Params returns a copy of what g carries. For the zero Grant it returns the zero
// Params.
func (g Grant) Params() Params {
	if g.p == nil {
		return Params{}
	}
	return clone(*g.p)
}

func clone(p Params) Params {
	p.DNSNames = slices.Clone(p.DNSNames)
	p.Claims = slices.Clone(p.Claims)
	p.Identity = p.Identity.Clone()
	return p
}
