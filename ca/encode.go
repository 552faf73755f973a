package ca

import (
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"time"
	"unicode"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// encodeLeaf hands signer the to-be-signed bytes of template, as a certificate of
// issuer for template.RawSubjectPublicKeyInfo: byte for byte what step.Leaf
// makes, which tests hold it to, at a third of the cost; that was a seventh of
// an issuance. Whatever it gets wrong, the guard, which reads the bytes anew,
// refuses to sign.
//
// It knows the fields that endEntity and leaf set, and no others.
func encodeLeaf(template, issuer *x509.Certificate, signer crypto.Signer) error {
	tbs, err := leafTBS(template, issuer)
	if err != nil {
		return fmt.Errorf("encode leaf: %w", err)
	}
	message, ok := signer.(crypto.MessageSigner)
	if !ok {
		return errors.New("encode leaf: the signer takes digests only")
	}
	_, err = message.SignMessage(nil, tbs, crypto.SHA256)
	return err
}

// leafTBS is the TBSCertificate (RFC 5280 4.1).
func leafTBS(t, issuer *x509.Certificate) ([]byte, error) {
	subject, err := asn1.Marshal(t.Subject.ToRDNSequence())
	if err != nil {
		return nil, err
	}
	extensions, err := leafExtensions(t, issuer, len(subject) == 2)
	if err != nil {
		return nil, err
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, 2048))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { b.AddASN1Uint64(2) }) // v3
		b.AddASN1BigInt(t.SerialNumber)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidECDSAWithSHA256) })
		b.AddBytes(issuer.RawSubject)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			addTime(b, t.NotBefore)
			addTime(b, t.NotAfter)
		})
		b.AddBytes(subject)
		b.AddBytes(t.RawSubjectPublicKeyInfo)
		b.AddASN1(cbasn1.Tag(3).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(extensions) })
		})
	})
	return b.Bytes()
}

// addTime adds a Time (RFC 5280 4.1.2.5).
func addTime(b *cryptobyte.Builder, t time.Time) {
	if t = t.UTC(); t.Year() < 2050 {
		b.AddASN1UTCTime(t)
	} else {
		b.AddASN1GeneralizedTime(t)
	}
}

var (
	oidECDSAWithSHA256 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	oidClientAuth      = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}
	oidServerAuth      = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}
)

// ext is an arc of id-ce (RFC 5280 4.2.1).
func ext(arc int) asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 5, 29, arc} }

// leafExtensions are t's, in the order of x509.CreateCertificate. The names are
// critical where the subject says nothing (RFC 5280 4.2.1.6).
func leafExtensions(t, issuer *x509.Certificate, nameless bool) ([]byte, error) {
	usage := oidClientAuth
	switch {
	case len(t.ExtKeyUsage) != 1 || t.KeyUsage != x509.KeyUsageDigitalSignature || !t.BasicConstraintsValid || t.IsCA || t.MaxPathLen != 0:
		return nil, errors.New("not the template of a leaf")
	case t.ExtKeyUsage[0] == x509.ExtKeyUsageServerAuth:
		usage = oidServerAuth
	case t.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth:
		return nil, errors.New("another extended key usage")
	case len(t.URIs) != 1 || len(t.IPAddresses) > 0 || len(t.EmailAddresses) > 0:
		return nil, errors.New("other names than a leaf has")
	case len(t.SubjectKeyId) == 0 || len(t.RawSubjectPublicKeyInfo) == 0:
		return nil, errors.New("no public key, or no id of it")
	case t.SerialNumber == nil || t.SerialNumber.Sign() <= 0:
		return nil, errors.New("no serial number")
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, 1536))
	addExtension(b, ext(15), true, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.BIT_STRING, func(b *cryptobyte.Builder) { b.AddBytes([]byte{7, 0x80}) }) // digitalSignature
	})
	addExtension(b, ext(37), false, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(usage) })
	})
	addExtension(b, ext(19), true, func(b *cryptobyte.Builder) { b.AddASN1(cbasn1.SEQUENCE, func(*cryptobyte.Builder) {}) })
	addExtension(b, ext(14), false, func(b *cryptobyte.Builder) { b.AddASN1OctetString(t.SubjectKeyId) })
	addExtension(b, ext(35), false, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(issuer.SubjectKeyId) })
		})
	})
	const dnsName, uri = 2, 6 // GeneralName (RFC 5280 4.2.1.6)
	addExtension(b, ext(17), nameless, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, name := range t.DNSNames {
				addName(b, dnsName, name)
			}
			addName(b, uri, t.URIs[0].String())
		})
	})
	addExtension(b, ext(31), false, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, url := range t.CRLDistributionPoints {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // DistributionPoint
					full := cbasn1.Tag(0).ContextSpecific().Constructed() // distributionPoint, and in it fullName
					b.AddASN1(full, func(b *cryptobyte.Builder) {
						b.AddASN1(full, func(b *cryptobyte.Builder) { addName(b, uri, url) })
					})
				})
			}
		})
	})
	for _, e := range t.ExtraExtensions {
		addExtension(b, e.Id, e.Critical, func(b *cryptobyte.Builder) { b.AddBytes(e.Value) })
	}
	return b.Bytes()
}

// addExtension adds an Extension (RFC 5280 4.1) whose value is what f adds.
func addExtension(b *cryptobyte.Builder, id asn1.ObjectIdentifier, critical bool, f cryptobyte.BuilderContinuation) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(id)
		if critical {
			b.AddASN1Boolean(true)
		}
		b.AddASN1(cbasn1.OCTET_STRING, f)
	})
}

// addName adds a GeneralName, which is an IA5String under an implicit tag.
func addName(b *cryptobyte.Builder, tag uint8, name string) {
	for _, c := range []byte(name) {
		if c > unicode.MaxASCII {
			b.SetError(fmt.Errorf("name %q is not ASCII", name))
		}
	}
	b.AddASN1(cbasn1.Tag(tag).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(name)) })
}
