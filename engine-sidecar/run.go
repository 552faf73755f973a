package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mayfly-ca/mayfly/client"
	"github.com/mayfly-ca/mayfly/client/tokensource"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/admission"
	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/revocation"
	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/supervise"
)

// sidecar is one run of the program.
type sidecar struct {
	cfg           Config
	log           *slog.Logger
	issuer        *client.Issuer
	source        tokensource.Source
	knownAudience atomic.Pointer[string]
	trustDomain   string // set before listening
	own           ownCertificate
	mintError     atomic.Pointer[error] // of the last attempt
	renewNow      chan struct{}         // signals that the sidecar's certificate is revoked
	changed       chan struct{}         // signals a new certificate or feed
	checker       *revocation.Checker
	gate          *admission.Gate
	pending       *pendingConns
	listener      *listener
	reporter      *reporter
	metrics       *metrics
	engine        engine
	socket        *engineSocket
	statusAddr    net.Addr

	ending  context.CancelFunc
	workers sync.WaitGroup
	// crashed is set when the engine has ended by itself, before its relays are
	// cut.
	crashed atomic.Bool
}

// Run runs a sidecar until ctx ends, and then drains: see Config.DrainTimeout.
// exit is the program's exit code. It is 0 after an ordered stop or an idle
// end, the engine's own when the engine ended by itself, otherwise 1 with an
// error.
func Run(ctx context.Context, cfg Config) (exit int, err error) {
	if err := cfg.Validate(); err != nil {
		return 1, err
	}
	s, err := newSidecar(cfg)
	if err != nil {
		return 1, err
	}
	defer s.issuer.CloseIdleConnections()
	// The workers outlive ctx: draining needs them.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	s.ending = end
	defer s.workers.Wait()
	defer end()
	if err := s.serveStatus(life); err != nil {
		return 1, err
	}
	s.workers.Go(func() { s.reporter.run(life) })
	defer s.listener.conns.Wait()
	defer s.close()
	ready, err := s.boot(ctx, life)
	if err != nil || !ready {
		return s.afterBoot(ctx, err)
	}
	return s.watch(ctx, life)
}

func newSidecar(cfg Config) (*sidecar, error) {
	s := &sidecar{
		cfg: cfg, log: cfg.Program.Logger, metrics: newMetrics(),
		renewNow: make(chan struct{}, 1), changed: make(chan struct{}, 1),
		socket:  newEngineSocket(cfg),
		pending: newHalfOpen(cfg.Limits.Handshakes, cfg.Limits.HandshakesPerAddress),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if s.issuer, err = client.NewIssuer(cfg.Issuer, cfg.CAFile, cfg.TrustAnchor); err != nil {
		return nil, err
	}
	if s.source, err = cfg.tokenSource(); err != nil {
		return nil, err
	}
	if cfg.Audience != "" {
		s.knownAudience.Store(&cfg.Audience)
	}
	s.checker = revocation.New(revocation.Options{
		Source: s.issuer, Roots: s.own.rootCertificates, MaxStaleness: cfg.MaxStaleness, Logger: s.log,
		Report:  func(event string) { s.metrics.feed.WithLabelValues(event).Inc() },
		Changed: s.feedChanged,
	})
	s.gate = admission.NewGate(admission.Options{
		Engine: cfg.Engine, Checker: s.checker, MaxAge: cfg.MaxConnectionAge,
		MaxRelays: s.maxRelays(), MaxPerRun: cfg.Limits.ConnectionsPerRun,
	})
	s.reporter = newReporter(s)
	if s.listener, err = newFront(s); err != nil {
		return nil, err
	}
	s.metrics.watch(s)
	return s, nil
}

func (s *sidecar) serveStatus(life context.Context) error {
	if s.cfg.StatusListen == "" {
		return nil
	}
	ln, err := net.Listen("tcp", s.cfg.StatusListen)
	if err != nil {
		return wire.ListenError("status_listen", err)
	}
	s.statusAddr = ln.Addr()
	s.workers.Go(func() { s.status(life, ln) })
	return nil
}

// feedChanged runs after the checker has processed a feed.
func (s *sidecar) feedChanged() {
	s.gate.Sweep()
	if own := s.own.now.Load(); own != nil && s.checker.Revoked(revocation.CertificateOf(own.Chain())) {
		wake(s.renewNow)
	}
	wake(s.changed)
}

// wake wakes the receiver of c, now or at its next receive.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// boot gets the certificate and starts the engine in parallel, then waits for
// a fresh feed. ready is false when ctx ended first.
func (s *sidecar) boot(ctx, life context.Context) (ready bool, err error) {
	limit, cancel := context.WithTimeoutCause(ctx, s.cfg.BootTimeout,
		fmt.Errorf("not listening %v after the start (boot_timeout)", s.cfg.BootTimeout))
	defer cancel()
	type minted struct {
		cred *client.Credential
		err  error
	}
	certificate := make(chan minted, 1)
	s.workers.Go(func() {
		c, err := s.mint(limit)
		certificate <- minted{c, err}
	})
	if s.engine, err = s.startEngine(limit); err != nil {
		return false, s.bootError(ctx, limit, err)
	}
	answers := make(chan error, 1)
	s.workers.Go(func() { answers <- s.engine.Ready(limit) })
	got, err := minted{}, error(nil)
	for waiting := 2; waiting > 0; waiting-- {
		select {
		case got = <-certificate:
			err = got.err
		case err = <-answers:
		}
		if err != nil {
			return false, s.bootError(ctx, limit, err)
		}
	}
	s.trustDomain = got.cred.TrustDomain.Name()
	s.listener.secure(got.cred.TrustDomain)
	s.adopt(got.cred)
	s.workers.Go(func() { s.checker.Run(life) })
	s.workers.Go(func() { s.keepCertificate(life) })
	select {
	case <-s.checker.Fresh():
		return true, nil
	case <-s.engine.Done():
		return false, &supervise.ExitError{Code: s.engine.ExitCode()}
	case <-limit.Done():
		return false, s.bootError(ctx, limit, errors.New("no fresh revocation list"))
	}
}

// bootError returns why boot failed, or nil when ctx has ended.
func (s *sidecar) bootError(ctx, limit context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return nil
	case limit.Err() == nil:
		return err
	}
	if last := s.mintError.Load(); last != nil && s.own.now.Load() == nil {
		err = *last
	}
	return fmt.Errorf("%w: %w", context.Cause(limit), err)
}

// afterBoot ends a run that never listened.
func (s *sidecar) afterBoot(ctx context.Context, err error) (int, error) {
	var ended *supervise.ExitError
	if errors.As(err, &ended) {
		return ended.Code, fmt.Errorf("while starting: %w", err)
	}
	if s.engine != nil {
		s.stopEngine(ctx)
	}
	if err != nil {
		return 1, err
	}
	return 0, nil
}

// watch listens and serves until there is a reason to end.
func (s *sidecar) watch(ctx, life context.Context) (int, error) {
	if err := s.listen(); err != nil {
		s.stopEngine(ctx)
		return 1, err
	}
	idle := newIdle(s.cfg, time.Now())
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var away time.Time // when listening stopped; zero while listening
	stale := false
	for {
		select {
		case <-ctx.Done():
			return s.drain(ctx)
		case <-s.engine.Done():
			return s.engineExited()
		case sig := <-s.cfg.Program.Signals:
			if err := s.engine.Signal(sig); err != nil {
				s.log.Warn("signal not passed on", "error", err)
			}
		case <-s.changed:
		case <-tick.C:
		}
		if err := s.pauseIfRevoked(&away); err != nil {
			s.stopEngine(ctx)
			return 1, err
		}
		stale = s.handleStaleFeed(stale)
		if why := idle.exitReason(s.gate.Counts(), time.Now()); why != "" {
			s.log.Info("idle: ending", "why", why)
			return s.drain(ctx)
		}
	}
}

// handleStaleFeed applies on_stale, and reports to the issuer when the feed
// becomes stale. It reports whether the feed is stale.
func (s *sidecar) handleStaleFeed(before bool) bool {
	if !s.checker.Stale() {
		return false
	}
	if !before {
		why := fmt.Sprintf("no revocation list for %v: no new connection is admitted", s.cfg.MaxStaleness)
		if s.cfg.OnStale == StaleCut {
			why += ", live ones are cut"
		}
		s.reporter.feedStale(why)
	}
	if s.cfg.OnStale == StaleCut {
		s.gate.CutAll(wire.ReasonFeedStale, "")
	}
	return true
}

// pauseIfRevoked stops listening while the sidecar's certificate is revoked,
// and listens again with the next one.
func (s *sidecar) pauseIfRevoked(away *time.Time) error {
	out := s.checker.Revoked(revocation.CertificateOf(s.own.now.Load().Chain()))
	switch {
	case out && away.IsZero():
		s.log.Error("server certificate revoked; not listening until renewed")
		*away = time.Now()
		s.listener.close()
		s.gate.Pause()
		s.gate.CutAll(wire.ReasonDraining, "")
		s.gate.EndControls()
		s.reporter.announce()
	case !out && !away.IsZero():
		s.gate.Resume()
		if err := s.listen(); err != nil {
			return err
		}
		*away = time.Time{}
	case out && time.Since(*away) > s.cfg.BootTimeout:
		err := errors.New("the server certificate is revoked")
		if last := s.mintError.Load(); last != nil {
			err = fmt.Errorf("%w: %w", err, *last)
		}
		return fmt.Errorf("not listening for %v (boot_timeout): %w", s.cfg.BootTimeout, err)
	}
	return nil
}

func (s *sidecar) listen() error {
	addr, err := s.listener.open()
	if err != nil {
		return err
	}
	s.log.Info("listening", "addr", addr.String(), "engine", s.cfg.Engine)
	s.reporter.announce()
	if f := s.cfg.Program.Listening; f != nil {
		f(addr, s.statusAddr)
	}
	return nil
}

// engineExited ends the run after the engine has ended by itself.
func (s *sidecar) engineExited() (int, error) {
	s.crashed.Store(true)
	code := s.engine.ExitCode()
	s.gate.CutAll(wire.ReasonEngineExited, exitText(code))
	err := fmt.Errorf("the engine ended by itself: %w", &supervise.ExitError{Code: code})
	s.log.Error("engine ended by itself", "exit_code", code)
	return code, err
}

// exitText describes the end of a process. A code over 128 means a signal.
func exitText(code int) string {
	if code > 128 {
		return fmt.Sprintf("signal %d, %v", code-128, syscall.Signal(code-128))
	}
	return fmt.Sprintf("exit code %d", code)
}

// drain lets relays end, then stops the engine.
func (s *sidecar) drain(ctx context.Context) (int, error) {
	s.log.Info("draining", "relays", s.gate.Counts().Relays, "drain_timeout", s.cfg.DrainTimeout)
	s.gate.Drain()
	s.listener.close()
	timer := time.NewTimer(s.cfg.DrainTimeout)
	defer timer.Stop()
	select {
	case <-s.gate.Empty():
	case <-timer.C:
		if left := s.gate.Counts().Relays; left > 0 {
			s.log.Warn("relays are left: stopping the engine", "relays", left)
		}
	case <-s.engine.Done():
	}
	s.stopEngine(ctx)
	return 0, nil
}

// stopEngine stops the engine within kill_timeout. It uses a fresh deadline,
// since ctx may have ended.
func (s *sidecar) stopEngine(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.KillTimeout)
	defer cancel()
	if err := s.engine.Stop(ctx, syscall.SIGTERM); err != nil {
		s.log.Error("engine did not stop in order", "error", err)
	}
}

// close ends the connections of clients, and then the workers. The reporter
// sends its last reports.
func (s *sidecar) close() {
	s.listener.close()
	s.gate.Drain()
	s.pending.closeAll()
	s.gate.CutAll(wire.ReasonDraining, "")
	<-s.gate.Empty()
	s.gate.EndControls()
	s.ending()
}

// idle decides when a sidecar without clients ends.
type idle struct {
	exit, grace time.Duration
	since       time.Time // when listening began
}

func newIdle(c Config, now time.Time) idle { return idle{c.IdleExit, c.BootGrace, now} }

// exitReason returns the reason to end now, or "".
func (i idle) exitReason(c admission.Counts, now time.Time) string {
	switch {
	case i.exit == 0 || c.Relays > 0:
		return ""
	case !c.HadRelay && now.Sub(i.since) >= i.grace:
		return fmt.Sprintf("no client came within %v (boot_grace)", i.grace)
	case c.HadRelay && now.Sub(c.IdleSince) >= i.exit:
		return fmt.Sprintf("no connection for %v (idle_exit)", i.exit)
	}
	return ""
}
