package ca_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/catest"
	"github.com/mayfly-ca/mayfly/ca/grant"
	"github.com/mayfly-ca/mayfly/ca/store"
)

// A writer in the database gets no signature. No read, no revocation and no retry
// signs rows written by hand, even with a good token's name on them. A row that the
// authority wrote is signed for the same token and key.
func TestForgedRowsAreNotSigned(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(*testing.T, *catest.CA) database{"sqlite": sqliteDatabase, "postgres": postgresDatabase} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := catest.New(t, catest.Options{})
			d := open(t, c)
			a, signed := countingAuthority(t, c, d)
			t.Run("a recorded row", func(t *testing.T) {
				key, g := catest.Key(t), catest.Grant(t, catest.ClientParams(t, "default"))
				for n := range 2 {
					issued, err := a.Issue(t.Context(), g, catest.CSR(t, key))
					if err != nil || signed.countOf(issued.Certificate.RawTBSCertificate) != n+1 {
						t.Fatalf("issuance %d: %v", n+1, err)
					}
				}
			})
			t.Run("a row by hand of what the token's grant gives", func(t *testing.T) {
				key, p := catest.Key(t), catest.ClientParams(t, "default")
				tbs, number := forgeRow(t, a, d, key, p, func(*x509.Certificate, *grant.Params) {})
				issued, err := a.Issue(t.Context(), catest.Grant(t, p), catest.CSR(t, key))
				if err != nil || issued.Record.Serial != number || signed.countOf(tbs) != 1 {
					t.Errorf("%v, %v", issued, err)
				}
			})
			for name, forge := range map[string]func(leaf *x509.Certificate, p *grant.Params){
				"a client certificate that begins in 200 days": func(leaf *x509.Certificate, _ *grant.Params) {
					leaf.NotBefore, leaf.NotAfter = leaf.NotBefore.AddDate(0, 0, 200), leaf.NotAfter.AddDate(0, 0, 200)
				},
				"a server certificate": func(leaf *x509.Certificate, p *grant.Params) {
					*p = catest.ServerParams(t, "default")
				},
				"another client's certificate": func(_ *x509.Certificate, p *grant.Params) {
					p.Identity.Grant.Engines = []string{"default", "large"}
				},
				"a CA certificate": func(leaf *x509.Certificate, _ *grant.Params) {
					leaf.IsCA, leaf.KeyUsage = true, x509.KeyUsageCertSign
				},
				"a certificate with a serial number that is too short": func(leaf *x509.Certificate, _ *grant.Params) {
					leaf.SerialNumber = big.NewInt(7)
				},
			} {
				t.Run(name, func(t *testing.T) {
					key, p := catest.Key(t), catest.ClientParams(t, "default")
					g := catest.Grant(t, p)
					tbs, number := forgeRow(t, a, d, key, p, forge)

					stored, err := a.Store().Certificate(t.Context(), number)
					if err != nil || !bytes.Equal(stored.TBS, tbs) {
						t.Fatalf("the row does not read: %v", err)
					}
					if chain := a.Chain(stored); chain != nil {
						t.Errorf("read: %v", chain)
					}
					var replay *store.ReplayError
					if issued, err := a.Issue(t.Context(), g, catest.CSR(t, key)); !errors.As(err, &replay) || replay.Serial != number {
						t.Errorf("retry: %v, %v", issued, err)
					}
					revoke(t, a, store.Revocation{Serial: number, DryRun: true})
					revoke(t, a, store.Revocation{Serial: number})
					revoke(t, a, store.Revocation{Match: store.Match{RunID: "forged"}})
					if issued, err := a.Issue(t.Context(), g, catest.CSR(t, key)); !errors.As(err, &replay) {
						t.Errorf("retry, revoked: %v, %v", issued, err)
					}
					if stored, err = a.Store().Certificate(t.Context(), number); err != nil || len(stored.Signature) > 0 || a.Chain(stored) != nil {
						t.Errorf("read, revoked: %v", err)
					}
					_, _ = a.Verify(t.Context()) // the result does not matter here
					if n := signed.countOf(tbs); n != 0 {
						t.Errorf("signed %d times", n)
					}
				})
			}
		})
	}
}

// forgeRow writes a row for a certificate that a has not issued, as a writer in its
// database could: with the token of p, for key. It returns the to-be-signed bytes
// and the serial.
func forgeRow(t *testing.T, a *ca.Authority, d database, key *ecdsa.PrivateKey, p grant.Params, forge func(*x509.Certificate, *grant.Params)) ([]byte, string) {
	t.Helper()
	intermediate := *a.Intermediates()[0]
	intermediate.PublicKey = nil // otherwise CreateCertificate needs its key
	now := time.Now().UTC().Truncate(time.Second)
	serial := make([]byte, grant.SerialBytes)
	_, _ = rand.Read(serial)
	serial[0] |= 1
	aki := fmt.Sprintf("%x", intermediate.SubjectKeyId)
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	keyID := sha256.Sum256(point)
	leaf := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), NotBefore: now.Add(-grant.Backdate), NotAfter: now.Add(p.TTL),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true, SubjectKeyId: keyID[:20],
		CRLDistributionPoints: []string{catest.PublicURL + "/v1/crl/" + aki},
	}
	forged := p
	forge(leaf, &forged)
	usage, err := forged.Profile.ExtKeyUsage()
	if err != nil {
		t.Fatal(err)
	}
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{usage}
	if err := forged.Embed(leaf); err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, &intermediate, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	spki := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	number := fmt.Sprintf("%032x", leaf.SerialNumber)
	if _, err := a.Store().Record(t.Context(), &store.Certificate{
		Serial: number, Profile: string(forged.Profile), Provider: p.Provider, Identity: forged.Identity.ID.String(), Rule: "forged",
		Engines: forged.Identity.Grant.Engines, Repository: "example-org/app", RepositoryID: "1", RunID: "forged",
		TokenIssuer: p.Token.Issuer, TokenID: p.Token.ID, SingleUse: true, TokenIAT: p.Token.IssuedAt, SPKI: spki[:], AKI: aki,
		Claims: p.Claims, TBS: cert.RawTBSCertificate, NotBefore: now.Add(-grant.Backdate), NotAfter: now.Add(p.TTL), IssuedAt: now,
	}, store.Event{}); err != nil {
		t.Fatal(err)
	}
	row := "x'" + number + "'"
	if ca.IsPostgres(d.dsn) {
		row = `'\\x` + number + "'"
	}
	d.exec(t, fmt.Sprintf("UPDATE certificates SET not_before = %d, not_after = %d WHERE serial = %s", cert.NotBefore.UnixMicro(), cert.NotAfter.UnixMicro(), row))
	return cert.RawTBSCertificate, number
}
