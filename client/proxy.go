package client

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// maxProxied bounds the connections that one Proxy serves at a time.
const maxProxied = 512

// proxyBuffer is the size of a copy: two TLS records.
const proxyBuffer = 32 << 10

var proxyBuffers = sync.Pool{New: func() any { return new([proxyBuffer]byte) }}

// Proxy relays every connection that ln accepts to the client's engine, byte
// for byte and with half-closes kept, until ctx ends, and then returns nil. It
// owns ln and closes it.
//
// It ends by itself, with the error, when no later connection would fare
// better: the engine refused the certificate (*RejectedError) or ended a relay
// for good (*CutError), what answers is not the engine (*UntrustedEngineError),
// the issuer denied a renewal (*wire.Problem), or, while no other relay is open,
// a dial failed for any other reason. A tool behind the listener would only see
// a closed connection, and many try again for minutes, so the caller must say
// the reason aloud.
func (c *Client) Proxy(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	p := &proxy{c: c, fail: func(err error) { cancel(proxyEnd{err}) }}
	err := p.serve(ctx, ln)
	_ = ln.Close()
	cancel(nil)
	p.wg.Wait()
	var end proxyEnd
	switch cause := context.Cause(ctx); {
	case errors.As(cause, &end):
		return end.error
	case ctx.Err() != nil && errors.Is(err, net.ErrClosed):
		return nil
	}
	return err
}

// proxyEnd marks the error that ended a Proxy among context causes.
type proxyEnd struct{ error }

type proxy struct {
	c    *Client
	fail func(error)
	wg   sync.WaitGroup
}

// serve accepts until the listener ends.
func (p *proxy) serve(ctx context.Context, ln net.Listener) error {
	slots := make(chan struct{}, maxProxied)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return net.ErrClosed
		}
		local, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return net.ErrClosed
			}
			return err
		}
		p.wg.Go(func() {
			defer func() { <-slots }()
			if err := p.relay(ctx, local); err != nil && p.final(err) {
				p.fail(err)
			}
		})
	}
}

// final reports whether the proxy is of no more use after err. What may pass, and
// what nobody foresaw, ends it only when no relay would be lost by that.
func (p *proxy) final(err error) bool {
	var cut *CutError
	if errors.As(err, &cut) {
		return cut.Final()
	}
	var rejected *RejectedError
	var untrusted *UntrustedEngineError
	var problem *wire.Problem
	judged := errors.As(err, &rejected) || errors.As(err, &untrusted) || errors.As(err, &problem) || errors.Is(err, ErrClosed)
	return judged && !shouldRetry(err) || p.c.stats.open.Load() == 0
}

// relay serves one local connection. It returns the dial's error or the
// reason of a cut; how the tool ended its own connection is no error.
func (p *proxy) relay(ctx context.Context, local net.Conn) error {
	defer local.Close()
	remote, err := p.c.dial(ctx, "")
	if err != nil {
		abort(local)
		return err
	}
	defer remote.Close()
	stop := context.AfterFunc(ctx, func() {
		remote.abort()
		abort(local)
	})
	defer stop()
	var up error
	var wg sync.WaitGroup
	wg.Go(func() {
		up = pipe(remote, local)
		if up != nil {
			remote.abort()
		}
	})
	down := pipe(local, remote)
	if down != nil {
		abort(local)
		remote.abort()
	}
	wg.Wait()
	var cut *CutError
	if errors.As(down, &cut) || errors.As(up, &cut) {
		return cut
	}
	return nil
}

// pipe copies src to dst until src ends, and passes its end on.
func pipe(dst, src net.Conn) error {
	buf := proxyBuffers.Get().(*[proxyBuffer]byte)
	defer proxyBuffers.Put(buf)
	// The wrappers hide ReadFrom and WriteTo, which would bring buffers of
	// their own.
	if _, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf[:]); err != nil {
		return err
	}
	half, ok := dst.(interface{ CloseWrite() error })
	if !ok {
		return nil
	}
	return half.CloseWrite()
}

// abort closes a local connection so that the tool sees it broken, not ended.
func abort(local net.Conn) {
	if tcp, ok := local.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = local.Close()
}
