package sidecar

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/supervise"
)

// engine is the engine behind the socket: a supervise.Engine, or an
// externalEngine.
type engine interface {
	// Ready returns nil when the engine answers, or an error when the engine
	// or ctx has ended.
	Ready(ctx context.Context) error
	// Done is closed when the engine has ended. ExitCode is valid after that.
	Done() <-chan struct{}
	ExitCode() int
	Signal(sig os.Signal) error
	// Stop stops the engine and cuts the relays.
	Stop(ctx context.Context, signals ...os.Signal) error
}

// startEngine starts the configured engine.
func (s *sidecar) startEngine(ctx context.Context) (engine, error) {
	p := s.cfg.Program
	if len(p.Command) == 0 {
		return &externalEngine{socket: s.cfg.EngineSocket, cut: s.cutForStop}, nil
	}
	var hide, withhold []string
	if name, ok := strings.CutPrefix(s.cfg.TokenSource, "env:"); ok {
		withhold = []string{name}
	}
	if !s.cfg.UnsafeNoIsolation {
		var err error
		if hide, err = s.cfg.hidden(); err != nil {
			return nil, err
		}
	}
	started, err := supervise.Start(ctx, supervise.Options{
		Args: p.Command, Env: s.cfg.EngineEnv, Withhold: withhold, Socket: s.cfg.EngineSocket, Probe: s.socket.probe,
		Isolate: !s.cfg.UnsafeNoIsolation, Hide: hide,
		Stdout: p.EngineOut, Stderr: p.EngineErr,
		Cut: s.cutForStop, Logger: s.log,
	})
	if err != nil {
		return nil, err // a nil *supervise.Engine is not a nil engine
	}
	return started, nil
}

func (s *sidecar) cutForStop() { s.gate.CutAll(wire.ReasonDraining, "") }

// hidden returns the paths to hide from the engine: the configured ones, and
// the folders of the machine's API socket and of a token file. It returns
// folders because a mount over a file is lost when the file is replaced. A
// token file that cannot be hidden is an error.
func (c *Config) hidden() ([]string, error) {
	hide := slices.Clone(c.EngineHide)
	if c.FlyAPISocket != "" {
		folders, err := c.foldersToHide(c.FlyAPISocket)
		if err != nil {
			return nil, fmt.Errorf("fly_api_socket: %w", err)
		}
		hide = append(hide, folders...)
	}
	if file, ok := strings.CutPrefix(c.TokenSource, "file:"); ok {
		folders, err := c.foldersToHide(file)
		if err == nil {
			_, err = os.Stat(folders[0]) // a missing folder cannot be hidden
		}
		if err != nil {
			return nil, fmt.Errorf("token_source: %w", err)
		}
		hide = append(hide, folders...)
	}
	return hide, nil
}

// foldersToHide returns the folder of file and, if file is a link, the folder
// of its target.
func (c *Config) foldersToHide(file string) ([]string, error) {
	file, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	folders := []string{filepath.Dir(file)}
	if target, err := filepath.EvalSymlinks(file); err == nil && filepath.Dir(target) != folders[0] {
		folders = append(folders, filepath.Dir(target))
	}
	for _, folder := range folders {
		if why := c.engineNeeds(folder); why != "" {
			return nil, fmt.Errorf("%s cannot be hidden from the engine, because %s: put it in a folder of its own", file, why)
		}
	}
	return folders, nil
}

// systemFolders are folders that all programs of a machine share.
var systemFolders = []string{
	"/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/proc", "/root", "/run",
	"/sbin", "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/run", "/var/tmp", "/usr/bin", "/usr/local", "/usr/local/bin",
}

// engineNeeds returns why the engine needs folder, or "" when no reason is
// known.
func (c *Config) engineNeeds(folder string) string {
	inside := strings.TrimSuffix(folder, "/") + "/"
	switch {
	case slices.Contains(systemFolders, folder):
		return folder + " belongs to the system"
	case strings.HasPrefix(filepath.Clean(c.EngineSocket), inside):
		return "engine_socket is in " + folder
	case slices.ContainsFunc(c.Program.Command, func(arg string) bool { return strings.Contains(arg, inside) }):
		return "the engine's command names " + folder
	}
	return ""
}

// externalEngine is an engine that another program runs, for example a
// container that shares the socket's volume.
type externalEngine struct {
	socket string
	cut    func()
}

func (f *externalEngine) Ready(ctx context.Context) error {
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

func (f *externalEngine) Done() <-chan struct{}  { return nil }
func (f *externalEngine) ExitCode() int          { return 0 }
func (f *externalEngine) Signal(os.Signal) error { return nil }

// Stop cuts the relays. It does not end the engine.
func (f *externalEngine) Stop(context.Context, ...os.Signal) error {
	f.cut()
	return nil
}

// askAgainAfter is how long a result of engineSocket.ask is valid.
const askAgainAfter = 2 * time.Second

// engineSocket is the engine's unix socket.
type engineSocket struct {
	path  string
	probe supervise.Probe

	mu    sync.Mutex // held during a probe
	asked time.Time  // time of the last result; zero before the first
	err   error      // the last result
}

// newEngineSocket returns the socket that c names, with its probe.
func newEngineSocket(c Config) *engineSocket {
	s := &engineSocket{path: c.EngineSocket}
	if c.EngineProbe == ProbeConnect {
		s.probe = supervise.ProbeConnect
	}
	return s
}

// ask returns nil while the engine answers on its socket, otherwise the
// reason. A result is valid for askAgainAfter, and one probe runs at a time,
// so many untrusted callers do no harm. It blocks for 2 s at most, longer
// behind another probe.
func (e *engineSocket) ask() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.asked.IsZero() || time.Since(e.asked) >= askAgainAfter {
		// Not the caller's context: other callers share the result.
		e.err = e.probe.Ask(context.Background(), e.path)
		e.asked = time.Now()
	}
	return e.err
}
