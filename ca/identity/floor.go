package identity

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
)

// FloorExtension returns the CRL extension that carries the revocation floor, in
// whole seconds. Verifiers refuse every certificate issued before the floor, listed
// or not.
func FloorExtension(floor time.Time) (pkix.Extension, error) {
	var b cryptobyte.Builder
	b.AddASN1GeneralizedTime(floor.UTC().Truncate(time.Second))
	value, err := b.Bytes()
	if err != nil {
		return pkix.Extension{}, fmt.Errorf("floor extension: %w", err)
	}
	return pkix.Extension{Id: OIDFloor, Value: value}, nil
}

// Floor reads the revocation floor of a CRL. It refuses a list without a floor, or
// with two: mayfly makes no such list.
func Floor(list *x509.RevocationList) (time.Time, error) {
	var floor time.Time
	found := false
	for _, e := range list.Extensions {
		if !e.Id.Equal(OIDFloor) {
			continue
		}
		in := cryptobyte.String(e.Value)
		if found || e.Critical || !in.ReadASN1GeneralizedTime(&floor) || !in.Empty() {
			return time.Time{}, errors.New("malformed floor extension")
		}
		found = true
	}
	if !found {
		return time.Time{}, errors.New("no floor extension")
	}
	return floor, nil
}

// BeforeFloor reports whether cert was issued before floor.
func BeforeFloor(cert *x509.Certificate, floor time.Time) bool {
	return IssuedAt(cert).Before(floor)
}

// IssuedAt returns when a leaf was issued: one minute after its NotBefore. A floor
// is compared with this time.
func IssuedAt(cert *x509.Certificate) time.Time {
	return cert.NotBefore.Add(issuedAfterNotBefore)
}

// issuedAfterNotBefore equals grant.Backdate. This package cannot import ca/grant.
const issuedAfterNotBefore = 60 * time.Second
