package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/tokensource"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// Credential is a certificate with its key, the roots that verify its engine and
// the revocation feed that came with it. The key exists in memory only.
// Issuer.Mint makes a Credential after it has checked all parts. A Credential is
// immutable and is a mtls.Source.
type Credential struct {
	// Response is the issuer's answer.
	Response wire.IssueResponse
	// Claims is the identity in the certificate.
	Claims      identity.Identity
	TrustDomain spiffeid.TrustDomain
	// Leaf is the certificate.
	Leaf *x509.Certificate

	key   *ecdsa.PrivateKey
	cert  tls.Certificate
	chain []*x509.Certificate // verified, to the root
	roots []*x509.Certificate
	pool  *x509.CertPool
	feed  receivedFeed
}

// receivedFeed is a feed and when it arrived. The time includes the monotonic clock.
type receivedFeed struct {
	*mtls.Feed
	at time.Time
}

// Certificate implements mtls.Source.
func (c *Credential) Certificate() (*tls.Certificate, error) { return &c.cert, nil }

// Chain returns the verified chain: leaf first, root last.
func (c *Credential) Chain() []*x509.Certificate { return slices.Clone(c.chain) }

// Roots implements mtls.Source.
func (c *Credential) Roots() *x509.CertPool { return c.pool }

// RootCertificates returns the pinned trust bundle, as mtls.ParseFeed takes it.
func (c *Credential) RootCertificates() []*x509.Certificate { return slices.Clone(c.roots) }

// Feed returns the revocation feed that came with the certificate.
func (c *Credential) Feed() *mtls.Feed { return c.feed.Feed }

// Serial returns the certificate's serial number, in the API's format.
func (c *Credential) Serial() string { return c.Response.Serial }

// ChainPEM returns the certificate and its intermediate in PEM, leaf first.
func (c *Credential) ChainPEM() []byte {
	var b bytes.Buffer
	for _, der := range c.cert.Certificate {
		writePEM(&b, "CERTIFICATE", der)
	}
	return b.Bytes()
}

// TrustBundlePEM returns the roots in PEM.
func (c *Credential) TrustBundlePEM() []byte {
	var b bytes.Buffer
	for _, root := range c.roots {
		writePEM(&b, "CERTIFICATE", root.Raw)
	}
	return b.Bytes()
}

// KeyPEM returns the private key in PKCS #8 and PEM, for tools that need files.
func (c *Credential) KeyPEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		return nil, fmt.Errorf("write key: %w", err)
	}
	var b bytes.Buffer
	writePEM(&b, "PRIVATE KEY", der)
	return b.Bytes(), nil
}

func writePEM(b *bytes.Buffer, kind string, der []byte) {
	// A bytes.Buffer does not fail and the block has no headers.
	_ = pem.Encode(b, &pem.Block{Type: kind, Bytes: der})
}

// engine returns the granted engine with that name.
func (c *Credential) engine(name string) (wire.Engine, bool) {
	i := slices.IndexFunc(c.Response.Engines, func(e wire.Engine) bool { return e.Name == name })
	if i < 0 {
		return wire.Engine{}, false
	}
	return c.Response.Engines[i], true
}

// usable reports whether the certificate has enough life left for a handshake.
func (c *Credential) usable(now time.Time) bool {
	margin := min(10*time.Second, c.Response.NotAfter.Sub(c.Response.RenewAfter)/5)
	return now.Before(c.Response.NotAfter.Add(-margin))
}

// renewIn returns how long to wait before the renewal. now is the moment of
// receipt. RenewAfter is at half of the lifetime, so the wait is between a quarter
// and a half of the lifetime. A wrong local clock causes neither many renewals nor
// a late one.
func (c *Credential) renewIn(now time.Time) time.Duration {
	half := c.Response.NotAfter.Sub(c.Response.RenewAfter)
	return min(max(c.Response.RenewAfter.Sub(now), half/2), half)
}

// MintRequest has the parameters of Issuer.Mint.
type MintRequest struct {
	Source tokensource.Source
	// Audience is the token's audience; see Issuer.Info. It must begin with "mayfly:".
	Audience string
	// Engine is the one engine that the certificate is for. Empty means all of the
	// rule's engines.
	Engine string
	// OneEngine has the meaning of Config.OneEngine.
	OneEngine bool
	// Usage is the extended key usage of the certificate. The zero value means
	// clientAuth.
	Usage x509.ExtKeyUsage
	// Retry, if not nil, is called with the error of an attempt and the wait before the next.
	Retry func(err error, wait time.Duration)
}

// Mint makes this many attempts within mintTotal. The waits between them double
// from mintDelayMin to mintDelayMax; Retry-After can make them longer.
const (
	mintAttempts = 5
	mintTotal    = 120 * time.Second
	mintDelayMin = 500 * time.Millisecond
	mintDelayMax = 8 * time.Second
)

// Mint makes a key, obtains a certificate for it with a fresh token and checks
// the whole answer. It retries, each time with a fresh token, if the issuer does
// not answer or answers 429 or 5xx. If the issuer has seen the token before, it
// retries once.
//
// Its errors are those of the Issuer, *tokensource.Error, or a plain error for
// an answer that fails a check.
func (i *Issuer) Mint(ctx context.Context, r MintRequest) (*Credential, error) {
	if r.Usage == 0 {
		r.Usage = x509.ExtKeyUsageClientAuth
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	var csr bytes.Buffer
	writePEM(&csr, "CERTIFICATE REQUEST", der)
	resp, err := i.requestCertificate(ctx, r, wire.IssueRequest{CSR: csr.String(), Engine: r.Engine, OneEngine: r.OneEngine && r.Engine == ""})
	if err != nil {
		return nil, err
	}
	c, err := i.check(resp, r, key, time.Now())
	if err != nil {
		return nil, fmt.Errorf("answer of issuer %s: %w", i, err)
	}
	return c, nil
}

// requestCertificate exchanges a token for the issuer's answer, with retries.
func (i *Issuer) requestCertificate(ctx context.Context, r MintRequest, req wire.IssueRequest) (wire.IssueResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, mintTotal)
	defer cancel()
	replayed := false
	b := backoff{min: mintDelayMin, max: mintDelayMax}
	for attempt := 1; ; attempt++ {
		token, err := r.Source.Token(ctx, r.Audience)
		if err != nil {
			return wire.IssueResponse{}, err
		}
		resp, err := i.Issue(ctx, token, req)
		if err == nil {
			return resp, nil
		}
		var p *wire.Problem
		if errors.As(err, &p) && p.Name() == wire.ProblemBadRequest && req.OneEngine {
			req.OneEngine = false // an older issuer refuses the member; identify checks its answer
			continue
		}
		if attempt == mintAttempts || !shouldRetryMint(err, !replayed) {
			return wire.IssueResponse{}, err
		}
		wait := b.next()
		if p != nil {
			replayed = replayed || p.Name() == wire.ProblemReplay
			wait = max(wait, time.Duration(min(p.RetryAfter, int(mintTotal/time.Second)))*time.Second)
		}
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= wait {
			return wire.IssueResponse{}, err
		}
		if r.Retry != nil {
			r.Retry(err, wait)
		}
		if sleep(ctx, wait) != nil {
			return wire.IssueResponse{}, err
		}
	}
}

// shouldRetryMint reports whether an attempt with another token may succeed. After
// a replay it may, and shouldRetryMint returns replay.
func shouldRetryMint(err error, replay bool) bool {
	var unreachable *IssuerUnreachableError
	if errors.As(err, &unreachable) {
		return !unreachable.Final
	}
	var p *wire.Problem
	if !errors.As(err, &p) {
		return false
	}
	switch {
	case p.Status == 429, p.Status >= 500:
		return true
	case p.Name() == wire.ProblemReplay:
		return replay
	}
	return false
}

// check makes a Credential from the issuer's answer if the answer fits the request.
func (i *Issuer) check(resp wire.IssueResponse, r MintRequest, key *ecdsa.PrivateKey, now time.Time) (*Credential, error) {
	chain, err := parseCertificates([]byte(resp.Certificate), 4)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	bundle, err := parseCertificates([]byte(resp.TrustBundle), maxRoots)
	if err != nil {
		return nil, fmt.Errorf("trust bundle: %w", err)
	}
	c := &Credential{Response: resp, Leaf: chain[0], key: key, pool: x509.NewCertPool()}
	if c.roots, err = i.Pin(bundle); err != nil {
		return nil, err
	}
	for _, root := range c.roots {
		c.pool.AddCert(root)
	}
	if c.chain, err = c.verify(chain[1:], r.Usage, now); err != nil {
		return nil, err
	}
	if err := c.identify(r); err != nil {
		return nil, err
	}
	feed, err := mtls.ParseFeed([]byte(resp.CRL), c.roots)
	if err != nil {
		return nil, err
	}
	if err := feed.CheckChain(c.chain, now); err != nil {
		return nil, fmt.Errorf("our own certificate: %w", err)
	}
	c.feed = receivedFeed{feed, now}
	c.cert = tls.Certificate{PrivateKey: key, Leaf: c.Leaf}
	for _, cert := range c.chain[:len(c.chain)-1] {
		c.cert.Certificate = append(c.cert.Certificate, cert.Raw)
	}
	return c, nil
}

// verify checks chain, usage, key and times, and returns the chain to the root.
func (c *Credential) verify(rest []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) ([]*x509.Certificate, error) {
	intermediates := x509.NewCertPool()
	for _, cert := range rest {
		intermediates.AddCert(cert)
	}
	chains, err := c.Leaf.Verify(x509.VerifyOptions{
		Roots: c.pool, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		var invalid x509.CertificateInvalidError
		if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
			return nil, hinted("set this machine's clock (NTP)", fmt.Errorf("the new certificate is valid from %s to %s, and this machine's clock says %s",
				stamp(c.Leaf.NotBefore), stamp(c.Leaf.NotAfter), stamp(now)))
		}
		if err := c.otherUse(usage); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("the new certificate is not of the trust bundle that came with it: %w", err)
	}
	resp := c.Response
	switch {
	case len(c.Leaf.ExtKeyUsage) != 1 || c.Leaf.ExtKeyUsage[0] != usage:
		return nil, cmp.Or(c.otherUse(usage), errors.New("certificate is for another use"))
	case !c.key.PublicKey.Equal(c.Leaf.PublicKey):
		return nil, errors.New("certificate is for another key")
	case resp.Serial != mtls.Serial(c.Leaf.SerialNumber):
		return nil, errors.New("serial is not the certificate's")
	case !resp.NotBefore.Equal(c.Leaf.NotBefore) || !resp.NotAfter.Equal(c.Leaf.NotAfter):
		return nil, errors.New("times are not the certificate's")
	case !resp.RenewAfter.After(resp.NotBefore) || !resp.RenewAfter.Before(resp.NotAfter):
		return nil, errors.New("renew_after is outside of the certificate's lifetime")
	}
	return chains[0], nil
}

// otherUse returns an error for a certificate of the other profile: the policy's
// rule grants a server profile to a client, or the reverse. For any other
// certificate it returns nil.
func (c *Credential) otherUse(want x509.ExtKeyUsage) error {
	const client, server = x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth
	switch rule := printable(c.Response.Rule); {
	case want == server && slices.Contains(c.Leaf.ExtKeyUsage, client):
		return hinted("in the issuer's policy, give this engine a rule whose grant has profile: server",
			fmt.Errorf("rule %s of the policy admits this engine as a client, which gets no server certificate", rule))
	case want == client && slices.Contains(c.Leaf.ExtKeyUsage, server):
		return hinted("in the issuer's policy, give this job a rule whose grant has profile: client",
			fmt.Errorf("rule %s of the policy admits this job as an engine, which gets no client certificate", rule))
	}
	return nil
}

// identify reads the identity in the certificate. It compares the identity with
// the answer, with the trust domain in the audience, and with the request.
func (c *Credential) identify(r MintRequest) error {
	if len(c.Leaf.URIs) != 1 {
		return errors.New("certificate has not one SPIFFE ID")
	}
	id, err := spiffeid.FromURI(c.Leaf.URIs[0])
	if err != nil {
		return fmt.Errorf("certificate's SPIFFE ID: %w", err)
	}
	td := id.TrustDomain()
	if want := strings.TrimPrefix(r.Audience, tokensource.AudiencePrefix); td.Name() != want {
		return fmt.Errorf("certificate is of trust domain %s, and the token was for %s", td.Name(), r.Audience)
	}
	c.TrustDomain = td
	if c.Claims, err = identity.FromCertificate(c.Leaf, td); err != nil {
		return fmt.Errorf("certificate's identity: %w", err)
	}
	if c.Response.Identity != c.Claims.ID.String() {
		return errors.New("identity is not the certificate's")
	}
	for _, e := range c.Response.Engines {
		if !slices.Contains(c.Claims.Grant.Engines, e.Name) {
			return fmt.Errorf("engine %q is not in the certificate", e.Name)
		}
	}
	if _, ok := c.engine(r.Engine); r.Engine != "" && !ok {
		return fmt.Errorf("the certificate is not for engine %q", r.Engine)
	}
	if n := len(c.Response.Engines); r.OneEngine && n != 1 {
		return fmt.Errorf("the certificate is for %d engines, and one was wanted", n)
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
