package ca

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/mayfly-ca/mayfly/ca/guard"
	"github.com/mayfly-ca/mayfly/ca/issuance"
)

// Issued is a certificate and its durable record.
type Issued struct {
	Certificate *x509.Certificate
	Chain       []*x509.Certificate // leaf, intermediate
	Record      *Certificate
	// Repeated: the token had bought this certificate before, and the answer
	// was lost.
	Repeated bool
}

// Issue records and then signs a leaf for g, for the public key of csr. Errors:
// *CSRError for the request, *BlockedError, *ReplayError, ErrBeforeFloor, and
// anything else for a fault of ours, after which nothing was signed.
func (a *Authority) Issue(ctx context.Context, g issuance.Grant, csr *x509.CertificateRequest) (*Issued, error) {
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
	announced := guard.Leaf{Serial: guard.Serial(template), Grant: g, PublicKey: csr.PublicKey}
	r := &recording{store: a.store, params: p, aki: a.current.aki, issuedAt: now}
	leaf, err := a.current.guard.Leaf(ctx, announced, r, func(signer crypto.Signer) error {
		return encodeLeaf(template, a.current.cert, signer)
	})
	if errors.Is(err, guard.ErrRepeated) {
		return a.repeat(ctx, announced, r)
	}
	if err != nil {
		return nil, fmt.Errorf("issue: %w", err)
	}
	if !a.current.guard.Deterministic() {
		if err := a.store.AttachSignature(ctx, r.stored.Serial, leaf.Signature); err != nil {
			return nil, fmt.Errorf("issue: store signature: %w", err)
		}
	}
	return &Issued{Certificate: leaf, Chain: []*x509.Certificate{leaf, a.current.cert}, Record: r.stored}, nil
}

// repeat gives out the certificate that the token bought before, signed by the
// intermediate that it was recorded for.
func (a *Authority) repeat(ctx context.Context, announced guard.Leaf, r *recording) (*Issued, error) {
	aki, err := hex.DecodeString(r.stored.AKI)
	if err != nil {
		return nil, fmt.Errorf("issue again: %w", err)
	}
	line := a.line(aki)
	if line == nil {
		return nil, &ReplayError{Serial: r.stored.Serial, Why: "its intermediate is gone"}
	}
	leaf, fresh, err := line.guard.Repeat(ctx, announced, r)
	var refused *guard.RefusedError
	if errors.As(err, &refused) {
		return nil, &ReplayError{Serial: r.stored.Serial, Why: "another grant"}
	}
	if err != nil {
		return nil, fmt.Errorf("issue again: %w", err)
	}
	if len(fresh) > 0 && !line.guard.Deterministic() {
		if err := a.store.AttachSignature(ctx, r.stored.Serial, fresh); err != nil {
			return nil, fmt.Errorf("issue again: store signature: %w", err)
		}
	}
	return &Issued{Certificate: leaf, Chain: []*x509.Certificate{leaf, line.cert}, Record: r.stored, Repeated: true}, nil
}

// leaf is the template of a leaf: what the guard will find in it.
func (i *intermediate) leaf(p issuance.Params, pub crypto.PublicKey, now time.Time) (*x509.Certificate, error) {
	eku, err := p.Profile.ExtKeyUsage()
	if err != nil {
		return nil, err
	}
	t, err := i.endEntity(pub, eku, now)
	if err != nil {
		return nil, err
	}
	t.NotAfter = issuance.NotAfter(t.NotBefore, p.TTL, i.cert)
	if err := p.Embed(t); err != nil {
		return nil, err
	}
	return t, nil
}

// endEntity is what every leaf of i has. NotAfter is left to set.
func (i *intermediate) endEntity(pub crypto.PublicKey, eku x509.ExtKeyUsage, now time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	spki, id, err := publicKey(pub)
	if err != nil {
		return nil, err
	}
	notBefore := now.UTC().Truncate(time.Second).Add(-issuance.Backdate)
	if notBefore.Before(i.cert.NotBefore) {
		return nil, fmt.Errorf("the intermediate is not valid before %v", i.cert.NotBefore)
	}
	return &x509.Certificate{
		SerialNumber:            serial,
		NotBefore:               notBefore,
		PublicKey:               pub,
		RawSubjectPublicKeyInfo: spki,
		KeyUsage:                x509.KeyUsageDigitalSignature,
		ExtKeyUsage:             []x509.ExtKeyUsage{eku},
		BasicConstraintsValid:   true,
		SubjectKeyId:            id,
		CRLDistributionPoints:   []string{i.crl},
	}, nil
}

// recording is the guard's Recorder of one issuance.
type recording struct {
	store    Store
	params   issuance.Params
	aki      string
	issuedAt time.Time
	// stored is what the store holds for the token, once Record has returned.
	stored *Certificate
}

// Record writes the record of leaf.
func (r *recording) Record(ctx context.Context, leaf *x509.Certificate) error {
	p := r.params
	spki := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	c := &Certificate{
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
	stored, err := r.store.Record(ctx, c, Event{
		Time:       c.IssuedAt,
		Type:       EventIssued,
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
	if stored.Serial != c.Serial {
		return guard.ErrRepeated
	}
	return nil
}

// Recorded reads what Record found, once more: it may have been revoked since.
func (r *recording) Recorded(ctx context.Context) (tbs, signature []byte, err error) {
	c, err := r.store.Certificate(ctx, r.stored.Serial)
	if err != nil {
		return nil, nil, err
	}
	if c.RevokedAt != nil {
		return nil, nil, &ReplayError{Serial: c.Serial, Why: "revoked"}
	}
	r.stored = c
	return c.TBS, c.Signature, nil
}
