package main

import (
	"errors"

	"github.com/mayfly-ca/mayfly/issuer/idtokentest"
)

// providers are this machine's stand-ins for GitHub, Fly and the staff's login.
type providers struct {
	github, fly, staff *idtokentest.Provider
	admin              map[string]any // claims of the admin that differ from the staff's defaults
}

// newProviders starts all three. By default each mints the claims of the first rule
// of its type, for this issuer, so /mint works without overrides. The runner and
// the machine's socket mint for the audience of the request.
func newProviders(s settings) (*providers, error) {
	p := &providers{admin: s.admin()}
	var all error
	start := func(kind idtokentest.Type) *idtokentest.Provider {
		defaults := s.admitted(string(kind))
		if kind != idtokentest.People { // its audience is the client
			defaults["aud"] = "mayfly:" + s.trustDomain()
		}
		provider, err := idtokentest.New(idtokentest.Options{Type: kind, Defaults: defaults, ClientID: s.clientID()})
		all = errors.Join(all, err)
		return provider
	}
	p.github, p.fly, p.staff = start(idtokentest.GitHub), start(idtokentest.Fly), start(idtokentest.People)
	if all != nil {
		p.close()
		return nil, all
	}
	return p, nil
}

func (p *providers) close() {
	for _, provider := range []*idtokentest.Provider{p.github, p.fly, p.staff} {
		if provider != nil {
			provider.Close()
		}
	}
}

// issuers returns the base URLs by the provider types of the policy file.
func (p *providers) issuers() map[string]string {
	return map[string]string{"github": p.github.URL(), "fly": p.fly.URL(), "people": p.staff.URL()}
}

// adminToken returns a fresh login of a person to whom the policy grants the role
// admin, if it grants that role at all.
func (p *providers) adminToken() (string, error) {
	return p.staff.Mint(p.admin)
}
