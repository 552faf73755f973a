package ca

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/mayfly-ca/mayfly/ca/guard"
	"github.com/mayfly-ca/mayfly/ca/issuance"
)

// maxFaults bounds how many faults Verify lists.
const maxFaults = 20

// Verified counts what Verify has checked.
type Verified struct {
	Certificates int64
	// Unknown of them were issued by intermediates that are not configured any
	// more: their records agree with themselves, and no more can be told.
	Unknown int64
	Events  int64
}

// Verify checks every stored certificate against what an authority like this
// would have issued and against its own record, and the chain of events. The
// error names the first faults.
func (a *Authority) Verify(ctx context.Context) (*Verified, error) {
	v := &Verified{}
	var faults []error
	err := a.store.Each(ctx, func(c *Certificate) error {
		v.Certificates++
		known, err := a.verifyRecord(c)
		if !known {
			v.Unknown++
		}
		if err != nil && len(faults) < maxFaults {
			faults = append(faults, fmt.Errorf("certificate %s: %w", c.Serial, err))
		}
		return nil
	})
	if err != nil {
		faults = append(faults, fmt.Errorf("read certificates: %w", err))
	}
	if v.Events, err = a.store.VerifyEvents(ctx); err != nil {
		faults = append(faults, fmt.Errorf("events: %w", err))
	}
	if len(faults) > 0 {
		return v, fmt.Errorf("verify store: %w", errors.Join(faults...))
	}
	return v, nil
}

// verifyRecord holds one record to its TBS, and tells whether its intermediate
// is known.
func (a *Authority) verifyRecord(c *Certificate) (known bool, err error) {
	aki, err := hex.DecodeString(c.AKI)
	if err != nil {
		return false, fmt.Errorf("authority key id: %w", err)
	}
	line := a.line(aki)
	leaf, err := guard.Assemble(c.TBS, c.Signature)
	if err != nil {
		return line != nil, err
	}
	if err := agrees(c, leaf); err != nil {
		return line != nil, err
	}
	if err := issuance.CheckSubject(leaf, a.constraints.TrustDomain, c.Identity, c.Rule, c.Run, c.Engines); err != nil {
		return line != nil, err
	}
	if line == nil {
		return false, nil
	}
	p := issuance.Profile(c.Profile)
	eku, err := p.ExtKeyUsage()
	if err != nil {
		return true, err
	}
	if err := issuance.CheckEndEntity(leaf, line.cert, eku); err != nil {
		return true, err
	}
	if leaf.NotAfter.Sub(leaf.NotBefore) > issuance.Backdate+p.MaxTTL() {
		return true, errors.New("it lives longer than its profile may")
	}
	if len(c.Signature) > 0 {
		return true, leaf.CheckSignatureFrom(line.cert)
	}
	return true, nil
}

// agrees compares the columns of a record with the leaf that it records.
func agrees(c *Certificate, leaf *x509.Certificate) error {
	spki := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	switch {
	case guard.Serial(leaf) != c.Serial:
		return errors.New("the record tells of another serial")
	case !bytes.Equal(spki[:], c.SPKI):
		return errors.New("the record tells of another key")
	case !leaf.NotBefore.Equal(c.NotBefore) || !leaf.NotAfter.Equal(c.NotAfter):
		return errors.New("the record tells of other times")
	case hex.EncodeToString(leaf.AuthorityKeyId) != c.AKI:
		return errors.New("the record tells of another intermediate")
	}
	return nil
}

// ErrNoSignature: the record's signature was not kept, since the key derives it,
// and what is expired or revoked is not signed again.
var ErrNoSignature = errors.New("the signature was not kept")

// Chain returns the certificate of a record, and its intermediate's. See
// ErrNoSignature.
func (a *Authority) Chain(ctx context.Context, c *Certificate) ([]*x509.Certificate, error) {
	aki, err := hex.DecodeString(c.AKI)
	if err != nil {
		return nil, fmt.Errorf("chain of %s: %w", c.Serial, err)
	}
	line := a.line(aki)
	switch {
	case line == nil:
		return nil, fmt.Errorf("chain of %s: %w, and its intermediate is not configured", c.Serial, ErrNoSignature)
	case len(c.Signature) > 0:
		leaf, err := guard.Assemble(c.TBS, c.Signature)
		if err != nil {
			return nil, fmt.Errorf("chain of %s: %w", c.Serial, err)
		}
		return []*x509.Certificate{leaf, line.cert}, nil
	}
	leaf, err := line.guard.Reproduce(ctx, &recording{store: a.store, stored: c})
	var replay *ReplayError
	if errors.As(err, &replay) || errors.Is(err, guard.ErrExpired) {
		return nil, fmt.Errorf("chain of %s: %w", c.Serial, ErrNoSignature)
	}
	if err != nil {
		return nil, fmt.Errorf("chain of %s: %w", c.Serial, err)
	}
	return []*x509.Certificate{leaf, line.cert}, nil
}
