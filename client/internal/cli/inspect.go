package cli

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
)

type inspectCommand struct {
	File string `arg:"" help:"PEM or DER file: a certificate, a chain, a trust bundle, a CRL; - for stdin."`
}

func (inspectCommand) Help() string {
	return `Reads and describes; it verifies no signature and sends nothing.

Examples:

	mayfly inspect certificate/cert.pem
	curl -s $MAYFLY_ISSUER/v1/trust-bundle | mayfly inspect -
	curl -s "$MAYFLY_ISSUER/v1/crl/wait?after=0" | mayfly inspect -`
}

// Run describes the file.
func (c *inspectCommand) Run(p *program) error {
	raw, err := c.read(p)
	if err != nil {
		return failf(exitFailed, "give a PEM or DER file, or - for stdin", "%w", err)
	}
	list, err := parseInspected(raw)
	if err != nil {
		return failf(exitFailed, "inspect reads certificates and CRLs, in PEM or DER; keys are left out", "%s: %w", c.File, err)
	}
	for i, it := range list {
		switch {
		case p.JSON:
			p.json(it.document())
		case i > 0:
			p.printf("\n")
			fallthrough
		default:
			p.inspected(it)
		}
	}
	return nil
}

func (c *inspectCommand) read(p *program) ([]byte, error) {
	r := p.in
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	if r == nil {
		return nil, fmt.Errorf("nothing on stdin")
	}
	raw, err := io.ReadAll(io.LimitReader(r, wire.MaxResponseBytes+1))
	if err == nil && len(raw) > wire.MaxResponseBytes {
		err = fmt.Errorf("%s is over %d bytes", c.File, wire.MaxResponseBytes)
	}
	return raw, err
}

// inspected is one item of a file: a certificate or a CRL.
type inspected struct {
	cert *x509.Certificate
	crl  *x509.RevocationList
}

// maxInspected bounds the number of described items of a file.
const maxInspected = 64

// parseInspected returns the certificates and CRLs of a file. It returns an error if
// there is none, or if it cannot parse one.
func parseInspected(raw []byte) ([]inspected, error) {
	if !bytes.Contains(raw, []byte("-----BEGIN ")) {
		it, err := parseDER(raw)
		return []inspected{it}, err
	}
	var list []inspected
	for rest := raw; len(list) < maxInspected; {
		var blk *pem.Block
		if blk, rest = pem.Decode(rest); blk == nil {
			break
		}
		switch blk.Type {
		case "CERTIFICATE", "X509 CRL":
			it, err := parseDER(blk.Bytes)
			if err != nil {
				return nil, err
			}
			list = append(list, it)
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("no certificate and no CRL in it")
	}
	return list, nil
}

func parseDER(der []byte) (inspected, error) {
	cert, err := x509.ParseCertificate(der)
	if err == nil {
		return inspected{cert: cert}, nil
	}
	crl, crlErr := x509.ParseRevocationList(der)
	if crlErr == nil {
		return inspected{crl: crl}, nil
	}
	return inspected{}, err
}

func (p *program) inspected(it inspected) {
	switch {
	case it.crl != nil:
		p.inspectedCRL(it.crl)
	case it.cert.IsCA:
		p.inspectedCA(it.cert)
	default:
		p.inspectedLeaf(it.cert)
	}
}

func (p *program) inspectedCRL(l *x509.RevocationList) {
	number, floor := "", ""
	if l.Number != nil {
		number = l.Number.String()
	}
	if at, ok := crlFloor(l); ok {
		floor = p.instant(at) + ": everything issued before it is refused"
	}
	p.printf("%s\n", p.paint(styleHead, "Revocation list"))
	p.facts("  ", []fact{
		{"Issuer", l.Issuer.String(), nil},
		{"Number", number, nil},
		{"This update", p.instant(l.ThisUpdate), nil},
		{"Next update", p.instant(l.NextUpdate), nil},
		{"Revoked", plural(len(l.RevokedCertificateEntries), "certificate"), nil},
		{"Floor", floor, nil},
	})
	for _, e := range l.RevokedCertificateEntries {
		p.printf("  revoked %s %s\n", mtls.Serial(e.SerialNumber), e.RevocationTime.UTC().Format("2006-01-02T15:04:05Z"))
	}
}

func (p *program) inspectedCA(c *x509.Certificate) {
	kind := "Intermediate CA"
	if bytes.Equal(c.RawSubject, c.RawIssuer) {
		kind = "Root CA"
	}
	list := []fact{
		{"Subject", c.Subject.String(), nil},
		{"Issuer", c.Issuer.String(), nil},
		{"Serial", mtls.Serial(c.SerialNumber), nil},
		{"Valid from", p.instant(c.NotBefore), nil},
		{"Expires", p.instant(c.NotAfter), p.expiryStyle(c)},
		{"URIs under", strings.Join(c.PermittedURIDomains, ", "), nil},
		{"DNS names under", strings.Join(c.PermittedDNSDomains, ", "), nil},
		{"Key", c.PublicKeyAlgorithm.String(), nil},
		{"Fingerprint", "sha256:" + fingerprint(c), nil},
	}
	if kind == "Root CA" {
		list = append(list, fact{"", "the fingerprint is what --trust-anchor and MAYFLY_TRUST_ANCHOR take", nil})
	}
	p.printf("%s\n", p.paint(styleHead, kind))
	p.facts("  ", list)
}

func (p *program) inspectedLeaf(c *x509.Certificate) {
	claims, err := leafClaims(c)
	kind := "Client certificate"
	if len(c.ExtKeyUsage) == 1 && c.ExtKeyUsage[0] == x509.ExtKeyUsageServerAuth {
		kind = "Server certificate"
	}
	p.printf("%s\n", p.paint(styleHead, kind))
	p.facts("  ", []fact{
		{"Subject", c.Subject.CommonName, nil},
		{"Identity", firstURI(c), nil},
		{"Engines", strings.Join(claims.Grant.Engines, ", "), nil},
		{"Rule", claims.Grant.Rule, nil},
		{"Run", claims.Grant.Run, nil},
		{"DNS names", strings.Join(c.DNSNames, ", "), nil},
		{"Serial", mtls.Serial(c.SerialNumber), nil},
		{"Valid from", p.instant(c.NotBefore), nil},
		{"Expires", p.instant(c.NotAfter), p.expiryStyle(c)},
		{"Issuer", c.Issuer.String(), nil},
		{"Issuer key id", hex.EncodeToString(c.AuthorityKeyId), nil},
		{"CRL", strings.Join(c.CRLDistributionPoints, ", "), nil},
		{"Key", c.PublicKeyAlgorithm.String(), nil},
		{"Fingerprint", "sha256:" + fingerprint(c), nil},
	})
	if err != nil {
		p.warn("this certificate does not have the form of mayfly's: %v", err)
		return
	}
	if list := workflowFacts(claims.Workflow); len(list) > 0 {
		p.printf("  %s\n", p.paint(styleHead, "Workflow"))
		p.facts("    ", list)
	}
}

// leafClaims reads a leaf in the trust domain that the leaf itself names, because
// inspect only describes.
func leafClaims(c *x509.Certificate) (identity.Identity, error) {
	if len(c.URIs) != 1 {
		return identity.Identity{}, fmt.Errorf("it has %s, not one", plural(len(c.URIs), "URI name"))
	}
	id, err := spiffeid.FromURI(c.URIs[0])
	if err != nil {
		return identity.Identity{}, err
	}
	return identity.FromCertificate(c, id.TrustDomain())
}

func firstURI(c *x509.Certificate) string {
	if len(c.URIs) == 0 {
		return ""
	}
	return c.URIs[0].String()
}

func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// workflowFacts returns Fulcio's description of a run.
func workflowFacts(w identity.Workflow) []fact {
	all := []fact{
		{"Issuer", w.Issuer, nil},
		{"Repository", withLabel(w.SourceRepositoryURI, "id ", w.SourceRepositoryID), nil},
		{"Owner", withLabel(w.SourceRepositoryOwnerURI, "id ", w.SourceRepositoryOwnerID), nil},
		{"Visibility", w.SourceRepositoryVisibility, nil},
		{"Ref", w.SourceRepositoryRef, nil},
		{"Commit", w.SourceRepositoryDigest, nil},
		{"Event", w.BuildTrigger, nil},
		{"Workflow", w.BuildConfigURI, nil},
		{"Job defined in", w.BuildSignerURI, nil},
		{"Run", w.RunInvocationURI, nil},
		{"Runner", w.RunnerEnvironment, nil},
		{"Environment", w.DeploymentEnvironment, nil},
		{"Subject", w.Subject, nil},
	}
	var list []fact
	for _, f := range all {
		if f.Text != "" {
			list = append(list, f)
		}
	}
	return list
}
