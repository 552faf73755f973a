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

// session is a connection to an engine, and what has to end with it.
type session struct {
	dag *dagger.Client
	// ctx ends with the tunnel: its cause is why the engine refused.
	ctx   context.Context
	close func()
}

// connect finds the engine: a runner host that somebody gave, a tunnel with a
// certificate minted for this run, or Dagger's own local engine.
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
	if o.runnerHost != "" && os.Getenv("DAGGER_SESSION_PORT") == "" { // `dagger run` has a session already
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

// openTunnel mints a certificate and serves a unix socket that only this user
// can open. A refusal of the engine ends ctx with its reason: the Dagger CLI by
// itself would try again in silence for ten minutes.
func openTunnel(ctx context.Context, cancel context.CancelCauseFunc, o options, progress io.Writer) (string, func(), error) {
	c, err := client.New(ctx, client.Config{
		Issuer: o.issuer, CAFile: o.caFile, TrustAnchor: o.trustAnchor, Engine: o.engine,
		Logger: slog.New(slog.NewTextHandler(progress, nil)),
	})
	if err != nil {
		return "", nil, err
	}
	// MkdirTemp makes it 0700.
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

// answers asks a runner host that is a socket whether anybody listens there:
// the Dagger CLI by itself would try again in silence for ten minutes.
func answers(ctx context.Context, host string) error {
	network, address, _ := strings.Cut(host, "://")
	if network != "unix" && network != "tcp" {
		return nil // the CLI's own drivers know what to say
	}
	conn, err := (&net.Dialer{Timeout: 15 * time.Second}).DialContext(ctx, network, address)
	if err != nil {
		return fmt.Errorf("no engine answers at %s: %w", withoutSecrets(host), err)
	}
	return conn.Close()
}

// missing says what a connection takes that this machine may lack. It begins
// with a line end, or is empty.
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
