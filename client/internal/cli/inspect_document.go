package cli

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"time"

	"charm.land/lipgloss/v2"

	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/client/mtls"
)

// inspectedDocument is the output of inspect --json for each item.
type inspectedDocument struct {
	Kind        string             `json:"kind"` // client, server, root, intermediate, crl
	Serial      string             `json:"serial,omitempty"`
	Subject     string             `json:"subject,omitempty"`
	Issuer      string             `json:"issuer"`
	Identity    string             `json:"identity,omitempty"`
	Engines     []string           `json:"engines,omitempty"`
	Rule        string             `json:"rule,omitempty"`
	Run         string             `json:"run,omitempty"`
	DNSNames    []string           `json:"dns_names,omitempty"`
	NotBefore   *time.Time         `json:"not_before,omitempty"`
	NotAfter    *time.Time         `json:"not_after,omitempty"`
	Fingerprint string             `json:"fingerprint,omitempty"` // sha256:HEX of the DER
	Workflow    *identity.Workflow `json:"workflow,omitempty"`
	Problem     string             `json:"problem,omitempty"` // why it does not have the form of mayfly's certificates

	Number     string     `json:"number,omitempty"`
	ThisUpdate *time.Time `json:"this_update,omitempty"`
	NextUpdate *time.Time `json:"next_update,omitempty"`
	Floor      *time.Time `json:"floor,omitempty"`
	Revoked    []string   `json:"revoked,omitempty"`
}

func (it inspected) document() inspectedDocument {
	if it.crl != nil {
		return crlDocument(it.crl)
	}
	c := it.cert
	notBefore, notAfter := c.NotBefore.UTC(), c.NotAfter.UTC()
	d := inspectedDocument{
		Kind: "client", Serial: mtls.Serial(c.SerialNumber), Subject: c.Subject.String(), Issuer: c.Issuer.String(),
		DNSNames: c.DNSNames, NotBefore: &notBefore, NotAfter: &notAfter, Fingerprint: "sha256:" + fingerprint(c),
	}
	if c.IsCA {
		d.Kind = "intermediate"
		if bytes.Equal(c.RawSubject, c.RawIssuer) {
			d.Kind = "root"
		}
		return d
	}
	if len(c.ExtKeyUsage) == 1 && c.ExtKeyUsage[0] == x509.ExtKeyUsageServerAuth {
		d.Kind = "server"
	}
	d.Identity = firstURI(c)
	claims, err := leafClaims(c)
	if err != nil {
		d.Problem = err.Error()
		return d
	}
	d.Engines, d.Rule, d.Run = claims.Grant.Engines, claims.Grant.Rule, claims.Grant.Run
	if claims.Workflow != (identity.Workflow{}) {
		d.Workflow = &claims.Workflow
	}
	return d
}

func crlDocument(l *x509.RevocationList) inspectedDocument {
	thisUpdate, nextUpdate := l.ThisUpdate.UTC(), l.NextUpdate.UTC()
	d := inspectedDocument{Kind: "crl", Issuer: l.Issuer.String(), ThisUpdate: &thisUpdate, NextUpdate: &nextUpdate, Revoked: []string{}}
	if l.Number != nil {
		d.Number = l.Number.String()
	}
	if at, ok := crlFloor(l); ok {
		d.Floor = &at
	}
	for _, e := range l.RevokedCertificateEntries {
		d.Revoked = append(d.Revoked, mtls.Serial(e.SerialNumber))
	}
	return d
}

// crlFloor reads the floor extension. It ignores one that it cannot parse, because
// inspect only describes.
func crlFloor(l *x509.RevocationList) (time.Time, bool) {
	for _, e := range l.Extensions {
		if !e.Id.Equal(identity.OIDFloor) {
			continue
		}
		var at time.Time
		rest, err := asn1.UnmarshalWithParams(e.Value, &at, "generalized")
		return at.UTC(), err == nil && len(rest) == 0
	}
	return time.Time{}, false
}

// expiryStyle marks an expired certificate, and a CA that expires soon.
func (p *program) expiryStyle(c *x509.Certificate) *lipgloss.Style {
	left := c.NotAfter.Sub(p.now())
	switch {
	case left <= 0:
		return &styleBad
	case c.IsCA && left < 60*24*time.Hour:
		return &styleWarn
	}
	return &styleGood
}
