package cli

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// visiblePEM returns the certificates of a and those that only b has, in PEM. It
// drops all text around them.
func visiblePEM(a, b string) string {
	var out strings.Builder
	seen := map[string]bool{}
	for _, text := range []string{a, b} {
		for rest := []byte(text); ; {
			var blk *pem.Block
			if blk, rest = pem.Decode(rest); blk == nil {
				break
			}
			if blk.Type == "CERTIFICATE" && !seen[string(blk.Bytes)] {
				seen[string(blk.Bytes)] = true
				out.Write(pem.EncodeToMemory(&pem.Block{Type: blk.Type, Bytes: blk.Bytes}))
			}
		}
	}
	return out.String()
}

func (p *program) showCertificate(c *wire.CertificateDetail) {
	p.facts("", []fact{
		{"Serial", c.Serial, nil},
		{"Status", c.Status, statusStyle(c.Status)},
		{"Identity", c.Identity, nil},
		{"Profile", c.Profile, nil},
		{"Engines", strings.Join(c.Engines, ", "), nil},
		{"Rule", c.Rule, nil},
		{"Provider", c.Provider, nil},
		{"Repository", withLabel(c.Repository, "id ", c.RepositoryID), nil},
		{"Run", c.Run, nil},
		{"Actor", c.Actor, nil},
		{"Issued", p.instant(c.IssuedAt), nil},
		{"Valid from", p.instant(c.NotBefore), nil},
		{"Expires", p.instant(c.NotAfter), nil},
		{"Revoked", p.revocation(c), &styleBad},
		{"Token", withLabel(c.TokenIssuer, "id ", c.TokenID), nil},
		{"Key SHA-256", c.SPKI, nil},
		{"Issuer key id", c.Issuer, nil},
	})
	p.showClaims(c.Claims)
	p.showTimeline(c)
}

func (p *program) revocation(c *wire.CertificateDetail) string {
	if c.RevokedAt == nil {
		return ""
	}
	s := p.instant(*c.RevokedAt)
	if c.RevokedBy != "" {
		s += " by " + c.RevokedBy
	}
	if c.Reason != "" {
		s += ": " + c.Reason
	}
	return s
}

// withLabel returns "a (label b)", or less if a or b is empty.
func withLabel(a, label, b string) string {
	switch {
	case b == "":
		return a
	case a == "":
		return label + b
	}
	return fmt.Sprintf("%s (%s%s)", a, label, b)
}

// showClaims prints a token's payload, one claim on each line, by name.
func (p *program) showClaims(raw json.RawMessage) {
	list := claimFacts(raw)
	if len(list) == 0 {
		return
	}
	p.printf("\n%s\n", p.paint(styleHead, "Claims"))
	p.facts("  ", list)
}

// claimFacts returns the claims ordered by name. A string has no quotes, any other
// value is JSON, and a time also has its date.
func claimFacts(raw json.RawMessage) []fact {
	var claims map[string]json.RawMessage
	if json.Unmarshal(raw, &claims) != nil {
		return nil
	}
	var list []fact
	for _, name := range slices.Sorted(maps.Keys(claims)) {
		list = append(list, fact{escapeText(name), claimText(name, claims[name]), nil})
	}
	return list
}

func claimText(name string, v json.RawMessage) string {
	var s string
	if json.Unmarshal(v, &s) == nil {
		if s == "" {
			return `""`
		}
		return s
	}
	var n int64
	if (name == "iat" || name == "exp" || name == "nbf") && json.Unmarshal(v, &n) == nil {
		return fmt.Sprintf("%d (%s)", n, time.Unix(n, 0).UTC().Format(time.RFC3339))
	}
	return string(v)
}

// showTimeline prints the certificate's connections.
func (p *program) showTimeline(c *wire.CertificateDetail) {
	if len(c.Sessions) == 0 {
		return
	}
	p.printf("\n%s\n", p.paint(styleHead, "Connections"))
	p.table(sessionColumns, p.sessionRows(c.Sessions))
}
