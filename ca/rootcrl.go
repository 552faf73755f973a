package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/mayfly-ca/mayfly/ca/internal/keys"
)

// reasonCACompromise is the CRL reason of a compromised intermediate (RFC 5280
// 5.3.1).
const reasonCACompromise = 2

// parseRootCRL parses and verifies the root's CRL over the intermediates.
func parseRootCRL(data []byte, root *x509.Certificate) (*x509.RevocationList, error) {
	der, err := onePEM(data, blockCRL)
	if err != nil {
		return nil, fmt.Errorf("root CRL: %w", err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("root CRL: %w", err)
	}
	if !bytes.Equal(list.RawIssuer, root.RawSubject) {
		return nil, errors.New("root CRL: of another root")
	}
	if err := list.CheckSignatureFrom(root); err != nil {
		return nil, fmt.Errorf("root CRL: of another root: %w", err)
	}
	if list.Number == nil || list.NextUpdate.IsZero() {
		return nil, errors.New("root CRL: no number or no nextUpdate")
	}
	return list, nil
}

// signRootCRL signs the list of compromised intermediates with the root's key,
// valid until nextUpdate. The list keeps every entry of previous and has a higher
// number.
func signRootCRL(ctx context.Context, root *x509.Certificate, key crypto.Signer, previous *x509.RevocationList, compromised []*big.Int, now, nextUpdate time.Time) ([]byte, error) {
	now = now.UTC().Truncate(time.Second)
	list := &x509.RevocationList{Number: big.NewInt(now.UnixMilli()), ThisUpdate: now, NextUpdate: nextUpdate}
	if previous != nil {
		if list.Number.Cmp(previous.Number) <= 0 {
			list.Number.Add(previous.Number, big.NewInt(1))
		}
		for _, e := range previous.RevokedCertificateEntries {
			list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
				x509.RevocationListEntry{SerialNumber: e.SerialNumber, RevocationTime: e.RevocationTime, ReasonCode: e.ReasonCode})
		}
	}
	for _, serial := range compromised {
		if lists(list, serial) {
			continue
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: serial, RevocationTime: now, ReasonCode: reasonCACompromise})
	}
	der, err := keys.CRL(ctx, list, root, key)
	if err != nil {
		return nil, fmt.Errorf("root CRL: %w", err)
	}
	return encodePEM(blockCRL, der), nil
}
