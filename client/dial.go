package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// Waits between attempts to reach an engine.
const (
	dialDelayMin = 100 * time.Millisecond
	dialDelayMax = 2 * time.Second
)

// DialContext opens a relay: a connection whose bytes are the engine's own. addr
// is the name of a granted engine, with or without a port; anything else means
// the one engine there is. network is not looked at.
//
// It waits up to Config.WakeTimeout for an engine whose machine is asleep, and
// for one that cannot take the connection yet. A refusal of the certificate is
// final. Errors: *RejectedError (the engine refused), *UntrustedEngineError (we
// refused), *EngineUnreachableError, or, where a certificate or the revocation
// list had to be fetched, those of the issuer.
//
// The connection can half-close (CloseWrite). Reads and writes after the engine
// has ended it return a *CutError that says why.
func (c *Client) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	r, err := c.dial(ctx, addr)
	if err != nil {
		return nil, err // a nil *relay is no nil net.Conn
	}
	return r, nil
}

// dialing is one call of DialContext or Wake.
type dialing struct {
	c       *Client
	addr    string
	started time.Time
	attempt int
	engine  wire.Engine
	serial  string // of the certificate that the last attempt used
}

func (c *Client) dial(ctx context.Context, addr string) (*relay, error) {
	var r *relay
	d := &dialing{c: c, addr: addr, started: time.Now()}
	err := d.repeat(ctx, func(ctx context.Context) error {
		conn, err := d.reach(ctx)
		if err != nil {
			return err
		}
		name, err := mtls.RelayName(conn.ConnectionState())
		if err != nil {
			conn.abandon()
			return err
		}
		r, err = c.open(conn, name)
		return err
	})
	return r, err
}

// Wake returns when the client's engine admits a connection, and how long that
// took. It waits and fails as DialContext does. No byte reaches the engine, and
// Stats counts no connection; an engine that nothing uses then may sleep again.
func (c *Client) Wake(ctx context.Context) (time.Duration, error) {
	d := &dialing{c: c, started: time.Now()}
	err := d.repeat(ctx, func(ctx context.Context) error {
		conn, err := d.reach(ctx)
		if err == nil {
			_ = conn.Close() // it is admitted: how it ends says nothing more
		}
		return err
	})
	return time.Since(d.started), err
}

// repeat calls attempt until it succeeds, fails for good, or has failed for as
// long as a dial may wait.
func (d *dialing) repeat(ctx context.Context, attempt func(context.Context) error) error {
	c := d.c
	wake, cancel := context.WithTimeout(ctx, c.cfg.WakeTimeout)
	defer cancel()
	b := backoff{min: dialDelayMin, max: dialDelayMax}
	var before error
	for {
		d.attempt++
		err := attempt(wake)
		if err == nil {
			d.connected()
			return nil
		}
		if before != nil && wake.Err() != nil && errors.Is(err, context.DeadlineExceeded) {
			err = before // this attempt was cut short by us, and knows less
		}
		before = err
		if ctx.Err() == nil && shouldRetry(err) {
			kind := EventRetrying
			if Asleep(err) {
				kind = EventWaking
			}
			c.event(Event{Kind: kind, Engine: d.engine.Name, Endpoint: d.engine.Endpoint, Attempt: d.attempt, Elapsed: time.Since(d.started), Err: err})
			if sleep(wake, b.next()) == nil {
				continue
			}
		}
		err = d.failed(ctx, err)
		c.stats.failed.Add(1)
		c.event(Event{Kind: EventFailed, Engine: d.engine.Name, Endpoint: d.engine.Endpoint, Attempt: d.attempt, Elapsed: time.Since(d.started), Err: err})
		return err
	}
}

// reach makes one attempt to be admitted by the engine.
func (d *dialing) reach(ctx context.Context) (*engineConn, error) {
	cred, err := d.c.usable(ctx)
	if err != nil {
		return nil, err
	}
	if d.engine, err = d.c.engineFor(cred, d.addr); err != nil {
		return nil, err
	}
	d.serial = cred.Serial()
	return d.c.connect(ctx, cred, d.engine, wire.ALPNRelay)
}

func (d *dialing) connected() {
	took := time.Since(d.started)
	d.c.stats.connected(took)
	d.c.log.Debug("engine reached", "engine", d.engine.Name, "serial", d.serial, "took", took)
	d.c.event(Event{Kind: EventConnected, Engine: d.engine.Name, Endpoint: d.engine.Endpoint, Serial: d.serial, Attempt: d.attempt, Elapsed: took})
}

// failed is what a dial returns for its last attempt's error.
func (d *dialing) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("dial engine %s: %w (after %d attempts: %v)", d.engine.Name, context.Cause(ctx), d.attempt, err)
	}
	var rejected *RejectedError
	if !shouldRetry(err) || errors.As(err, &rejected) {
		return err // what this machine cannot dial is an *EngineUnreachableError already
	}
	var unreachable *IssuerUnreachableError
	var problem *wire.Problem
	if errors.As(err, &unreachable) || errors.As(err, &problem) {
		return err
	}
	return &EngineUnreachableError{
		Engine: d.engine.Name, Endpoint: d.engine.Endpoint,
		Waited: time.Since(d.started), Attempts: d.attempt, Err: err,
	}
}

// shouldRetry reports whether another attempt may fare better. No byte of the engine's
// has passed by then, so each attempt is safe to repeat.
func shouldRetry(err error) bool {
	var rejected *RejectedError
	if errors.As(err, &rejected) {
		return rejected.Retryable()
	}
	var unreachable *IssuerUnreachableError
	if errors.As(err, &unreachable) {
		return !unreachable.Final
	}
	var problem *wire.Problem
	if errors.As(err, &problem) {
		return problem.Status == 429 || problem.Status >= 500
	}
	var untrusted *UntrustedEngineError
	var undialable *EngineUnreachableError
	if errors.As(err, &untrusted) || errors.As(err, &undialable) || errors.Is(err, ErrClosed) {
		return false
	}
	return errors.Is(err, context.DeadlineExceeded) || isTransient(err)
}
