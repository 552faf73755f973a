package issuer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mayfly-ca/mayfly/ca"
)

// acceptGrace is how long a stopping listener takes what the kernel has
// accepted already: closing at once would reset those connections.
const acceptGrace = 100 * time.Millisecond

// drainListener empties the kernel's queue of accepted connections when it is
// closed. Accept reports net.ErrClosed when that is done.
type drainListener struct {
	*net.TCPListener
	closing atomic.Bool
	once    sync.Once
}

// Accept implements net.Listener.
func (l *drainListener) Accept() (net.Conn, error) {
	c, err := l.TCPListener.Accept()
	if err == nil || !l.closing.Load() {
		return c, err
	}
	_ = l.TCPListener.Close()
	return nil, net.ErrClosed
}

// Close begins the end: Accept goes on for acceptGrace.
func (l *drainListener) Close() error {
	l.once.Do(func() { l.closing.Store(true) })
	return l.SetDeadline(time.Now().Add(acceptGrace))
}

// certificateKeeper holds the listener's certificate and keeps it fresh. The
// zero value is not usable; see selfKeeper and fileKeeper.
type certificateKeeper struct {
	current atomic.Pointer[tls.Certificate]
	load    func(context.Context) (*tls.Certificate, error)
	every   time.Duration // how often stale is asked
	stale   func(*tls.Certificate) bool
	logger  *slog.Logger
}

// selfKeeper serves a certificate of the CA itself, renewed at half life.
func selfKeeper(ctx context.Context, a *ca.Authority, host string, logger *slog.Logger) (*certificateKeeper, error) {
	names, ips := []string{host}, []net.IP(nil)
	if addr, err := netip.ParseAddr(host); err == nil {
		names, ips = nil, []net.IP{addr.AsSlice()}
	}
	k := &certificateKeeper{every: time.Minute, logger: logger}
	k.load = func(ctx context.Context) (*tls.Certificate, error) { return a.ServerCertificate(ctx, names, ips) }
	k.stale = func(c *tls.Certificate) bool {
		return c.Leaf == nil || time.Until(c.Leaf.NotAfter) < c.Leaf.NotAfter.Sub(c.Leaf.NotBefore)/2
	}
	return k, k.refresh(ctx)
}

// fileKeeper serves the pair of two files, read again when either changes.
func fileKeeper(ctx context.Context, cert, key string, logger *slog.Logger) (*certificateKeeper, error) {
	k := &certificateKeeper{every: 5 * time.Second, logger: logger}
	stamp := func() string {
		out := ""
		for _, p := range []string{cert, key} {
			if fi, err := os.Stat(p); err == nil {
				out += fi.ModTime().String() + " " + fmt.Sprint(fi.Size()) + ";"
			}
		}
		return out
	}
	var seen atomic.Pointer[string]
	k.load = func(context.Context) (*tls.Certificate, error) {
		s := stamp()
		c, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, err
		}
		seen.Store(&s)
		return &c, nil
	}
	k.stale = func(*tls.Certificate) bool { return *seen.Load() != stamp() }
	return k, k.refresh(ctx)
}

func (k *certificateKeeper) refresh(ctx context.Context) error {
	c, err := k.load(ctx)
	if err != nil {
		return fmt.Errorf("certificate of the listener: %w", err)
	}
	k.current.Store(c)
	return nil
}

// keep refreshes until ctx ends. A certificate that cannot be renewed is served
// on, and said.
func (k *certificateKeeper) keep(ctx context.Context) {
	t := time.NewTicker(k.every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if !k.stale(k.current.Load()) {
			continue
		}
		if err := k.refresh(ctx); err != nil && !errors.Is(err, context.Canceled) {
			k.logger.ErrorContext(ctx, "listener keeps its old certificate", "err", err)
		}
	}
}

// config is the listener's TLS: 1.3 alone, since every client of ours has it.
func (k *certificateKeeper) config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return k.current.Load(), nil },
	}
}
