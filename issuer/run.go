package issuer

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
)

// Timeouts of the server. WriteTimeout allows for the 30 seconds of crl/wait.
const (
	readHeaderTimeout = 10 * time.Second
	readTimeout       = 20 * time.Second
	writeTimeout      = wire.CRLWait + 30*time.Second
	idleTimeout       = 2 * time.Minute
	stopTimeout       = 30 * time.Second
	policyPoll        = 2 * time.Second
	pruneEvery        = time.Hour
	firstPrune        = time.Minute // a machine that sleeps in between may not run for an hour
)

// Run serves c until ctx ends, then shuts down in order: it answers the requests that
// were accepted. It creates a store only where MAYFLY_CREATE_STORE_UNTIL allows it.
// Its error has a hint for the operator.
func Run(ctx context.Context, c Config) error {
	svc, err := Open(ctx, c)
	if err != nil {
		return err
	}
	return svc.Serve(ctx)
}

// Service is a configured issuer that listens but does not serve yet. Serve or Close
// releases it.
type Service struct {
	config    Config
	logger    *slog.Logger
	metrics   *Metrics
	store     store.Store
	authority *ca.Authority
	policies  *Policies
	server    *Server
	keeper    keeper // nil without TLS
	api       *drainListener
	scrape    net.Listener // nil without metrics_listen
	closers   []func()
}

// Open checks c, listens, changes to the user run_as, and opens store, keys and
// policy.
func Open(ctx context.Context, c Config) (*Service, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Out == nil {
		c.Out = io.Discard
	}
	if err := c.Check(); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if runtime.GOMAXPROCS(0) < 2 { // with a single P, group commit starves
		runtime.GOMAXPROCS(2)
	}
	svc := &Service{config: c, logger: c.Logger, metrics: NewMetrics()}
	if err := svc.open(ctx); err != nil {
		svc.Close()
		return nil, err
	}
	return svc, nil
}

func (svc *Service) open(ctx context.Context) error {
	c := svc.config
	dsn, err := c.StoreDSN()
	if err != nil {
		return err
	}
	if err := svc.listen(ctx); err != nil { // only root may listen on port 443
		return err
	}
	if err := dropPrivileges(c.RunAs, dsn, svc.logger); err != nil {
		return fmt.Errorf("run_as: %w", err)
	}
	svc.store, err = openStore(ctx, c, dsn)
	if err != nil {
		return err
	}
	// The closers run in reverse order: the authority writes to the store and must be
	// closed before it.
	svc.closers = append(svc.closers, func() { _ = svc.store.Close() })
	svc.authority, err = OpenAuthority(ctx, c, timedStore{svc.store, svc.metrics})
	if err != nil {
		return err
	}
	svc.closers = append(svc.closers, func() { _ = svc.authority.Close() })
	svc.policies, err = OpenPolicies(c.Policy, svc.authority.TrustDomain(), PolicyOptions(svc.authority), idtoken.Options{})
	if err != nil {
		return err
	}
	svc.closers = append(svc.closers, svc.policies.Close)
	prefixes, err := c.trustedPrefixes()
	if err != nil {
		return err
	}
	u, err := c.publicURL()
	if err != nil {
		return err
	}
	svc.server, err = New(Options{
		Authority: svc.authority, Policies: svc.policies, PublicURL: u.String(), ClientIPHeader: c.ClientIPHeader,
		TrustedProxies: prefixes, Rate: c.Rate, Metrics: svc.metrics, Logger: svc.logger,
		Page: Page,
	})
	if err != nil {
		return err
	}
	if _, err := svc.authority.CRLs(ctx); err != nil {
		return fmt.Errorf("sign the first CRL: %w", err)
	}
	return svc.openKeeper(ctx, dsn, u.Hostname())
}

// PolicyOptions returns the options that a's certificates require of a policy.
func PolicyOptions(a *ca.Authority) policy.Options {
	if is := a.Intermediates(); len(is) > 0 {
		return PolicyOptionsOf(is[0])
	}
	return policy.Options{}
}

// PolicyOptionsOf is like PolicyOptions, for one intermediate.
func PolicyOptionsOf(intermediate *x509.Certificate) policy.Options {
	o := policy.Options{PermittedDNS: intermediate.PermittedDNSDomains}
	if td := intermediate.PermittedURIDomains; len(td) > 0 {
		o.TrustDomain = td[0]
	}
	return o
}

// openKeeper opens the listener's certificate for host.
func (svc *Service) openKeeper(ctx context.Context, dsn, host string) (err error) {
	switch c := svc.config; c.TLS.Mode {
	case TLSSelf:
		svc.keeper, err = newIssuedCert(ctx, svc.authority, host, svc.logger)
	case TLSACME:
		svc.keeper, err = newACMECertificate(c, dsn, host, svc.logger)
	case TLSFiles:
		svc.keeper, err = newFileCert(ctx, c.TLS.Cert, c.TLS.Key, svc.logger)
	}
	return err
}

// listen opens the ports. Serve answers on them.
func (svc *Service) listen(ctx context.Context) (err error) {
	c := svc.config
	var lc net.ListenConfig
	l := c.Listener
	if l == nil {
		made, err := lc.Listen(ctx, "tcp", c.Listen)
		if err != nil {
			return wire.ListenError("listen", err)
		}
		l = made.(*net.TCPListener) // of network tcp
	}
	svc.api = &drainListener{TCPListener: l, drained: make(chan struct{})}
	svc.closers = append(svc.closers, func() { _ = l.Close() })
	if c.MetricsListen != "" {
		if svc.scrape, err = lc.Listen(ctx, "tcp", c.MetricsListen); err != nil {
			return wire.ListenError("metrics_listen", err)
		}
		svc.closers = append(svc.closers, func() { _ = svc.scrape.Close() })
	}
	return nil
}

// Addr returns the address of the API's listener.
func (svc *Service) Addr() net.Addr { return svc.api.Addr() }

// MetricsAddr returns the address of the /metrics listener, nil without
// metrics_listen.
func (svc *Service) MetricsAddr() net.Addr {
	if svc.scrape == nil {
		return nil
	}
	return svc.scrape.Addr()
}

// Server returns the API.
func (svc *Service) Server() *Server { return svc.server }

// Close releases the resources of Open, newest first. Serve calls it.
func (svc *Service) Close() {
	for i := len(svc.closers) - 1; i >= 0; i-- {
		svc.closers[i]()
	}
	svc.closers = nil
}

// Serve answers requests until ctx ends or a listener fails. Then it calls Close.
func (svc *Service) Serve(ctx context.Context) error {
	defer svc.Close()
	api, conns := svc.httpServer(svc.server.Handler()), newConnections()
	api.ConnState = conns.state
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", svc.metrics.Handler())
	scrape := svc.httpServer(mux)

	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	svc.background(work, &wg)

	failed := make(chan error, 2)
	wg.Go(func() { failed <- ignoreClosed(svc.serveAPI(api)) })
	if svc.scrape != nil {
		wg.Go(func() { failed <- ignoreClosed(scrape.Serve(svc.scrape)) })
	}
	svc.printStartup()
	if svc.config.Started != nil {
		svc.config.Started(svc.Addr())
	}
	var err error
	select {
	case <-ctx.Done():
		svc.logger.Info("stopping")
	case err = <-failed:
	}
	err = errors.Join(err, svc.stop(context.WithoutCancel(ctx), api, conns), scrape.Close())
	svc.logger.Info("stopped")
	return err
}

// stop shuts the service down in order: it accepts no new connections, answers waiting
// requests, and waits for running ones.
func (svc *Service) stop(ctx context.Context, api *http.Server, conns *connections) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	svc.server.Drain()
	svc.api.drain()
	conns.waitIdle(ctx)
	return api.Shutdown(ctx)
}

func (svc *Service) serveAPI(s *http.Server) error {
	if svc.keeper == nil {
		return s.Serve(svc.api)
	}
	return s.ServeTLS(svc.api, "", "")
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (svc *Service) httpServer(h http.Handler) *http.Server {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    wire.MaxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(svc.logger.Handler(), slog.LevelDebug),
	}
	if svc.keeper != nil {
		s.TLSConfig = svc.keeper.config()
	}
	return s
}

// background starts the service's background work.
func (svc *Service) background(ctx context.Context, wg *sync.WaitGroup) {
	wg.Go(func() { svc.followPolicy(ctx) })
	wg.Go(func() { svc.prune(ctx) })
	if svc.keeper != nil {
		wg.Go(func() { svc.keeper.keep(ctx) })
	}
}

// followPolicy reads the policy file again on a signal, and when it changes.
func (svc *Service) followPolicy(ctx context.Context) {
	svc.policyLoaded(ctx)
	t := time.NewTicker(policyPoll)
	defer t.Stop()
	for {
		force := false
		select {
		case <-ctx.Done():
			return
		case <-svc.config.Reload:
			force = true
		case <-t.C:
		}
		changed, err := svc.policies.Reload(ctx, force)
		switch {
		case err != nil:
			svc.metrics.reloaded(err)
			svc.logger.ErrorContext(ctx, "policy not reloaded, the old rules stay in force", "err", err)
		case changed:
			svc.metrics.reloaded(nil)
			svc.policyLoaded(ctx)
		case force:
			svc.logger.InfoContext(ctx, "policy unchanged")
		}
	}
}

// policyLoaded logs and records which rules are in force.
func (svc *Service) policyLoaded(ctx context.Context) {
	rules := svc.policies.load()
	for _, f := range rules.set.Findings() {
		svc.logger.WarnContext(ctx, "policy warning", "warning", f.String(), "line", f.Place.Line)
	}
	svc.logger.InfoContext(ctx, "policy loaded", "file", svc.config.Policy, "sha256", rules.sum, "rules", len(rules.set.Rules()))
	ev := store.Event{Time: time.Now().UTC(), Type: store.EventPolicyLoaded, Detail: map[string]string{"sha256": rules.sum, "rules": fmt.Sprint(len(rules.set.Rules()))}}
	if err := svc.store.Append(ctx, ev); err != nil && ctx.Err() == nil {
		svc.logger.ErrorContext(ctx, "event not recorded", "type", ev.Type, "err", err)
	}
}

// prune deletes what is past its retention, soon after the start and then once an
// hour.
func (svc *Service) prune(ctx context.Context) {
	t := time.NewTimer(firstPrune)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			t.Reset(pruneEvery)
		}
		n, err := svc.store.Prune(ctx, time.Now().UTC().Add(-svc.config.Retention))
		switch {
		case err != nil && ctx.Err() == nil:
			svc.logger.ErrorContext(ctx, "prune", "err", err)
		case n > 0:
			svc.logger.InfoContext(ctx, "pruned", "rows", n)
		}
	}
}

// printStartup prints a few lines on what runs.
func (svc *Service) printStartup() {
	c, out := svc.config, svc.config.Out
	is := svc.authority.Intermediates()
	place := "PostgreSQL"
	if dsn, err := c.StoreDSN(); err == nil && !ca.IsPostgres(dsn) {
		place = dsn
	}
	fmt.Fprintf(out, "mayfly-issuer %s serves %s at %s (tls %s)\n", Version(), svc.authority.TrustDomain(), c.PublicURL, c.TLS.Mode)
	fmt.Fprintf(out, "  listen   %s\n", svc.Addr())
	if a := svc.MetricsAddr(); a != nil {
		fmt.Fprintf(out, "  metrics  %s/metrics\n", a)
	}
	fmt.Fprintf(out, "  store    %s\n", place)
	fmt.Fprintf(out, "  policy   %s: %d rules\n", c.Policy, len(svc.policies.Set().Rules()))
	if len(is) > 0 {
		fmt.Fprintf(out, "  issues   with %s until %s\n", is[0].Subject.CommonName, is[0].NotAfter.UTC().Format(time.DateOnly))
	}
	for _, w := range svc.server.Warnings() {
		fmt.Fprintf(out, "  WARNING  %s\n", w)
	}
}
