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

// A listener that stops still accepts the connections in the kernel's queue, because
// closing would reset them. It does so for acceptGrace, and then until the queue was
// empty for acceptMoment or acceptLimit is over.
const (
	acceptGrace  = 100 * time.Millisecond
	acceptMoment = time.Millisecond
	acceptLimit  = time.Second
)

// drainListener accepts the connections in the kernel's queue before it closes.
type drainListener struct {
	*net.TCPListener
	draining atomic.Bool
	until    atomic.Int64  // Unix ns: the end of acceptLimit
	drained  chan struct{} // closed when Accept has returned its last connection
	once     sync.Once
}

// Accept implements net.Listener.
func (l *drainListener) Accept() (net.Conn, error) {
	c, err := l.TCPListener.Accept()
	if err != nil && l.draining.Load() && time.Now().Before(time.Unix(0, l.until.Load())) {
		// The deadline may have passed between two calls of Accept: try once more.
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

// Close closes the listener. It succeeds if drain or http.Server has closed the
// listener before.
func (l *drainListener) Close() error {
	if err := l.TCPListener.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// drain lets Accept empty the queue, then closes the listener.
func (l *drainListener) drain() {
	now := time.Now()
	l.until.Store(now.Add(acceptLimit).UnixNano())
	l.draining.Store(true)
	if l.SetDeadline(now.Add(acceptGrace)) == nil {
		select {
		case <-l.drained:
		case <-time.After(acceptLimit + acceptGrace): // no goroutine calls Accept
		}
	}
	_ = l.Close()
}

// keeper holds the listener's certificate and renews it.
type keeper interface {
	// keep renews the certificate until ctx ends.
	keep(ctx context.Context)
	// config returns the listener's TLS configuration.
	config() *tls.Config
}

// certReloader holds the listener's certificate and renews it. The zero value is not
// usable; see newIssuedCert and newFileCert.
type certReloader struct {
	current atomic.Pointer[tls.Certificate]
	load    func(context.Context) (*tls.Certificate, error)
	every   time.Duration // how often stale is called
	stale   func(*tls.Certificate) bool
	logger  *slog.Logger
}

// newIssuedCert returns a certificate of the CA itself, renewed at half its life.
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

// newFileCert returns the certificate in two files, which are read again when either
// changes.
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

// keep renews the certificate until ctx ends. A certificate that cannot be renewed
// stays in use, and the failure is logged.
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

// config returns a TLS configuration with TLS 1.3 only, which all clients support.
func (k *certReloader) config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return k.current.Load(), nil },
	}
}
