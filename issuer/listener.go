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

// A stopping listener takes what the kernel has accepted already, since closing
// would reset those connections: for acceptGrace, and then until the queue was
// empty for a moment, or acceptLimit is over.
const (
	acceptGrace  = 100 * time.Millisecond
	acceptMoment = time.Millisecond
	acceptLimit  = time.Second
)

// drainListener empties the kernel's queue of accepted connections at its end.
type drainListener struct {
	*net.TCPListener
	draining atomic.Bool
	until    atomic.Int64  // Unix ns: the end of acceptLimit
	drained  chan struct{} // closed when Accept is done
	once     sync.Once
}

// Accept implements net.Listener.
func (l *drainListener) Accept() (net.Conn, error) {
	c, err := l.TCPListener.Accept()
	if err != nil && l.draining.Load() && time.Now().Before(time.Unix(0, l.until.Load())) {
		// The deadline may have passed between two Accepts: ask the queue once more.
		if l.SetDeadline(time.Now().Add(acceptMoment)) == nil {
			c, err = l.TCPListener.Accept()
		}
	}
	if err == nil || !l.draining.Load() {
		return c, err
	}
	l.once.Do(func() { close(l.drained) })
	return nil, net.ErrClosed
}

// Close closes the listener, which drain may have done: http.Server closes it
// too, and either order is right.
func (l *drainListener) Close() error {
	if err := l.TCPListener.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// drain lets Accept empty the queue, and closes the listener.
func (l *drainListener) drain() {
	now := time.Now()
	l.until.Store(now.Add(acceptLimit).UnixNano())
	l.draining.Store(true)
	if l.SetDeadline(now.Add(acceptGrace)) == nil {
		select {
		case <-l.drained:
		case <-time.After(acceptLimit + acceptGrace): // nobody accepts any more
		}
	}
	_ = l.Close()
}

// keeper holds the listener's certificate and keeps it fresh.
type keeper interface {
	// keep works until ctx ends.
	keep(ctx context.Context)
	// config is the listener's TLS.
	config() *tls.Config
}

// certReloader holds the listener's certificate and keeps it fresh. The
// zero value is not usable; see selfKeeper and fileKeeper.
type certReloader struct {
	current atomic.Pointer[tls.Certificate]
	load    func(context.Context) (*tls.Certificate, error)
	every   time.Duration // how often stale is asked
	stale   func(*tls.Certificate) bool
	logger  *slog.Logger
}

// newIssuedCert serves a certificate of the CA itself, renewed at half life.
func newIssuedCert(ctx context.Context, a *ca.Authority, host string, logger *slog.Logger) (*certReloader, error) {
	names, ips := []string{host}, []net.IP(nil)
	if addr, err := netip.ParseAddr(host); err == nil {
		names, ips = nil, []net.IP{addr.AsSlice()}
	}
	k := &certReloader{every: time.Minute, logger: logger}
	k.load = func(ctx context.Context) (*tls.Certificate, error) { return a.ServerCertificate(ctx, names, ips) }
	k.stale = func(c *tls.Certificate) bool {
		return c.Leaf == nil || time.Until(c.Leaf.NotAfter) < c.Leaf.NotAfter.Sub(c.Leaf.NotBefore)/2
	}
	return k, k.refresh(ctx)
}

// newFileCert serves the pair of two files, read again when either changes.
func newFileCert(ctx context.Context, cert, key string, logger *slog.Logger) (*certReloader, error) {
	k := &certReloader{every: 5 * time.Second, logger: logger}
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

func (k *certReloader) refresh(ctx context.Context) error {
	c, err := k.load(ctx)
	if err != nil {
		return fmt.Errorf("certificate of the listener: %w", err)
	}
	k.current.Store(c)
	return nil
}

// keep refreshes until ctx ends. A certificate that cannot be renewed is served
// on, and said.
func (k *certReloader) keep(ctx context.Context) {
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
func (k *certReloader) config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return k.current.Load(), nil },
	}
}
