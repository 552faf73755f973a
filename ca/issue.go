package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/mayfly-ca/mayfly/ca/grant"
	"github.com/mayfly-ca/mayfly/ca/internal/guard"
	"github.com/mayfly-ca/mayfly/ca/internal/keys"
	"github.com/mayfly-ca/mayfly/ca/store"
)

// Issued is a certificate and its durable record.
type Issued struct {
	Certificate *x509.Certificate
	Chain       []*x509.Certificate // leaf, intermediate
	Record      *store.Certificate
	// Repeated means that the token was used for this certificate before. The
	// to-be-signed bytes are the same; the signature may differ.
	Repeated bool
}

// RefusedError comes from the guard. It is a fault of mayfly; a retry does not
// help.
type RefusedError = guard.RefusedError

// Issue records and then signs a leaf for g, with the public key of csr. A second
// use of a token with the same key returns the recorded leaf, since the first
// answer may have been lost. Errors: *CSRError for the request, *BlockedError,
// *ReplayError, ErrBeforeFloor; any other error is a fault of mayfly. On an error,
// no certificate leaves the authority.
func (a *Authority) Issue(ctx context.Context, g grant.Grant, csr *x509.CertificateRequest) (*Issued, error) {
	if g.IsZero() {
		return nil, errors.New("issue: zero grant")
	}
	if err := a.checkCSR(csr); err != nil {
		return nil, err
	}
	p := g.Params()
	for _, name := range p.DNSNames {
		if !a.constraints.PermitsDNS(name) {
			return nil, fmt.Errorf("issue: DNS name %q is outside of the intermediate's name constraints", name)
		}
	}
	if p.Identity.ID.TrustDomain() != a.constraints.TrustDomain {
		return nil, fmt.Errorf("issue: grant of trust domain %q", p.Identity.ID.TrustDomain().Name())
	}
	now := time.Now().UTC()
	template, err := a.current.leaf(p, csr.PublicKey, now)
	if err != nil {
		return nil, fmt.Errorf("issue: %w", err)
	}
	r := &recorder{store: a.store, params: p, aki: a.current.aki, issuedAt: now}
	want := guard.Leaf{Grant: g, PublicKey: csr.PublicKey}
	issued, err := a.signLeaf(ctx, template, want, r)
	if errors.Is(err, errOtherRecorded) {
		want.Retry = true
		issued, err = a.retry(ctx, template, want, r)
	}
	if err != nil {
		return nil, fmt.Errorf("issue: %w", err)
	}
	return issued, nil
}

// retry signs the leaf that r found recorded for the token. The current grant, key
// and intermediate, with the recorded serial and times, must give the recorded
// bytes.
func (a *Authority) retry(ctx context.Context, template *x509.Certificate, want guard.Leaf, r *recorder) (*Issued, error) {
	recorded := r.stored
	serial, ok := new(big.Int).SetString(recorded.Serial, 16)
	if !ok {
		return nil, fmt.Errorf("recorded serial %q is malformed", recorded.Serial)
	}
	template.SerialNumber, template.NotBefore, template.NotAfter = serial, recorded.NotBefore, recorded.NotAfter
	issued, err := a.signLeaf(ctx, template, want, r)
	var refused *guard.RefusedError
	if errors.Is(err, errOtherRecorded) || errors.As(err, &refused) {
		return nil, &store.ReplayError{Serial: recorded.Serial, Why: "another grant"}
	}
	if err != nil {
		return nil, err
	}
	issued.Repeated = true
	return issued, nil
}

// signLeaf records template with r, then signs it with the current intermediate.
func (a *Authority) signLeaf(ctx context.Context, template *x509.Certificate, want guard.Leaf, r *recorder) (*Issued, error) {
	want.Serial = guard.Serial(template)
	signer := a.current.guard.LeafSigner(want, func(leaf *x509.Certificate) error { return r.record(ctx, leaf) })
	leaf, err := keys.Leaf(ctx, template, a.current.cert, signer)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(leaf.RawTBSCertificate, r.stored.TBS) {
		return nil, errors.New("the certificate is not the one that was recorded")
	}
	return &Issued{Certificate: leaf, Chain: []*x509.Certificate{leaf, a.current.cert}, Record: r.stored}, nil
}

// leaf returns the template of a leaf, as the guard expects it.
func (i *intermediate) leaf(p grant.Params, pub crypto.PublicKey, now time.Time) (*x509.Certificate, error) {
	eku, err := p.Profile.ExtKeyUsage()
	if err != nil {
		return nil, err
	}
	t, err := i.baseTemplate(pub, eku, now)
	if err != nil {
		return nil, err
	}
	t.NotAfter = grant.NotAfter(t.NotBefore, p.TTL, i.cert)
	if err := p.Embed(t); err != nil {
		return nil, err
	}
	return t, nil
}

// baseTemplate returns the fields that all leaves of i share. The caller sets
// NotAfter.
func (i *intermediate) baseTemplate(pub crypto.PublicKey, eku x509.ExtKeyUsage, now time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	id, err := subjectKeyID(pub)
	if err != nil {
		return nil, err
	}
	notBefore := now.UTC().Truncate(time.Second).Add(-grant.Backdate)
	if notBefore.Before(i.cert.NotBefore) {
		return nil, fmt.Errorf("the intermediate is not valid before %v", i.cert.NotBefore)
	}
	return &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             notBefore,
		PublicKey:             pub,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{eku},
		BasicConstraintsValid: true,
		SubjectKeyId:          id,
		CRLDistributionPoints: []string{i.crl},
	}, nil
}

// errOtherRecorded: the token was used before, and its record holds other bytes.
var errOtherRecorded = errors.New("the token was used for another certificate")

// recorder writes the record of one issuance.
type recorder struct {
	store    store.Store
	params   grant.Params
	aki      string
	issuedAt time.Time
	// stored is the store's record for the token, set by record.
	stored *store.Certificate
}

// record returns nil after a record of leaf's to-be-signed bytes is durable. This
// is a new record, or that of the token's first use, which is not expired, revoked
// or blocked.
func (r *recorder) record(ctx context.Context, leaf *x509.Certificate) error {
	p := r.params
	spki := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	c := &store.Certificate{
		Serial:       guard.Serial(leaf),
		Profile:      string(p.Profile),
		Provider:     p.Provider,
		Identity:     p.Identity.ID.String(),
		Rule:         p.Identity.Grant.Rule,
		Run:          p.Identity.Grant.Run,
		Engines:      p.Identity.Grant.Engines,
		Repository:   p.Subject.Repository,
		RepositoryID: p.Subject.RepositoryID,
		RunID:        p.Subject.RunID,
		Actor:        p.Subject.Actor,
		TokenIssuer:  p.Token.Issuer,
		TokenID:      p.Token.ID,
		SingleUse:    p.Token.SingleUse,
		TokenIAT:     p.Token.IssuedAt,
		SPKI:         spki[:],
		AKI:          r.aki,
		Claims:       p.Claims,
		TBS:          leaf.RawTBSCertificate,
		NotBefore:    leaf.NotBefore,
		NotAfter:     leaf.NotAfter,
		IssuedAt:     r.issuedAt.Truncate(time.Microsecond),
	}
	stored, err := r.store.Record(ctx, c, store.Event{
		Time:       c.IssuedAt,
		Type:       store.EventIssued,
		By:         c.Identity,
		Serial:     c.Serial,
		Identity:   c.Identity,
		Repository: c.Repository,
		RunID:      c.RunID,
		Rule:       c.Rule,
	})
	if err != nil {
		return err
	}
	r.stored = stored
	if !bytes.Equal(stored.TBS, leaf.RawTBSCertificate) || stored.AKI != r.aki {
		return errOtherRecorded
	}
	return nil
}
