package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"

	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/revocation"
)

// notReadyReason returns why clients are not admitted now, or "" when they
// are.
func (s *sidecar) notReadyReason() string {
	own := s.own.now.Load()
	switch {
	case own == nil:
		return "no certificate yet"
	case time.Now().After(own.Response.NotAfter):
		return "own certificate has expired"
	case s.checker.Revoked(revocation.CertificateOf(own.Chain())):
		return "server certificate is revoked"
	case s.checker.Stale():
		return "revocation feed is stale"
	case s.gate.Draining():
		return "stopping"
	case !s.listener.listening():
		return "not listening yet"
	}
	if err := s.socket.ask(); err != nil {
		return "the engine does not answer: " + err.Error()
	}
	return ""
}

// maxStatusConns bounds the connections of the status listener. Further ones
// wait.
const maxStatusConns = 64

// status serves /healthz, /readyz and /metrics until ctx ends.
func (s *sidecar) status(ctx context.Context, ln net.Listener) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if why := s.notReadyReason(); why != "" {
			http.Error(w, why, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	srv := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	// Build steps may reach this listener. They must not use up all
	// descriptors.
	if err := srv.Serve(netutil.LimitListener(ln, maxStatusConns)); err != nil && !errors.Is(err, http.ErrServerClosed) {
		s.log.Error("status listener", "error", err)
	}
}
