package idtoken

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Type is the kind of a provider: who its tokens are for, and what they may be used
// for. The zero value is invalid.
type Type string

// The provider types. There are no others.
const (
	GitHub Type = "github" // CI jobs; also enterprise, ghe.com and GHES issuers
	Fly    Type = "fly"    // Fly Machines
	OIDC   Type = "oidc"   // other workloads: Kubernetes, GitLab
	People Type = "people" // persons, by authorization code or device code
)

// MaxLifetime bounds exp - iat of the type's tokens. It is 0 for an unknown type.
func (t Type) MaxLifetime() time.Duration {
	switch t {
	case GitHub, Fly:
		return 15 * time.Minute
	case OIDC, People:
		return 24 * time.Hour
	}
	return 0
}

// SingleUse reports whether a token of the type is good for one certificate only. Such
// a token must have a jti.
func (t Type) SingleUse() bool { return t == GitHub || t == Fly }

// JWS algorithms (RFC 7518 section 3.1, RFC 8037) that a provider may be pinned to.
// HMAC and none are not among them.
const (
	RS256 = "RS256"
	ES256 = "ES256"
	EdDSA = "EdDSA"
)

// Provider is one configured token issuer.
type Provider struct {
	Name string // of the policy file, [a-z][a-z0-9-]*
	Type Type
	// Issuer is compared with iss byte by byte, and is where discovery begins.
	Issuer string
	// ClientID is the audience of a people provider's tokens; empty for others.
	ClientID string
	// JWKSURI pins the URL of the keys; empty means the URL from discovery.
	JWKSURI string
	// Algorithms pins alg; empty means RS256. GitHub and Fly sign by RS256 only.
	Algorithms []string
	// UnsafeHTTP allows an http issuer, on loopback only.
	UnsafeHTTP bool
	// UnsafeAllowPrivate allows keys to be fetched from private addresses.
	UnsafeAllowPrivate bool
	// ServerURL is the start of the URIs in a github provider's certificates; empty
	// derives it from Issuer.
	ServerURL string
}

func (p Provider) clone() Provider {
	p.Algorithms = slices.Clone(p.Algorithms)
	return p
}

// Equal reports whether p and q are the same configuration.
func (p Provider) Equal(q Provider) bool {
	a, b := p, q
	a.Algorithms, b.Algorithms = nil, nil
	return slices.Equal(p.Algorithms, q.Algorithms) && a.equalScalars(b)
}

func (p Provider) equalScalars(q Provider) bool {
	return p.Name == q.Name && p.Type == q.Type && p.Issuer == q.Issuer && p.ClientID == q.ClientID &&
		p.JWKSURI == q.JWKSURI && p.UnsafeHTTP == q.UnsafeHTTP &&
		p.UnsafeAllowPrivate == q.UnsafeAllowPrivate && p.ServerURL == q.ServerURL
}

// maxURLBytes bounds every URL of a provider.
const maxURLBytes = 1024

// Complete checks p and returns a copy with Algorithms and ServerURL filled in.
func (p Provider) Complete() (Provider, error) {
	p = p.clone()
	if p.Type.MaxLifetime() == 0 {
		return Provider{}, fmt.Errorf("unknown type %q: want github, fly, oidc or people", string(p.Type))
	}
	issuer, err := p.parseURL(p.Issuer)
	if err == nil && strings.Contains(p.Issuer, "?") { // OpenID Connect Discovery section 3
		err = errors.New("a URL with a query is not accepted")
	}
	if err != nil {
		return Provider{}, fmt.Errorf("issuer: %w", err)
	}
	if p.JWKSURI != "" {
		if _, err := p.parseURL(p.JWKSURI); err != nil {
			return Provider{}, fmt.Errorf("jwks_uri: %w", err)
		}
	}
	switch {
	case p.Type == People && p.ClientID == "":
		return Provider{}, errors.New("type people needs client_id: it is the audience of its tokens")
	case p.Type != People && p.ClientID != "":
		return Provider{}, errors.New("client_id is for type people")
	case len(p.ClientID) > 256:
		return Provider{}, errors.New("client_id is longer than 256 bytes")
	}
	if err := p.checkIssuer(issuer); err != nil {
		return Provider{}, err
	}
	if err := p.completeAlgorithms(); err != nil {
		return Provider{}, err
	}
	if err := p.completeServerURL(issuer); err != nil {
		return Provider{}, err
	}
	return p, nil
}

// parseURL accepts an absolute https URL without userinfo and fragment. It also
// accepts http where UnsafeHTTP is set and the host is loopback.
func (p Provider) parseURL(s string) (*url.URL, error) {
	if s == "" || len(s) > maxURLBytes {
		return nil, fmt.Errorf("want a URL of 1 to %d bytes", maxURLBytes)
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, errors.New("not a URL")
	}
	switch {
	case u.Host == "" || u.Hostname() == "" || u.Opaque != "":
		return nil, errors.New("want an absolute URL with a host")
	case u.User != nil:
		return nil, errors.New("a URL with userinfo is not accepted")
	case strings.Contains(s, "#"):
		return nil, errors.New("a URL with a fragment is not accepted")
	case u.Host != strings.ToLower(u.Host):
		return nil, errors.New("the host is not in lower case")
	}
	switch u.Scheme {
	case "https":
		return u, nil
	case "http":
		if !p.UnsafeHTTP {
			return nil, errors.New("want https (http, on loopback only, needs unsafe_http: true)")
		}
		if !isLoopbackHost(u.Hostname()) {
			return nil, errors.New("unsafe_http is for loopback only")
		}
		return u, nil
	}
	return nil, errors.New("want https")
}

func isLoopbackHost(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// checkIssuer checks that the type fits an issuer of GitHub or Fly. Their tokens have
// rules that the types oidc and people do not check.
func (p Provider) checkIssuer(u *url.URL) error {
	github, fly := githubServer(u) != "", isFly(u)
	standIn := p.UnsafeHTTP || p.UnsafeAllowPrivate
	switch p.Type {
	case OIDC, People:
		if github {
			return fmt.Errorf("the issuer is GitHub's: type %s would not hold its tokens to one use; say type github", p.Type)
		}
		if fly {
			return fmt.Errorf("the issuer is Fly's: type %s would not hold its tokens to one use; say type fly", p.Type)
		}
	case Fly:
		if !fly && !standIn {
			return errors.New("the issuer of type fly is https://oidc.fly.io/<org-slug>")
		}
	case GitHub:
		if fly {
			return errors.New("the issuer is Fly's: say type fly")
		}
	}
	return nil
}

const (
	hostGitHub   = "token.actions.githubusercontent.com"
	prefixGHE    = "token.actions."
	suffixGHE    = ".ghe.com"
	pathGHES     = "/_services/token"
	hostFly      = "oidc.fly.io"
	serverGitHub = "https://github.com"
)

// plainHost returns the host in lower case, without trailing dot and port, to compare
// different spellings.
func plainHost(u *url.URL) string {
	return strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
}

func isFly(u *url.URL) bool { return plainHost(u) == hostFly }

// githubServer returns the URL of the GitHub server of a GitHub Actions issuer, and ""
// for any other issuer. Issuers are github.com with an optional enterprise slug,
// SUBDOMAIN.ghe.com, and GitHub Enterprise Server (GitHub's OIDC reference).
func githubServer(u *url.URL) string {
	host := plainHost(u)
	switch {
	case host == hostGitHub:
		return serverGitHub
	case strings.HasPrefix(host, prefixGHE) && strings.HasSuffix(host, suffixGHE) && len(host) > len(prefixGHE)+len(suffixGHE):
		return "https://" + strings.TrimPrefix(host, prefixGHE)
	case strings.TrimSuffix(u.Path, "/") == pathGHES:
		return "https://" + u.Host
	}
	return ""
}

func (p *Provider) completeAlgorithms() error {
	if len(p.Algorithms) == 0 {
		p.Algorithms = []string{RS256}
		return nil
	}
	for i, alg := range p.Algorithms {
		switch {
		case alg != RS256 && alg != ES256 && alg != EdDSA:
			return fmt.Errorf("algorithm %q: want RS256, ES256 or EdDSA", alg)
		case alg != RS256 && p.Type.SingleUse():
			return fmt.Errorf("algorithm %s: providers of type %s sign by RS256", alg, p.Type)
		case slices.Contains(p.Algorithms[:i], alg):
			return fmt.Errorf("algorithm %s is listed twice", alg)
		}
	}
	return nil
}

func (p *Provider) completeServerURL(issuer *url.URL) error {
	if p.Type != GitHub {
		if p.ServerURL != "" {
			return errors.New("server_url is for type github")
		}
		return nil
	}
	if p.ServerURL != "" {
		u, err := p.parseURL(p.ServerURL)
		if err != nil {
			return fmt.Errorf("server_url: %w", err)
		}
		if u.Path != "" || strings.Contains(p.ServerURL, "?") {
			return errors.New("server_url: want scheme and host only, without a trailing slash")
		}
		return nil
	}
	if p.ServerURL = githubServer(issuer); p.ServerURL != "" {
		return nil
	}
	// A test provider on loopback or a private network acts as github.com.
	if p.UnsafeHTTP || p.UnsafeAllowPrivate {
		p.ServerURL = serverGitHub
		return nil
	}
	return errors.New("the issuer is none of GitHub's (github.com, SUBDOMAIN.ghe.com, https://HOSTNAME/_services/token); say server_url")
}

// CheckDistinct refuses two providers with the same name, or with the same issuer in
// any spelling. Each token must belong to exactly one provider.
func CheckDistinct(providers []Provider) error {
	names, issuers := map[string]bool{}, map[string]string{}
	for _, p := range providers {
		if names[p.Name] {
			return fmt.Errorf("two providers are named %s", p.Name)
		}
		names[p.Name] = true
		same := spelling(p.Issuer)
		if other, ok := issuers[same]; ok {
			return fmt.Errorf("providers %s and %s share the issuer %s", other, p.Name, p.Issuer)
		}
		issuers[same] = p.Name
	}
	return nil
}

// spelling returns the same string for issuers with the same discovery document.
func spelling(issuer string) string {
	u, err := url.Parse(issuer)
	if err != nil {
		return issuer
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return u.Scheme + "://" + net.JoinHostPort(plainHost(u), port) + strings.TrimRight(u.Path, "/")
}
