package identity

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/url"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// oidFulcio is the arc under which Fulcio numbers its extensions.
var oidFulcio = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1}

// Embed writes c into tmpl: the only URI name, the common name and the extensions.
// It refuses an identity that FromCertificate would not read back equal, and a
// template that already has a name.
func Embed(c Identity, tmpl *x509.Certificate) error {
	if err := c.Validate(); err != nil {
		return fmt.Errorf("embed identity: %w", err)
	}
	if len(tmpl.URIs) > 0 || len(tmpl.ExtraExtensions) > 0 || tmpl.Subject.CommonName != "" {
		return errors.New("embed identity: the template names a subject already")
	}
	grant, err := c.Grant.marshal()
	if err != nil {
		return fmt.Errorf("embed identity: %w", err)
	}
	fields := c.Workflow.fields()
	exts := make([]pkix.Extension, 0, len(fields)+1)
	for _, f := range fields {
		if *f.value == "" {
			continue
		}
		value, err := marshalUTF8(*f.value)
		if err != nil {
			return fmt.Errorf("embed identity: workflow extension .%d: %w", f.arc, err)
		}
		exts = append(exts, pkix.Extension{Id: fulcioOID(f.arc), Value: value})
	}
	tmpl.ExtraExtensions = append(exts, pkix.Extension{Id: OIDGrant, Value: grant})
	tmpl.Subject = pkix.Name{CommonName: c.CommonName}
	tmpl.URIs = []*url.URL{c.ID.URL()}
	return nil
}

// FromCertificate reads the identity of a leaf of trust domain td. It does not
// verify the chain. It refuses a CA certificate, another trust domain (the
// intermediate's name constraint would allow its subdomains), more or less than one
// URI name, and e-mail and IP names. It also refuses a grant extension that is
// missing, repeated, critical or malformed.
func FromCertificate(cert *x509.Certificate, td spiffeid.TrustDomain) (Identity, error) {
	c, err := fromCertificate(cert, td)
	if err != nil {
		return Identity{}, fmt.Errorf("identity of certificate: %w", err)
	}
	return c, nil
}

func fromCertificate(cert *x509.Certificate, td spiffeid.TrustDomain) (Identity, error) {
	switch {
	case cert == nil:
		return Identity{}, errors.New("no certificate")
	case td.IsZero():
		return Identity{}, errors.New("no trust domain to compare with")
	case cert.IsCA:
		return Identity{}, errors.New("it is a CA's")
	case len(cert.URIs) != 1:
		return Identity{}, fmt.Errorf("%d URI names, want 1", len(cert.URIs))
	case len(cert.EmailAddresses) > 0 || len(cert.IPAddresses) > 0:
		return Identity{}, errors.New("it has e-mail or IP names")
	}
	id, err := spiffeid.FromURI(cert.URIs[0])
	if err != nil {
		return Identity{}, err
	}
	if id.TrustDomain() != td {
		return Identity{}, fmt.Errorf("trust domain %q, want %q", id.TrustDomain().Name(), td.Name())
	}
	c := Identity{ID: id, CommonName: cert.Subject.CommonName}
	if err := c.readExtensions(cert.Extensions); err != nil {
		return Identity{}, err
	}
	if err := c.Validate(); err != nil {
		return Identity{}, err
	}
	return c, nil
}

// readExtensions fills c from exts and skips extensions that are not ours.
func (c *Identity) readExtensions(exts []pkix.Extension) error {
	fields := c.Workflow.fields()
	seen := make([]bool, len(fields))
	granted := false
	for _, e := range exts {
		if e.Id.Equal(OIDGrant) {
			if granted || e.Critical {
				return errors.New("the grant extension is there twice, or critical")
			}
			granted = true
			if err := c.Grant.unmarshal(e.Value); err != nil {
				return err
			}
			continue
		}
		i, ok := fulcioField(e.Id)
		if !ok {
			continue
		}
		if seen[i] || e.Critical {
			return fmt.Errorf("workflow extension .%d is there twice, or critical", fields[i].arc)
		}
		seen[i] = true
		value, err := unmarshalUTF8(e.Value)
		if err != nil {
			return fmt.Errorf("workflow extension .%d: %w", fields[i].arc, err)
		}
		if value == "" {
			return fmt.Errorf("workflow extension .%d is empty", fields[i].arc)
		}
		*fields[i].value = value
	}
	if !granted {
		return errors.New("no grant extension")
	}
	return nil
}

// workflowField maps the last arc of a Fulcio OID to a field of a Workflow.
type workflowField struct {
	arc   int
	value *string
}

const firstArc = 8

// fields returns w's fields in the order of their arcs, 8 to 24 without a gap.
func (w *Workflow) fields() [17]workflowField {
	return [17]workflowField{
		{8, &w.Issuer},
		{9, &w.BuildSignerURI},
		{10, &w.BuildSignerDigest},
		{11, &w.RunnerEnvironment},
		{12, &w.SourceRepositoryURI},
		{13, &w.SourceRepositoryDigest},
		{14, &w.SourceRepositoryRef},
		{15, &w.SourceRepositoryID},
		{16, &w.SourceRepositoryOwnerURI},
		{17, &w.SourceRepositoryOwnerID},
		{18, &w.BuildConfigURI},
		{19, &w.BuildConfigDigest},
		{20, &w.BuildTrigger},
		{21, &w.RunInvocationURI},
		{22, &w.SourceRepositoryVisibility},
		{23, &w.DeploymentEnvironment},
		{24, &w.Subject},
	}
}

func fulcioOID(arc int) asn1.ObjectIdentifier {
	oid := make(asn1.ObjectIdentifier, len(oidFulcio)+1)
	copy(oid, oidFulcio)
	oid[len(oidFulcio)] = arc
	return oid
}

// fulcioField returns the index in fields of the field with this OID.
func fulcioField(oid asn1.ObjectIdentifier) (int, bool) {
	n := len(oidFulcio)
	if len(oid) != n+1 || !oid[:n].Equal(oidFulcio) {
		return 0, false
	}
	i := oid[n] - firstArc
	return i, 0 <= i && i < 17
}

func (g Scope) marshal() ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, e := range g.Engines {
				addUTF8(b, e)
			}
		})
		addUTF8(b, g.Rule)
		addUTF8(b, g.Run)
	})
	return b.Bytes()
}

var errGrant = errors.New("malformed grant extension")

func (g *Scope) unmarshal(der []byte) error {
	in := cryptobyte.String(der)
	var seq, engines cryptobyte.String
	if !in.ReadASN1(&seq, cbasn1.SEQUENCE) || !in.Empty() || !seq.ReadASN1(&engines, cbasn1.SEQUENCE) {
		return errGrant
	}
	for !engines.Empty() {
		if len(g.Engines) == MaxEngines {
			return errGrant
		}
		e, ok := readUTF8(&engines)
		if !ok {
			return errGrant
		}
		g.Engines = append(g.Engines, e)
	}
	var ok bool
	if g.Rule, ok = readUTF8(&seq); !ok {
		return errGrant
	}
	if g.Run, ok = readUTF8(&seq); !ok || !seq.Empty() {
		return errGrant
	}
	return nil
}

func marshalUTF8(s string) ([]byte, error) {
	var b cryptobyte.Builder
	addUTF8(&b, s)
	return b.Bytes()
}

func unmarshalUTF8(der []byte) (string, error) {
	in := cryptobyte.String(der)
	s, ok := readUTF8(&in)
	if !ok || !in.Empty() {
		return "", errors.New("not one DER UTF8String")
	}
	return s, nil
}

func addUTF8(b *cryptobyte.Builder, s string) {
	b.AddASN1(cbasn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(s)) })
}

func readUTF8(in *cryptobyte.String) (string, bool) {
	var s cryptobyte.String
	if !in.ReadASN1(&s, cbasn1.UTF8String) || len(s) > MaxValue {
		return "", false
	}
	return string(s), true
}

// IsWorkflowExtension reports whether oid belongs to an extension that a Workflow
// holds.
func IsWorkflowExtension(oid asn1.ObjectIdentifier) bool {
	_, ok := fulcioField(oid)
	return ok
}
