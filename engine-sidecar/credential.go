package sidecar

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mayfly-ca/mayfly/client"
	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/tokensource"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/revocation"
)

// Waits between attempts to get a certificate, in addition to those of
// Issuer.Mint.
const (
	mintRetryMin = 500 * time.Millisecond
	mintRetryMax = 30 * time.Second
)

// ownCertificate holds the sidecar's certificate, or none yet. It is an
// mtls.Source. Only it holds the keys.
type ownCertificate struct {
	now atomic.Pointer[client.Credential]
}

// Certificate implements mtls.Source.
func (o *ownCertificate) Certificate() (*tls.Certificate, error) {
	c := o.now.Load()
	if c == nil {
		return nil, errors.New("no certificate yet")
	}
	return c.Certificate()
}

// Roots implements mtls.Source.
func (o *ownCertificate) Roots() *x509.CertPool {
	c := o.now.Load()
	if c == nil {
		return nil
	}
	return c.Roots()
}

func (o *ownCertificate) rootCertificates() []*x509.Certificate {
	c := o.now.Load()
	if c == nil {
		return nil
	}
	return c.RootCertificates()
}

// renewIn returns the time until the renewal of c. It renews at half life by
// the certificate's times, but between a quarter and a half of its life from
// now. So a wrong clock causes neither a storm of renewals nor a late one.
func renewIn(c *client.Credential, now time.Time) time.Duration {
	half := c.Response.NotAfter.Sub(c.Response.RenewAfter)
	return min(max(c.Response.RenewAfter.Sub(now), half/2), half)
}

// tokenSource returns the configured token source, with its Fly socket.
func (c *Config) tokenSource() (tokensource.Source, error) {
	if c.FlyAPISocket != "" && (c.TokenSource == "fly" || c.TokenSource == "auto") {
		return tokensource.FlyMachine(c.FlyAPISocket), nil
	}
	return tokensource.Parse(c.TokenSource)
}

// audience returns the tokens' audience: the configured one, or the one that
// the issuer names. The latter must have the required form.
func (s *sidecar) audience(ctx context.Context) (string, error) {
	if a := s.knownAudience.Load(); a != nil {
		return *a, nil
	}
	info, err := s.issuer.Info(ctx)
	if err != nil {
		return "", err
	}
	if info.Audience != tokensource.AudiencePrefix+info.TrustDomain {
		return "", fmt.Errorf("issuer %s names audience %q for trust domain %q", s.issuer, info.Audience, info.TrustDomain)
	}
	s.knownAudience.Store(&info.Audience)
	return info.Audience, nil
}

// mint requests a certificate until it gets one or ctx ends. It logs the error
// before each wait.
func (s *sidecar) mint(ctx context.Context) (*client.Credential, error) {
	wait := mintRetryMin
	for {
		c, err := s.mintOnce(ctx)
		if err == nil {
			s.metrics.renewals.WithLabelValues("ok").Inc()
			s.log.Info("certificate received", "serial", c.Serial(), "identity", c.Response.Identity,
				"rule", c.Response.Rule, "not_after", c.Response.NotAfter.UTC())
			return c, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		s.mintError.Store(&err)
		s.metrics.renewals.WithLabelValues("failed").Inc()
		pause := wait/2 + rand.N(wait)
		s.log.Error("no certificate", append(ErrorAttrs(err), "again_in", pause.Round(time.Millisecond))...)
		wait = min(2*wait, mintRetryMax)
		if !sleep(ctx, pause) {
			return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

func (s *sidecar) mintOnce(ctx context.Context) (*client.Credential, error) {
	audience, err := s.audience(ctx)
	if err != nil {
		return nil, err
	}
	c, err := s.issuer.Mint(ctx, client.MintRequest{
		Source: s.source, Audience: audience, Engine: s.cfg.Engine, Usage: x509.ExtKeyUsageServerAuth,
		Retry: func(err error, wait time.Duration) {
			s.mintError.Store(&err)
			s.metrics.renewals.WithLabelValues("failed").Inc()
			s.log.Warn("no certificate yet", append(ErrorAttrs(err), "again_in", wait.Round(time.Millisecond))...)
		},
	})
	if err != nil {
		return nil, err
	}
	if err := s.checkOwn(c); err != nil {
		return nil, fmt.Errorf("answer of issuer %s: %w", s.issuer, err)
	}
	return c, nil
}

// ErrorAttrs returns the log attributes of an error and of its hint, if there
// is one.
func ErrorAttrs(err error) []any {
	hint := client.Hint(err)
	var p *wire.Problem
	if hint == "" && errors.As(err, &p) {
		hint = problemHint(p)
	}
	if hint == "" {
		return []any{"error", err}
	}
	return []any{"error", strings.TrimSuffix(err.Error(), "\n"+hint), "hint", hint}
}

// problemHint returns a hint for an error response of the issuer, or "" when
// the response's text already says it.
func problemHint(p *wire.Problem) string {
	switch p.Name() {
	case wire.ProblemDenied:
		switch {
		case p.Claim == "engine" && p.Rule != "":
			return "correct engine, or add this engine to the engines of rule " + p.Rule + " in the issuer's policy file (policy.yaml)"
		case p.Claim != "" && p.Rule != "":
			return "if this machine is meant, write its " + p.Claim + " into the match of rule " + p.Rule + " in the issuer's policy file (policy.yaml)"
		}
		return "add a rule with profile: server for this machine to the issuer's policy file (policy.yaml)"
	case wire.ProblemBadToken:
		if strings.Contains(p.Detail, "made for audience") {
			return "leave audience out, for the issuer names its own; token_source must give tokens for that one"
		}
		return "correct token_source: the issuer does not take its token"
	case wire.ProblemReplay:
		return "correct token_source: it must give another token for each certificate"
	case wire.ProblemBlocked:
		return "ask an admin, who revoked this engine: `mayfly blocks remove` ends the block"
	case "":
		switch {
		case p.WantsTLS():
			return "write https:// in issuer"
		case p.Status == http.StatusTooManyRequests || p.Status >= http.StatusInternalServerError:
			return ""
		}
		return "correct issuer: its host or its port"
	}
	return ""
}

// checkOwn checks a new certificate as clients will, so that a wrong policy
// shows here and not at the first client.
func (s *sidecar) checkOwn(c *client.Credential) error {
	prefix := "/engine/" + s.cfg.Engine + "/"
	switch {
	case !strings.HasPrefix(c.Claims.ID.Path(), prefix):
		return fmt.Errorf("identity %s is not below %s", c.Claims.ID, prefix)
	case s.trustDomain != "" && c.TrustDomain.Name() != s.trustDomain:
		return fmt.Errorf("trust domain is now %s, was %s", c.TrustDomain, s.trustDomain)
	case s.checker.Revoked(revocation.CertificateOf(c.Chain())):
		return mtls.ErrRevoked
	}
	return nil
}

// keepCertificate renews the certificate at half life, and at once when it is
// revoked, until ctx ends.
func (s *sidecar) keepCertificate(ctx context.Context) {
	for {
		timer := time.NewTimer(renewIn(s.own.now.Load(), time.Now()))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-s.renewNow:
			timer.Stop()
		}
		c, err := s.mint(ctx)
		if err != nil {
			return // only when ctx has ended
		}
		s.adopt(c)
	}
}

// adopt makes c the certificate of new handshakes. Relays are not affected.
func (s *sidecar) adopt(c *client.Credential) {
	s.own.now.Store(c)
	s.offer([]byte(c.Response.CRL))
	wake(s.changed)
}

// offer passes a feed that came with a certificate to the checker.
func (s *sidecar) offer(feed []byte) {
	if _, err := s.checker.Update(feed); err != nil {
		// Mint has parsed the same bytes, so only a root that changed in between
		// explains this.
		s.log.Warn("revocation list of the certificate not taken", "error", err)
	}
}

// sleep waits for d and reports whether ctx has not ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// sessionsAudience returns the audience of tokens for session reports.
func sessionsAudience(audience string) string { return audience + ":sessions" }
