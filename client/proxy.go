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

// proxyBuffer is the size of a copy buffer: two TLS records.
const proxyBuffer = 32 << 10

var proxyBuffers = sync.Pool{New: func() any { return new([proxyBuffer]byte) }}

// Proxy relays every connection that ln accepts to the client's engine, byte for
// byte and with half-closes, until ctx ends, and then returns nil. It owns ln and
// closes it.
//
// It returns an error earlier if later connections would fail too: the engine
// refused the certificate (*RejectedError) or ended a relay with a final reason
// (*CutError), the server is not the engine (*UntrustedEngineError), or the issuer
// denied a renewal (*wire.Problem). If no other relay is open, any other dial error
// ends it too. A tool behind the listener sees only a closed connection, and many
// tools retry for minutes, so the caller must print the error.
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

// proxyEnd marks, among context causes, the error that ended a Proxy.
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

// final reports whether err ends the proxy. A transient or unknown error ends it
// only if no relay is open.
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

// relay serves one local connection. It returns the dial's error or the reason
// of a cut. How the tool ended its own connection is not an error.
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

// pipe copies src to dst until src ends, then closes dst for writing.
func pipe(dst, src net.Conn) error {
	buf := proxyBuffers.Get().(*[proxyBuffer]byte)
	defer proxyBuffers.Put(buf)
	// The wrappers hide ReadFrom and WriteTo, which would allocate their own
	// buffers.
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
