package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"dagger.io/dagger"

	"github.com/mayfly-ca/mayfly/client"
)

// session is a connection to an engine, with the function that closes it.
type session struct {
	dag *dagger.Client
	// ctx ends with the tunnel. Its cause is the engine's reason for a refusal.
	ctx   context.Context
	close func()
}

// connect returns a session with an engine: at the given runner host, through a
// tunnel with a certificate minted for this run, or with Dagger's own local engine.
func connect(ctx context.Context, o options, progress io.Writer) (*session, error) {
	fmt.Fprintf(progress, "engine: %s\n", describeEngine(o))
	ctx, cancel := context.WithCancelCause(ctx)
	closers := []func(){func() { cancel(nil) }}
	host := o.runnerHost
	if host == "" && o.issuer != "" {
		var err error
		var stop func()
		if host, stop, err = openTunnel(ctx, cancel, o, progress); err != nil {
			cancel(nil)
			return nil, err
		}
		closers = append(closers, stop)
	}
	if o.runnerHost != "" && os.Getenv("DAGGER_SESSION_PORT") == "" { // `dagger run` has opened a session already
		if err := answers(ctx, o.runnerHost); err != nil {
			cancel(nil)
			return nil, err
		}
	}
	clientOpts := []dagger.ClientOpt{dagger.WithLogOutput(progress)}
	if host != "" {
		clientOpts = append(clientOpts, dagger.WithRunnerHost(host))
	}
	s := &session{ctx: ctx, close: func() {
		for i := len(closers) - 1; i >= 0; i-- {
			closers[i]()
		}
	}}
	dag, err := dial(ctx, clientOpts...)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		s.close()
		return nil, fmt.Errorf("connect to the engine: %w%s", err, missing(o))
	}
	s.dag = dag
	closers = append(closers, func() { hangUp(dag) })
	return s, nil
}

// openTunnel mints a certificate and serves a unix socket that only this user can
// open. If the engine refuses, ctx ends with the reason. Otherwise the Dagger CLI
// would silently retry for ten minutes.
func openTunnel(ctx context.Context, cancel context.CancelCauseFunc, o options, progress io.Writer) (string, func(), error) {
	c, err := client.New(ctx, client.Config{
		Issuer: o.issuer, CAFile: o.caFile, TrustAnchor: o.trustAnchor, Engine: o.engine,
		Logger: slog.New(slog.NewTextHandler(progress, nil)),
	})
	if err != nil {
		return "", nil, err
	}
	// MkdirTemp creates it with mode 0700.
	dir, err := os.MkdirTemp("", "mayfly-pipeline-")
	if err != nil {
		return "", nil, errors.Join(err, c.Close())
	}
	socket := filepath.Join(dir, "engine.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return "", nil, errors.Join(err, c.Close(), os.RemoveAll(dir))
	}
	done := make(chan struct{})
	proxyCtx, stop := context.WithCancel(ctx)
	go func() {
		defer close(done)
		if err := c.Proxy(proxyCtx, listener); err != nil && proxyCtx.Err() == nil {
			cancel(err)
		}
	}()
	return "unix://" + socket, func() {
		stop()
		<-done
		if err := errors.Join(c.Close(), os.RemoveAll(dir)); err != nil {
			fmt.Fprintf(progress, "close the tunnel: %v\n", err)
		}
	}, nil
}

// answers checks that a program listens on a runner host that is a socket.
// Otherwise the Dagger CLI would silently retry for ten minutes.
func answers(ctx context.Context, host string) error {
	network, address, _ := strings.Cut(host, "://")
	if network != "unix" && network != "tcp" {
		return nil // the CLI's own drivers report their errors
	}
	conn, err := (&net.Dialer{Timeout: 15 * time.Second}).DialContext(ctx, network, address)
	if err != nil {
		return fmt.Errorf("no engine answers at %s: %w", withoutSecrets(host), err)
	}
	return conn.Close()
}

// missing returns a hint about what a connection needs and this machine may lack.
// The hint begins with a newline, or is empty.
func missing(o options) string {
	var lack string
	if os.Getenv("_EXPERIMENTAL_DAGGER_CLI_BIN") == "" && os.Getenv("DAGGER_SESSION_PORT") == "" {
		lack += "\n  Dagger's CLI of the SDK's version is downloaded, or set _EXPERIMENTAL_DAGGER_CLI_BIN to one (PATH is not searched)."
	}
	if o.runnerHost == "" && o.issuer == "" {
		lack += "\n  No engine was named: MAYFLY_ISSUER (then `mayfly login` on a laptop) or --runner-host; without, Dagger starts one in Docker here."
	}
	return lack
}

func describeEngine(o options) string {
	switch {
	case o.runnerHost != "":
		return "the one at " + withoutSecrets(o.runnerHost)
	case o.issuer != "":
		return "through a mayfly tunnel, with a certificate of " + withoutSecrets(o.issuer)
	}
	return "Dagger's own, on this machine"
}
