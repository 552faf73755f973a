// Package client gives a CI job mutually authenticated connections to a build
// engine, with no stored secret. It exchanges the job's OIDC token for a
// certificate that is valid for an hour, renews it while the job runs, and dials
// the engine's sidecar with it.
//
// New obtains the first certificate. DialContext returns a connection that
// carries only the engine's bytes. Proxy relays each connection that a listener
// accepts, for tools that take an address and no certificate. TLSConfig is for
// programs that dial by themselves.
//
// The package and its subpackages import only the standard library, go-spiffe's
// spiffeid and ca/identity, so that a pipeline that imports them gets few
// dependencies. Keys stay in memory. The package logs no key and no token.
package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/tokensource"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// DefaultWakeTimeout is how long a dial waits for an engine whose machine is
// asleep. It applies when Config.WakeTimeout is 0.
const DefaultWakeTimeout = 3 * time.Minute

// Config is what a Client needs. Only Issuer must be set.
type Config struct {
	// Issuer is the issuer's URL: https, or http on loopback.
	Issuer string
	// CAFile is a PEM file with the roots for the issuer's TLS certificate. Empty
	// means the system's roots.
	CAFile string
	// TrustAnchor pins mayfly's root: "sha256:" and the hex SHA-256 of its DER.
	// Empty trusts the trust bundle that the issuer sends.
	TrustAnchor string
	// Audience of the tokens, "mayfly:<trust domain>". Empty asks the issuer.
	Audience string
	// Source provides the tokens; nil means tokensource.Parse("auto").
	Source tokensource.Source
	// Engine is the one engine that the certificate is for. Empty means all
	// engines that the policy's rule grants.
	Engine string
	// OneEngine, with an empty Engine, requests a certificate for one engine. If
	// the rule grants several, the issuer issues nothing and the error is a
	// *wire.Problem several-engines, which names them.
	OneEngine bool
	// WakeTimeout bounds how long a dial waits for an engine that does not
	// answer. 0 means DefaultWakeTimeout.
	WakeTimeout time.Duration
	// Logger receives background events; nil discards them.
	Logger *slog.Logger
	// Progress is called for each Event, from any goroutine. It must not block.
	Progress func(Event)
	// Dial makes the TCP connections to the issuer and to engines. Nil means a
	// net.Dialer.
	Dial DialFunc
	// EdgeRoots verify the outer TLS of edge:// endpoints. Nil means the system's
	// roots.
	EdgeRoots *x509.CertPool
}

// Client holds one certificate at a time and renews it at half its lifetime
// until Close. It is safe for concurrent use.
type Client struct {
	cfg      Config
	issuer   *Issuer
	audience string
	log      *slog.Logger

	cred atomic.Pointer[Credential]
	feed atomic.Pointer[receivedFeed]
	// minting and fetching are locks: each lets one goroutine in, and a goroutine
	// can wait for it with a context.
	minting, fetching chan struct{}
	// renewal is the error of the last renewal; nil if it succeeded.
	renewal atomic.Pointer[renewalError]
	stats   counters

	mu      sync.Mutex
	closed  bool
	started int                        // counts goroutines, to name them in stop
	stop    map[int]context.CancelFunc // of running goroutines, for Close
	tethers map[string]*engineRelays   // by engine
	wg      sync.WaitGroup
}

type renewalError struct{ err error }

// ErrClosed is the error of methods that are called after Close.
var ErrClosed = errors.New("client is closed")

// New obtains the first certificate and starts its renewal. Its errors are those
// of Issuer.Mint.
func New(ctx context.Context, cfg Config) (*Client, error) {
	issuer, err := newIssuer(cfg.Issuer, cfg.CAFile, cfg.TrustAnchor, cfg.Dial)
	if err != nil {
		return nil, err
	}
	if cfg.Source == nil {
		if cfg.Source, err = tokensource.Parse("auto"); err != nil {
			return nil, err
		}
	}
	if cfg.WakeTimeout <= 0 {
		cfg.WakeTimeout = DefaultWakeTimeout
	}
	c := &Client{
		cfg: cfg, issuer: issuer, audience: cfg.Audience, log: cfg.Logger,
		minting: make(chan struct{}, 1), fetching: make(chan struct{}, 1),
		stop: map[int]context.CancelFunc{}, tethers: map[string]*engineRelays{},
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.audience, err = c.resolveAudience(ctx); err != nil {
		issuer.CloseIdleConnections()
		return nil, err
	}
	cred, err := c.mint(ctx)
	if err != nil {
		issuer.CloseIdleConnections()
		return nil, err
	}
	c.event(Event{Kind: EventMinted, Serial: cred.Serial(), NotAfter: cred.Response.NotAfter})
	c.start(c.renewLoop)
	return c, nil
}

// resolveAudience returns the configured audience, or the issuer's. The audience
// must be one of mayfly's, because the runner issues a token for any service.
func (c *Client) resolveAudience(ctx context.Context) (string, error) {
	if c.cfg.Audience != "" {
		if err := tokensource.CheckAudience(c.cfg.Audience); err != nil {
			return "", err
		}
		return c.cfg.Audience, nil
	}
	info, err := c.issuerInfo(ctx)
	if err != nil {
		return "", err
	}
	if info.Audience != tokensource.AudiencePrefix+info.TrustDomain || info.TrustDomain == "" {
		return "", hinted("correct the issuer's URL: a mayfly issuer asks for no other audience",
			fmt.Errorf("issuer %s asks for tokens with audience %.80q, which is not %q and its trust domain: refused", c.issuer, printable(info.Audience), tokensource.AudiencePrefix))
	}
	return info.Audience, nil
}

// issuerInfo gets the issuer's info, with retries, because the issuer's machine
// may be asleep. New calls it at most once.
func (c *Client) issuerInfo(ctx context.Context) (wire.Info, error) {
	b := backoff{min: mintDelayMin, max: mintDelayMax}
	for attempt := 1; ; attempt++ {
		info, err := c.issuer.Info(ctx)
		if err == nil || attempt == mintAttempts || !shouldRetryMint(err, false) {
			return info, err
		}
		if sleep(ctx, b.next()) != nil {
			return info, err
		}
	}
}

// Issuer returns the issuer of the client's certificates.
func (c *Client) Issuer() *Issuer { return c.issuer }

// Credential returns the current certificate with its key.
func (c *Client) Credential() *Credential { return c.cred.Load() }

// Info describes the current certificate.
type Info struct {
	Issuer     string        `json:"issuer"`
	Serial     string        `json:"serial"`
	Identity   string        `json:"identity"`
	Rule       string        `json:"rule"`
	NotBefore  time.Time     `json:"not_before"`
	NotAfter   time.Time     `json:"not_after"`
	RenewAfter time.Time     `json:"renew_after"`
	Engines    []wire.Engine `json:"engines"`
}

// Info returns a description of the current certificate.
func (c *Client) Info() Info {
	r := c.cred.Load().Response
	return Info{
		Issuer: c.issuer.String(), Serial: r.Serial, Identity: r.Identity, Rule: r.Rule,
		NotBefore: r.NotBefore, NotAfter: r.NotAfter, RenewAfter: r.RenewAfter, Engines: r.Engines,
	}
}

// TLSConfig returns the configuration for a program that dials the engine by
// itself, as gRPC does. It sets the server name and checks the engine's identity.
// It offers no protocol: add h2 to NextProtos if the program needs it and does not
// add it on its own. A connection ends at the NotAfter of the certificate that it
// was dialed with. If several engines are granted, Config.Engine must name one;
// otherwise every handshake fails.
func (c *Client) TLSConfig() *tls.Config {
	cred := c.cred.Load()
	engine, err := c.engineFor(cred, "")
	if err != nil {
		return &tls.Config{
			MinVersion:       tls.VersionTLS13,
			VerifyConnection: func(tls.ConnectionState) error { return err },
		}
	}
	return mtls.ClientConfig(liveSource{c}, cred.TrustDomain, engine.ServerName, nil, func(p mtls.Peer) error {
		ctx, cancel := context.WithTimeout(context.Background(), issuerTimeout)
		defer cancel()
		now := c.cred.Load()
		revocation, err := c.revocationCheck(ctx, now, "")
		if err != nil {
			return err
		}
		return checkEngine(p, engine, revocation)
	})
}

// liveSource presents the newest certificate.
type liveSource struct{ c *Client }

func (s liveSource) Certificate() (*tls.Certificate, error) {
	ctx, cancel := context.WithTimeout(context.Background(), issuerTimeout)
	defer cancel()
	cred, err := s.c.usable(ctx)
	if err != nil {
		return nil, err
	}
	return cred.Certificate()
}

func (s liveSource) Roots() *x509.CertPool { return s.c.cred.Load().Roots() }

// Close ends the renewal and every connection that DialContext and Proxy made,
// and waits for the client's goroutines. It does not revoke the certificate, which
// soon expires.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	tethers := slices.Collect(maps.Values(c.tethers))
	c.mu.Unlock()
	for _, t := range tethers {
		t.close()
	}
	c.mu.Lock()
	for _, cancel := range c.stop {
		cancel()
	}
	c.mu.Unlock()
	c.wg.Wait()
	c.issuer.CloseIdleConnections()
	return nil
}

// start runs f in a goroutine until f returns or Close cancels its context. It
// reports whether it started f: a closed client starts nothing.
func (c *Client) start(f func(context.Context)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.started++
	id := c.started
	c.stop[id] = cancel
	c.wg.Go(func() {
		f(ctx)
		cancel()
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.stop, id)
	})
	return true
}
