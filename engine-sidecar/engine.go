package sidecar

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/engine-sidecar/supervise"
)

// engine is what stands behind the socket: a supervise.Engine, or somebody
// else's.
type engine interface {
	// Ready returns when the engine answers, an error when it has ended or ctx
	// has.
	Ready(ctx context.Context) error
	// Done is closed when the engine has ended; ExitCode is its code then.
	Done() <-chan struct{}
	ExitCode() int
	Signal(sig os.Signal) error
	// Stop ends it in order, cutting the relays on the way.
	Stop(ctx context.Context, signals ...os.Signal) error
}

// startEngine starts what the configuration says.
func (s *sidecar) startEngine(ctx context.Context) (engine, error) {
	p := s.cfg.Program
	if len(p.Command) == 0 {
		return &foreignEngine{socket: s.cfg.EngineSocket, cut: s.cutForStop}, nil
	}
	started, err := supervise.Start(ctx, supervise.Options{
		Args: p.Command, Env: s.cfg.EngineEnv, Socket: s.cfg.EngineSocket, Probe: s.socket.probe,
		Isolate: !s.cfg.UnsafeNoIsolation, Hide: s.cfg.hidden(),
		Stdout: p.EngineOut, Stderr: p.EngineErr,
		Cut: s.cutForStop, Logger: s.log,
	})
	if err != nil {
		return nil, err // a nil *supervise.Engine is no nil engine
	}
	return started, nil
}

func (s *sidecar) cutForStop() { s.gate.CutAll(wire.ReasonDraining) }

// hidden are the paths that the engine must not see: the configured ones, the
// machine's API socket, and where a token file is.
func (c *Config) hidden() []string {
	hide := append([]string(nil), c.EngineHide...)
	folder := func(file string) {
		dir := filepath.Dir(filepath.Clean(file))
		if strings.Count(dir, "/") > 1 {
			hide = append(hide, dir)
		} else {
			hide = append(hide, file) // a folder like /tmp is the engine's too
		}
	}
	if c.FlyAPISocket != "" {
		folder(c.FlyAPISocket)
	}
	if file, ok := strings.CutPrefix(c.TokenSource, "file:"); ok && filepath.IsAbs(file) {
		folder(file)
	}
	return hide
}

// foreignEngine is one that something else runs, say another container that
// shares the socket's volume.
type foreignEngine struct {
	socket string
	cut    func()
}

func (f *foreignEngine) Ready(ctx context.Context) error {
	for {
		err := supervise.ProbeConnect.Ask(ctx, f.socket)
		if err == nil {
			return nil
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return fmt.Errorf("engine is not ready: %w", err)
		}
	}
}

func (f *foreignEngine) Done() <-chan struct{}  { return nil }
func (f *foreignEngine) ExitCode() int          { return 0 }
func (f *foreignEngine) Signal(os.Signal) error { return nil }

// Stop cuts the relays; the engine is not ours to end.
func (f *foreignEngine) Stop(context.Context, ...os.Signal) error {
	f.cut()
	return nil
}

// askAgainAfter is how long an answer of engineSocket.ask holds.
const askAgainAfter = 2 * time.Second

// engineSocket is the engine's unix socket.
type engineSocket struct {
	path  string
	probe supervise.Probe

	mu    sync.Mutex // held while the engine is asked
	asked time.Time  // when last answered; zero before
	err   error      // the last answer
}

// newEngineSocket returns the socket that c names, with its probe.
func newEngineSocket(c Config) *engineSocket {
	s := &engineSocket{path: c.EngineSocket}
	if c.EngineProbe == ProbeConnect {
		s.probe = supervise.ProbeConnect
	}
	return s
}

// ask returns nil while the engine answers on its socket, otherwise why not. An
// answer holds for askAgainAfter, and one probe runs at a time, so callers may be
// many and strangers. It blocks for 2 s at most, longer behind another's probe.
func (e *engineSocket) ask() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.asked.IsZero() || time.Since(e.asked) >= askAgainAfter {
		// Not the caller's context: the answer is for the others too.
		e.err = e.probe.Ask(context.Background(), e.path)
		e.asked = time.Now()
	}
	return e.err
}
