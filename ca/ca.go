// Package ca is mayfly's certificate authority: an offline root, a constrained
// intermediate whose key only ca/internal/guard holds, and the durable store of
// issued and revoked certificates.
//
// Init makes an authority on the operator's machine; Open runs it. Issue takes a
// Grant, which only policy makes, and a certificate request, of which only the
// public key is used. Nothing is signed before its record is durable. Revoke
// returns when a committed CRL holds the revocation.
//
// It imports ca/grant, ca/internal/guard, ca/store, ca/internal/keys and
// ca/internal/sqlstore. It imports nothing for tokens or HTTP.
package ca

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/singleflight"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// ExpiryWarning is how long before the end of a CA certificate or of the root's CRL
// mayfly warns the operator.
const ExpiryWarning = 60 * 24 * time.Hour

// Previous is an intermediate that no longer issues. It still signs CRLs for the
// leaves that it issued.
type Previous struct {
	Certificate []byte // PEM
	Key         string // same form as Config.Key
}

// Config is what Open needs.
type Config struct {
	Root         []byte // PEM, the root's certificate
	RootCRL      []byte // PEM, the root's CRL over the intermediates
	Intermediate []byte // PEM, the certificate of the intermediate that issues
	// Key is the intermediate's private key: the path of a PEM file, env:NAME,
	// or a go.step.sm/crypto KMS URI.
	Key      string
	Previous []Previous
	// Store belongs to the caller: Close does not close it.
	Store store.Store
	// PublicURL is the URL of the issuer. Leaves name PublicURL + "/v1/crl/" + the
	// intermediate's key id as their CRL.
	PublicURL string
	Logger    *slog.Logger // nil: no log
}

// Authority issues and revokes. It is safe for concurrent use.
type Authority struct {
	root        *x509.Certificate
	rootCRL     *x509.RevocationList
	constraints Constraints
	current     *intermediate
	// issuers are all intermediates that sign CRLs, current first.
	issuers []*intermediate
	store   store.Store
	log     *slog.Logger

	crls   atomic.Pointer[CRLs]
	flight singleflight.Group
}

// Open opens an authority from the files of Init and rotation. It refuses a key
// that is not the certificate's, a chain that does not verify, an intermediate that
// the root's CRL lists, an expired root CRL, and a store of another root or trust
// domain. It raises GOMAXPROCS to 2: with a single P, the store's committer gets
// too little time.
func Open(ctx context.Context, c Config) (_ *Authority, err error) {
	if c.Store == nil {
		return nil, errors.New("open authority: no store")
	}
	if runtime.GOMAXPROCS(0) < 2 {
		runtime.GOMAXPROCS(2)
	}
	a := &Authority{store: c.Store, log: c.Logger}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()
	if err := a.openRoot(c.Root, c.RootCRL); err != nil {
		return nil, err
	}
	base, err := crlBase(c.PublicURL)
	if err != nil {
		return nil, err
	}
	if err := a.openCurrent(ctx, c, base); err != nil {
		return nil, err
	}
	if err := a.openPrevious(ctx, c.Previous, base); err != nil {
		return nil, err
	}
	m := a.store.Meta()
	if m.RootFingerprint != Fingerprint(a.root) || m.TrustDomain != a.constraints.TrustDomain.Name() {
		return nil, store.ErrOtherRoot
	}
	return a, nil
}

func (a *Authority) openRoot(certPEM, crlPEM []byte) error {
	root, err := parseCertificate(certPEM)
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if err := checkRoot(root); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	a.root = root
	if a.rootCRL, err = parseRootCRL(crlPEM, root); err != nil {
		return err
	}
	if time.Now().After(a.rootCRL.NextUpdate) {
		return fmt.Errorf("root CRL: it ended at %s: sign another with mayfly-issuer rotate sign", a.rootCRL.NextUpdate.UTC().Format(time.RFC3339))
	}
	return nil
}

func (a *Authority) openCurrent(ctx context.Context, c Config, base string) error {
	cert, err := parseCertificate(c.Intermediate)
	if err != nil {
		return fmt.Errorf("intermediate: %w", err)
	}
	if a.constraints, err = checkIntermediate(cert, a.root); err != nil {
		return fmt.Errorf("intermediate: %w", err)
	}
	if revokedBy(a.rootCRL, cert) {
		return errors.New("intermediate: the root's CRL names it as compromised: install another with mayfly-issuer rotate")
	}
	if now := time.Now(); !now.Before(cert.NotAfter) || now.Before(cert.NotBefore) {
		return fmt.Errorf("intermediate: it is valid from %s to %s: rotate it, or set this machine's clock", cert.NotBefore.UTC().Format(time.RFC3339), cert.NotAfter.UTC().Format(time.RFC3339))
	}
	a.current, err = openIntermediate(ctx, cert, c.Key, a.constraints.TrustDomain, base)
	if err != nil {
		return fmt.Errorf("intermediate: %w", err)
	}
	a.issuers = []*intermediate{a.current}
	return nil
}

func (a *Authority) openPrevious(ctx context.Context, previous []Previous, base string) error {
	for i, p := range previous {
		cert, err := parseCertificate(p.Certificate)
		if err != nil {
			return fmt.Errorf("previous intermediate %d: %w", i+1, err)
		}
		constraints, err := checkIntermediate(cert, a.root)
		if err != nil {
			return fmt.Errorf("previous intermediate %d: %w", i+1, err)
		}
		if constraints.TrustDomain != a.constraints.TrustDomain {
			return fmt.Errorf("previous intermediate %d: it is of trust domain %s", i+1, constraints.TrustDomain.Name())
		}
		if a.issuerFor(cert.SubjectKeyId) != nil {
			return fmt.Errorf("previous intermediate %d: configured twice", i+1)
		}
		switch {
		case revokedBy(a.rootCRL, cert):
			a.log.WarnContext(ctx, "previous intermediate is compromised and left out", "aki", hex.EncodeToString(cert.SubjectKeyId))
			continue
		case time.Now().After(cert.NotAfter.Add(entryLife)):
			a.log.WarnContext(ctx, "previous intermediate is at its end and left out", "aki", hex.EncodeToString(cert.SubjectKeyId))
			continue
		}
		line, err := openIntermediate(ctx, cert, p.Key, a.constraints.TrustDomain, base)
		if err != nil {
			return fmt.Errorf("previous intermediate %d: %w", i+1, err)
		}
		a.issuers = append(a.issuers, line)
	}
	return nil
}

// issuerFor returns the intermediate with this subject key id, or nil.
func (a *Authority) issuerFor(keyID []byte) *intermediate {
	for _, l := range a.issuers {
		if bytes.Equal(l.cert.SubjectKeyId, keyID) {
			return l
		}
	}
	return nil
}

// Close releases the keys. It does not close the store.
func (a *Authority) Close() error {
	var errs []error
	for _, l := range a.issuers {
		errs = append(errs, l.key.Close())
	}
	return errors.Join(errs...)
}

// TrustDomain returns the SPIFFE trust domain of every leaf.
func (a *Authority) TrustDomain() spiffeid.TrustDomain { return a.constraints.TrustDomain }

// Constraints returns the current intermediate's name constraints.
func (a *Authority) Constraints() Constraints {
	c := a.constraints
	c.DNS = slices.Clone(c.DNS)
	return c
}

// Root returns the trust anchor. Callers must not change it.
func (a *Authority) Root() *x509.Certificate { return a.root }

// TrustBundle returns the roots that verifiers trust.
func (a *Authority) TrustBundle() []*x509.Certificate { return []*x509.Certificate{a.root} }

// Intermediates returns the intermediates whose leaves still verify, the issuing
// one first.
func (a *Authority) Intermediates() []*x509.Certificate {
	certs := make([]*x509.Certificate, len(a.issuers))
	for i, l := range a.issuers {
		certs[i] = l.cert
	}
	return certs
}

// Store returns the authority's store, for lists, events, sessions and logins.
func (a *Authority) Store() store.Store { return a.store }

// Expiry is an end date before which the operator must act.
type Expiry struct {
	What     string // "root", "intermediate", "root CRL"
	NotAfter time.Time
}

// Expiries lists the end dates of everything that only an operator can renew.
func (a *Authority) Expiries() []Expiry {
	return []Expiry{
		{"root", a.root.NotAfter},
		{"intermediate", a.current.cert.NotAfter},
		{"root CRL", a.rootCRL.NextUpdate},
	}
}

// Ready returns an error unless the authority can issue and publish: the store can
// be written, the CRL is fresh, and no CA certificate or root CRL has expired.
func (a *Authority) Ready(ctx context.Context) error {
	if err := a.store.Ping(ctx); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	now := time.Now()
	for _, e := range a.Expiries() {
		if !now.Before(e.NotAfter) {
			return fmt.Errorf("%s ended at %s", e.What, e.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	_, err := a.CRLs(ctx)
	return err
}

// Fingerprint returns the lower-case hex SHA-256 of a certificate's DER. A store
// names its root by it, and a client pins it.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// crlBase returns the URL prefix of the intermediates' CRLs.
func crlBase(publicURL string) (string, error) {
	u, err := url.Parse(publicURL)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("public URL %q is not an http(s) URL", publicURL)
	}
	return strings.TrimSuffix(publicURL, "/") + "/v1/crl/", nil
}
