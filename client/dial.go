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

// DialContext opens a relay: a connection that carries only the engine's bytes.
// addr is the name of a granted engine, with or without a port. Any other addr
// means Config.Engine, or the only granted engine. network is ignored.
//
// DialContext waits up to Config.WakeTimeout for an engine whose machine is
// asleep, and for an engine that cannot take the connection yet. A refusal of the
// certificate is final. Its errors are *RejectedError (the engine refused),
// *UntrustedEngineError (the client refused), *EngineUnreachableError, or the
// issuer's errors if a certificate or the revocation list had to be fetched.
//
// The connection can half-close (CloseWrite). After the engine has ended the
// connection, reads and writes return a *CutError with the reason.
// has ended it return a *CutError that says why.
func (c *Client) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	r, err := c.dial(ctx, addr)
	if err != nil {
		return nil, err // a nil *relay in a net.Conn is not a nil net.Conn
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
	serial  string // serial of the certificate that the last attempt used
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

// Wake waits until the client's engine admits a connection, and returns how long
// that took. It waits and fails as DialContext does. No byte reaches the engine,
// and Stats counts no connection. An engine without other connections may sleep
// again afterwards.
func (c *Client) Wake(ctx context.Context) (time.Duration, error) {
	d := &dialing{c: c, started: time.Now()}
	err := d.repeat(ctx, func(ctx context.Context) error {
		conn, err := d.reach(ctx)
		if err == nil {
			_ = conn.Close() // the engine admitted it, so an error of Close does not matter
		}
		return err
	})
	return time.Since(d.started), err
}

// repeat calls attempt until it succeeds, fails with a final error, or
// Config.WakeTimeout has passed.
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
			err = before // WakeTimeout ended this attempt; the error before says more
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

// failed returns the error of a dial, given its last attempt's error.
func (d *dialing) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("dial engine %s: %w (after %d attempts: %v)", d.engine.Name, context.Cause(ctx), d.attempt, err)
	}
	var rejected *RejectedError
	if !shouldRetry(err) || errors.As(err, &rejected) {
		return err // an address that this machine cannot dial is an *EngineUnreachableError already
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

// shouldRetry reports whether another attempt may succeed. Until then no byte of
// the engine's has passed, so an attempt is safe to repeat.
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
