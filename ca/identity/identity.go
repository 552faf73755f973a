// Package identity defines the form of a mayfly identity in a certificate: the
// SPIFFE ID that is its only URI name, the Fulcio extensions that describe its
// workflow run, and the grant extension that lists its engines.
//
// It is pure and imports only the standard library, go-spiffe's spiffeid and
// golang.org/x/crypto/cryptobyte.
package identity

import (
	"encoding/asn1"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// OIDGrant is the non-critical grant extension:
//
//	SEQUENCE { engines SEQUENCE OF UTF8String, rule UTF8String, run UTF8String }
//
// OIDFloor is the non-critical CRL extension that carries the revocation floor as a
// GeneralizedTime. Both are under the documentation PEN of RFC 5612 until a PEN is
// assigned.
var (
	OIDGrant = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 32473, 1}
	OIDFloor = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 32473, 2}
)

// Identity is the subject of a leaf. Embed writes it and FromCertificate reads it
// back.
type Identity struct {
	// ID is the only URI SAN.
	ID spiffeid.ID
	// CommonName is for people; no decision depends on it. At most 64 runes.
	CommonName string
	Grant      Scope
	// Workflow holds Fulcio's extensions. An empty string leaves its extension out.
	Workflow Workflow
}

// Scope is the content of the grant extension.
type Scope struct {
	Engines []string
	Rule    string
	// Run is run_id/run_attempt/check_run_id for GitHub, sub for other
	// clients, and empty for engines.
	Run string
}

// Workflow is Fulcio's description of a CI run, OIDs 1.3.6.1.4.1.57264.1.8 to .24
// (sigstore/fulcio docs/oid-info.md). The comment on each field is the last arc of
// its OID. An empty field leaves its extension out.
type Workflow struct {
	Issuer                     string // 8
	BuildSignerURI             string // 9
	BuildSignerDigest          string // 10
	RunnerEnvironment          string // 11
	SourceRepositoryURI        string // 12
	SourceRepositoryDigest     string // 13
	SourceRepositoryRef        string // 14
	SourceRepositoryID         string // 15
	SourceRepositoryOwnerURI   string // 16
	SourceRepositoryOwnerID    string // 17
	BuildConfigURI             string // 18
	BuildConfigDigest          string // 19
	BuildTrigger               string // 20
	RunInvocationURI           string // 21
	SourceRepositoryVisibility string // 22
	DeploymentEnvironment      string // 23
	Subject                    string // 24
}

// Clone returns a copy that shares no memory with c.
func (c Identity) Clone() Identity {
	c.Grant.Engines = slices.Clone(c.Grant.Engines)
	return c
}
