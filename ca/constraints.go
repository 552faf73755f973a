package ca

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/ca/grant"
)

// noMailHost is the only host at which the intermediate may name e-mail addresses.
// No such host exists (RFC 2606).
const noMailHost = "invalid"

// Constraints are the name constraints of an intermediate.
type Constraints struct {
	TrustDomain spiffeid.TrustDomain
	// DNS lists the domains that server certificates may name, with their
	// subdomains. It is never empty.
	DNS []string
	// Loopback permits loopback IP addresses, for an issuer on such an address. No
	// other IP address is ever permitted.
	Loopback bool
}

// NewConstraints makes constraints from the arguments of init. issuerURL may be
// empty.
func NewConstraints(trustDomain string, engineDNS []string, issuerURL string) (Constraints, error) {
	td, err := ParseTrustDomain(trustDomain)
	if err != nil {
		return Constraints{}, err
	}
	c := Constraints{TrustDomain: td}
	if len(engineDNS) == 0 {
		return Constraints{}, errors.New("name at least one DNS name of an engine, or a domain above it (--engine-dns)")
	}
	for _, name := range engineDNS {
		if err := c.addDNS(name); err != nil {
			return Constraints{}, fmt.Errorf("engine DNS name: %w", err)
		}
	}
	if issuerURL == "" {
		return c, nil
	}
	u, err := url.Parse(issuerURL)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Hostname() == "" {
		return Constraints{}, fmt.Errorf("issuer URL %q is not an http(s) URL", issuerURL)
	}
	host := strings.ToLower(u.Hostname())
	if ip, err := netip.ParseAddr(host); err == nil {
		if !ip.IsLoopback() {
			return Constraints{}, fmt.Errorf("issuer URL %q: an IP address other than loopback is never certified: use a DNS name", issuerURL)
		}
		c.Loopback = true
		return c, nil
	}
	c.Loopback = host == "localhost"
	if err := c.addDNS(host); err != nil {
		return Constraints{}, fmt.Errorf("issuer URL: %w", err)
	}
	return c, nil
}

// ParseTrustDomain parses a lower-case DNS name of at least two labels.
func ParseTrustDomain(s string) (spiffeid.TrustDomain, error) {
	td, err := spiffeid.TrustDomainFromString(s)
	if err != nil || td.Name() != s || !grant.ValidHostName(s) || !strings.Contains(s, ".") {
		return spiffeid.TrustDomain{}, fmt.Errorf("trust domain %q is not a lower-case DNS name of two labels or more", s)
	}
	return td, nil
}

func (c *Constraints) addDNS(name string) error {
	if !grant.ValidHostName(name) {
		return fmt.Errorf("%q is not a lower-case host name without wildcard", name)
	}
	if !strings.Contains(name, ".") && name != "localhost" {
		return fmt.Errorf("%q would permit a whole top-level domain", name)
	}
	if !slices.Contains(c.DNS, name) {
		c.DNS = append(c.DNS, name)
	}
	return nil
}

// PermitsDNS reports whether a server certificate may name host.
func (c Constraints) PermitsDNS(host string) bool {
	return slices.ContainsFunc(c.DNS, func(d string) bool {
		return host == d || strings.HasSuffix(host, "."+d)
	})
}

// write writes c into the template of an intermediate.
func (c Constraints) write(t *x509.Certificate) {
	t.PermittedDNSDomainsCritical = true
	t.PermittedURIDomains = []string{c.TrustDomain.Name()}
	t.PermittedDNSDomains = slices.Clone(c.DNS)
	t.PermittedEmailAddresses = []string{noMailHost}
	if c.Loopback {
		t.PermittedIPRanges = loopbackRanges()
		return
	}
	t.ExcludedIPRanges = []*net.IPNet{ipNet("0.0.0.0/0"), ipNet("::/0")}
}

// constraintsOf reads constraints that write wrote. It refuses looser ones.
func constraintsOf(cert *x509.Certificate) (Constraints, error) {
	c := Constraints{DNS: slices.Clone(cert.PermittedDNSDomains), Loopback: len(cert.PermittedIPRanges) > 0}
	if len(cert.PermittedURIDomains) != 1 {
		return Constraints{}, fmt.Errorf("name constraints: %d URI domains, want one", len(cert.PermittedURIDomains))
	}
	td, err := ParseTrustDomain(cert.PermittedURIDomains[0])
	if err != nil {
		return Constraints{}, fmt.Errorf("name constraints: %w", err)
	}
	c.TrustDomain = td
	var want x509.Certificate
	c.write(&want)
	switch {
	case !cert.PermittedDNSDomainsCritical:
		return Constraints{}, errors.New("name constraints are not critical")
	case len(c.DNS) == 0:
		return Constraints{}, errors.New("name constraints permit every DNS name")
	case !slices.Equal(cert.PermittedEmailAddresses, want.PermittedEmailAddresses):
		return Constraints{}, errors.New("name constraints permit e-mail addresses")
	case !equalRanges(cert.PermittedIPRanges, want.PermittedIPRanges) || !equalRanges(cert.ExcludedIPRanges, want.ExcludedIPRanges):
		return Constraints{}, errors.New("name constraints permit IP addresses beyond loopback")
	}
	return c, nil
}

func loopbackRanges() []*net.IPNet {
	return []*net.IPNet{ipNet("127.0.0.0/8"), ipNet("::1/128")}
}

func ipNet(cidr string) *net.IPNet {
	_, n, err := net.ParseCIDR(cidr)
	if err != nil {
		panic(err) // constants of this file
	}
	return n
}

func equalRanges(a, b []*net.IPNet) bool {
	return slices.EqualFunc(a, b, func(x, y *net.IPNet) bool { return x.String() == y.String() })
}
