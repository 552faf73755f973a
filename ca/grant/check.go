package grant

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ca/identity"
)

// MaxAge bounds how far NotBefore may lie in the past when a leaf is signed. It is
// Backdate plus the time that recording may take.
const MaxAge = 90 * time.Second

// SerialBytes is the length of a leaf's serial number. The first byte is not zero.
const SerialBytes = 16

// Bounds are the limits of the authority that signs a leaf.
type Bounds struct {
	Now time.Time
	// Earliest is the first NotBefore that may be signed.
	Earliest    time.Time
	TrustDomain spiffeid.TrustDomain
	// Issuer is the intermediate's certificate.
	Issuer *x509.Certificate
	// CRL is the only distribution point of the leaf.
	CRL string
}

// Check reports whether leaf is exactly what g permits within b. It does not look
// at the leaf's signature, since it runs before signing.
func Check(leaf *x509.Certificate, g Grant, b Bounds) error {
	if g.IsZero() {
		return errors.New("check leaf: zero grant")
	}
	if err := checkTimes(leaf, g.p.TTL, b); err != nil {
		return fmt.Errorf("check leaf: %w", err)
	}
	if err := checkForm(leaf, g.p.Profile, b); err != nil {
		return fmt.Errorf("check leaf: %w", err)
	}
	if err := checkSubject(leaf, g.p, b.TrustDomain); err != nil {
		return fmt.Errorf("check leaf: %w", err)
	}
	return nil
}

// CheckSubject reports whether leaf, of trust domain td, has this SPIFFE ID, rule,
// run and engines, and the labels s. Revocations and blocks select by these values.
// A leaf does not name its actor.
func CheckSubject(leaf *x509.Certificate, td spiffeid.TrustDomain, id, rule, run string, engines []string, s Labels) error {
	got, err := identity.FromCertificate(leaf, td)
	if err != nil {
		return fmt.Errorf("check recorded leaf: %w", err)
	}
	if got.ID.String() != id || got.Grant.Rule != rule || got.Grant.Run != run || !slices.Equal(got.Grant.Engines, engines) {
		return errors.New("check recorded leaf: the record has another identity or grant")
	}
	w := got.Workflow
	repository := w.SourceRepositoryURI == "" && s.Repository == "" || s.Repository != "" && strings.HasSuffix(w.SourceRepositoryURI, "/"+s.Repository)
	ofRun := w.RunInvocationURI == "" || strings.Contains(w.RunInvocationURI, "/actions/runs/"+s.RunID+"/")
	if w == (identity.Workflow{}) {
		ofRun = s.RunID == ""
	} else if run != "" {
		first, _, _ := strings.Cut(run, "/")
		ofRun = ofRun && first == s.RunID
	}
	if !repository || !ofRun || w.SourceRepositoryID != s.RepositoryID {
		return errors.New("check recorded leaf: the record has another repository or run")
	}
	return nil
}

// checkTimes compares NotBefore with the bounds and NotAfter with the grant.
func checkTimes(leaf *x509.Certificate, ttl time.Duration, b Bounds) error {
	if leaf.NotBefore.After(b.Now) || leaf.NotBefore.Before(b.Earliest) {
		return fmt.Errorf("NotBefore %v is not between %v and now", leaf.NotBefore, b.Earliest)
	}
	if want := NotAfter(leaf.NotBefore, ttl, b.Issuer); !leaf.NotAfter.Equal(want) {
		return fmt.Errorf("NotAfter %v, want %v", leaf.NotAfter, want)
	}
	if !leaf.NotAfter.After(b.Now) {
		return errors.New("NotAfter has passed: the intermediate is at its end")
	}
	return nil
}

// NotAfter returns the end of a leaf: Backdate + ttl after notBefore, but never
// later than issuer's NotAfter.
func NotAfter(notBefore time.Time, ttl time.Duration, issuer *x509.Certificate) time.Time {
	end := notBefore.Add(Backdate + ttl)
	if end.After(issuer.NotAfter) {
		return issuer.NotAfter
	}
	return end
}

// checkForm checks what every leaf of profile p must have.
func checkForm(leaf *x509.Certificate, p Profile, b Bounds) error {
	eku, err := p.ExtKeyUsage()
	if err != nil {
		return err
	}
	if err := CheckEndEntity(leaf, b.Issuer, eku); err != nil {
		return err
	}
	if d := leaf.NotAfter.Sub(leaf.NotBefore); d <= 0 || d > Backdate+p.MaxTTL() {
		return fmt.Errorf("a lifetime of %v: profile %s holds %v", d, p, p.MaxTTL())
	}
	if !slices.Equal(leaf.CRLDistributionPoints, []string{b.CRL}) {
		return fmt.Errorf("CRL distribution points %q, want %q", leaf.CRLDistributionPoints, b.CRL)
	}
	return nil
}

// CheckEndEntity checks what every certificate signed by an intermediate must have,
// the issuer's own listener certificate included: a full serial number, a good key,
// one extended key usage, no CA flag, no unknown name or extension, and times
// within issuer's.
func CheckEndEntity(leaf, issuer *x509.Certificate, eku x509.ExtKeyUsage) error {
	switch {
	case leaf.Version != 3:
		return fmt.Errorf("version %d", leaf.Version)
	case leaf.SerialNumber.Sign() <= 0 || leaf.SerialNumber.BitLen() <= 8*(SerialBytes-1) || leaf.SerialNumber.BitLen() > 8*SerialBytes:
		return fmt.Errorf("serial number is not %d bytes", SerialBytes)
	case !leaf.BasicConstraintsValid || leaf.IsCA || leaf.MaxPathLen > 0 || leaf.MaxPathLenZero:
		return errors.New("it is a CA's, or has no basic constraints")
	case leaf.KeyUsage != x509.KeyUsageDigitalSignature:
		return fmt.Errorf("key usage %b, want digitalSignature alone", leaf.KeyUsage)
	case !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{eku}) || len(leaf.UnknownExtKeyUsage) > 0:
		return fmt.Errorf("extended key usage %v, want %v alone", leaf.ExtKeyUsage, eku)
	case !bytes.Equal(leaf.AuthorityKeyId, issuer.SubjectKeyId) || len(leaf.AuthorityKeyId) == 0:
		return errors.New("another authority key id")
	case len(leaf.SubjectKeyId) == 0:
		return errors.New("no subject key id")
	case !bytes.Equal(leaf.RawIssuer, issuer.RawSubject):
		return errors.New("another issuer")
	case len(leaf.EmailAddresses) > 0:
		return errors.New("it has e-mail names")
	case leaf.NotAfter.After(issuer.NotAfter) || leaf.NotBefore.Before(issuer.NotBefore):
		return errors.New("it outlives its intermediate")
	}
	if names := leaf.Subject.Names; len(names) > 1 || len(names) == 1 && !names[0].Type.Equal(oidCommonName) {
		return errors.New("the subject holds more than a common name")
	}
	for _, e := range leaf.Extensions {
		if !knownExtension(e.Id) {
			return fmt.Errorf("extension %v", e.Id)
		}
	}
	return CheckKey(leaf.PublicKey)
}

// CheckNames reports whether the subject alternative names of cert are dns, ips and
// uri, in this order, byte for byte. It also refuses names of other kinds, which
// cert's fields do not show. An empty uri means no URI name. The extension is
// critical if the subject is empty (RFC 5280 4.2.1.6).
func CheckNames(cert *x509.Certificate, dns []string, ips []net.IP, uri string) error {
	const dnsName, uriName, ipName = 2, 6, 7 // tags of GeneralName (RFC 5280 4.2.1.6)
	b := cryptobyte.NewBuilder(make([]byte, 0, 256))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		add := func(tag cbasn1.Tag, name []byte) {
			b.AddASN1(tag.ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(name) })
		}
		for _, name := range dns {
			add(dnsName, []byte(name))
		}
		for _, ip := range ips {
			if v4 := ip.To4(); v4 != nil {
				ip = v4
			}
			add(ipName, ip)
		}
		if uri != "" {
			add(uriName, []byte(uri))
		}
	})
	want, err := b.Bytes()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(cert.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidSubjectAltName) })
	if i < 0 || !bytes.Equal(cert.Extensions[i].Value, want) || cert.Extensions[i].Critical != (len(cert.Subject.Names) == 0) {
		return fmt.Errorf("other names than DNS %q, IP %v, URI %q", dns, ips, uri)
	}
	return nil
}

// checkSubject compares leaf's names and extensions with the grant's.
func checkSubject(leaf *x509.Certificate, p *Params, td spiffeid.TrustDomain) error {
	if err := CheckNames(leaf, p.DNSNames, nil, p.Identity.ID.String()); err != nil {
		return err
	}
	got, err := identity.FromCertificate(leaf, td)
	if err != nil {
		return err
	}
	want := p.Identity
	if got.ID != want.ID || got.CommonName != want.CommonName {
		return fmt.Errorf("subject %s, want %s", got.ID, want.ID)
	}
	if !slices.Equal(got.Grant.Engines, want.Grant.Engines) || got.Grant.Rule != want.Grant.Rule || got.Grant.Run != want.Grant.Run {
		return errors.New("another grant extension")
	}
	if got.Workflow != want.Workflow {
		return errors.New("other workflow extensions")
	}
	return nil
}

// CheckKey reports whether a leaf may hold pub: P-256, P-384, Ed25519, or RSA of
// 2048 to 8192 bits with exponent 65537.
func CheckKey(pub any) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return fmt.Errorf("curve %s: want P-256 or P-384", k.Curve.Params().Name)
		}
	case ed25519.PublicKey:
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSABits || n > maxRSABits {
			return fmt.Errorf("RSA key of %d bits: want %d to %d", n, minRSABits, maxRSABits)
		}
		if k.E != 65537 {
			return fmt.Errorf("RSA exponent %d: want 65537", k.E)
		}
	default:
		return fmt.Errorf("key of type %T: want P-256, P-384, Ed25519 or RSA", pub)
	}
	return nil
}

// maxRSABits bounds the cost of verifying with a requester's key.
const (
	minRSABits = 2048
	maxRSABits = 8192
)

var (
	oidCommonName     = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// knownExtension reports whether a leaf may carry the extension oid: key usage,
// names, basic constraints, CRL distribution points, the two key ids, extended key
// usage, Fulcio's extensions and the grant.
func knownExtension(oid asn1.ObjectIdentifier) bool {
	if len(oid) == 4 && oid[0] == 2 && oid[1] == 5 && oid[2] == 29 {
		switch oid[3] {
		case 14, 15, 17, 19, 31, 35, 37:
			return true
		}
		return false
	}
	return oid.Equal(identity.OIDGrant) || identity.IsWorkflowExtension(oid)
}
