package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// stack holds everything that a run has started, in order. close ends it in the
// reverse order and removes the files that the run wrote.
type stack struct {
	options  options
	report   *report
	dir      string // 0700; the user's with --keep, else temporary
	settings settings

	tools     tools
	engine    engine
	providers *providers
	issuer    *daemon
	issuerURL string
	caFile    string
	machine   *machine

	closers []func() error
}

// newStack returns a run before its first step. On an error it leaves nothing
// behind.
func newStack(o options, r *report) (*stack, error) {
	from, err := loadSettings(o.config)
	if err != nil {
		return nil, err
	}
	s := &stack{options: o, report: r, dir: o.dir, settings: from}
	if o.dir != "" {
		return s, s.takeDir()
	}
	if s.dir, err = os.MkdirTemp("", ownName); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, func() error { return os.RemoveAll(s.dir) })
	return s, nil
}

// takeDir makes --dir and this run's folder in it, which close removes. The user's
// folder stays, without anything of this run.
func (s *stack) takeDir() error {
	abs, err := filepath.Abs(s.options.dir)
	if err != nil {
		return err
	}
	s.options.dir = abs
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(abs, 0o700); err != nil {
		return err
	}
	state := filepath.Join(abs, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		return remedy(err, "another run has this folder, or was killed in it: end it and remove "+state)
	}
	s.dir = state
	env := filepath.Join(abs, "env")
	s.closers = append(s.closers, func() error {
		return errors.Join(os.RemoveAll(state), removeIfThere(env))
	})
	// The file of a killed run would mean too early that all servers answer.
	return removeIfThere(env)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (s *stack) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

func (s *stack) program(name string) string { return filepath.Join(s.tools.bin, name) }

func (s *stack) close() error {
	var all error
	for i := len(s.closers) - 1; i >= 0; i-- {
		all = errors.Join(all, s.closers[i]())
	}
	return all
}

// buildTools is the step "tools".
func (s *stack) buildTools(ctx context.Context) (string, error) {
	module, err := moduleDir(ctx)
	if err != nil {
		return "", err
	}
	if s.options.engine == "buildkit" {
		if s.tools, err = buildEngine(ctx, module, s.dir, s.report); err != nil {
			return "", err
		}
		if err := demoContext(ctx, module, s.path("context")); err != nil {
			return "", err
		}
	}
	if s.tools.bin = os.Getenv(programsVariable); s.tools.bin == "" {
		s.tools.bin = s.path("bin")
		s.report.say("mayfly, mayfly-issuer, mayfly-sidecar")
		if err := buildPrograms(ctx, module, s.tools.bin); err != nil {
			return "", err
		}
	}
	if s.engine, err = engineFor(s.options, s.tools, s.dir); err != nil {
		return "", err
	}
	s.closers = append(s.closers, s.engine.clean)
	if s.options.engine != "buildkit" {
		return "mayfly's programs; the engine is " + s.engine.command[0], nil
	}
	return "buildkitd, buildctl, " + s.tools.seccomp, nil
}

// startProviders is the step "oidc".
func (s *stack) startProviders(context.Context) (string, error) {
	p, err := newProviders(s.settings)
	if err != nil {
		return "", err
	}
	s.providers = p
	s.closers = append(s.closers, func() error { p.close(); return nil })
	s.settings.useProviders(p.issuers())
	return fmt.Sprintf("GitHub at %s, Fly at %s, staff at %s", p.github.URL(), p.fly.URL(), p.staff.URL()), nil
}

// startIssuer is the step "issuer": init as an operator runs it, then serve.
func (s *stack) startIssuer(ctx context.Context) (string, error) {
	addr, err := freePort()
	if err != nil {
		return "", err
	}
	engineAddr, err := freePort()
	if err != nil {
		return "", err
	}
	s.issuerURL = "https://" + addr
	args := []string{"init", "--dir", s.path("ca"), "--trust-domain", s.settings.trustDomain(), "--issuer-url", s.issuerURL}
	for _, name := range s.settings.serverNames() {
		args = append(args, "--engine-dns", name)
	}
	if out, err := s.issuerCommand(ctx, args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("mayfly-issuer init: %w\n%s", err, out)
	}
	online := s.path("ca", "issuer")
	s.caFile = filepath.Join(online, "root.crt")
	s.settings.useIssuer(addr, s.issuerURL, online)
	s.settings.useEndpoint("tcp://" + engineAddr)
	if err := s.settings.write(online); err != nil {
		return "", err
	}
	config := filepath.Join(online, "issuer.yaml")
	if s.settings.foreignStore() {
		if out, err := s.issuerCommand(ctx, "store", "create", "--config", config).CombinedOutput(); err != nil {
			return "", remedy(fmt.Errorf("mayfly-issuer store create: %w\n%s", err, out), "the store of --config must be empty: it belongs to this run's new CA")
		}
	}
	s.closers = append(s.closers, func() error {
		if s.issuer == nil {
			return nil
		}
		return s.issuer.stop()
	})
	s.machine = &machine{addr: engineAddr}
	if err := s.serveIssuer(ctx); err != nil {
		return "", err
	}
	return s.issuerURL + ", trust domain " + s.settings.trustDomain(), nil
}

// serveIssuer starts the issuer and waits until it is ready.
func (s *stack) serveIssuer(ctx context.Context) error {
	cmd := s.issuerCommand(context.WithoutCancel(ctx), "serve", "--config", filepath.Join(filepath.Dir(s.caFile), "issuer.yaml"))
	var err error
	if s.issuer, err = startDaemon("issuer", cmd, s.path("issuer.log")); err != nil {
		return err
	}
	return s.issuerReady(ctx)
}

// restartIssuer starts the issuer until it stays up, or ctx ends.
func (s *stack) restartIssuer(ctx context.Context) error {
	for {
		err := errors.Join(s.issuer.stop(), s.serveIssuer(ctx))
		if err == nil || ctx.Err() != nil {
			return nil
		}
		s.report.say("%v", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(2 * time.Second):
		}
	}
}

func (s *stack) issuerCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.program("mayfly-issuer"), args...)
	cmd.Env = s.commandEnv()
	return cmd
}

// issuerReady waits until the issuer reports that it is ready.
func (s *stack) issuerReady(ctx context.Context) error {
	httpClient, err := s.httpClient()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var last error
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.issuerURL+"/readyz", nil)
		if err != nil {
			return err
		}
		res, err := httpClient.Do(req)
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("GET /readyz: %s", res.Status)
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-s.issuer.done:
			return fmt.Errorf("mayfly-issuer serve ended: %v", s.issuer.err)
		case <-ctx.Done():
			return fmt.Errorf("the issuer is not ready: %w", last)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// admin runs an admin's command with a fresh login.
func (s *stack) admin(ctx context.Context, args ...string) ([]byte, error) {
	token, err := s.providers.adminToken()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, s.program("mayfly"), args...)
	cmd.Env = append(s.commandEnv(), "MAYFLY_ISSUER="+s.issuerURL, "MAYFLY_CA_FILE="+s.caFile, "MAYFLY_ADMIN_TOKEN="+token)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("mayfly %s: %w\n%s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// commandEnv returns the environment of every program here. It has none of the
// caller's own mayfly, GitHub or Fly variables.
func (s *stack) commandEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		foreign := false
		for _, prefix := range []string{"MAYFLY_", "ACTIONS_", "GITHUB_", "RUNNER_", "FLY_", "BUILDKIT_", "_EXPERIMENTAL_DAGGER_RUNNER"} {
			foreign = foreign || strings.HasPrefix(name, prefix)
		}
		if !foreign {
			env = append(env, kv)
		}
	}
	return env
}

// withLogs adds the last lines of the daemons' logs to an error.
func (s *stack) withLogs(err error) error {
	var b strings.Builder
	for _, name := range []string{"issuer", "machine"} {
		data, readErr := os.ReadFile(s.path(name + ".log"))
		if readErr != nil || len(data) == 0 {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		fmt.Fprintf(&b, "\n%s said last:\n  %s", name, strings.Join(lines[max(0, len(lines)-8):], "\n  "))
	}
	if b.Len() == 0 {
		return err
	}
	return fmt.Errorf("%w%s", err, b.String())
}

// freePort returns a port that is currently free on loopback.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// daemon is a program that runs until stop.
type daemon struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // valid after done
	once sync.Once
	log  *os.File
}

// startDaemon runs cmd with its output in a file. The program dies with this
// process.
func startDaemon(name string, cmd *exec.Cmd, logPath string) (*daemon, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = ownGroup()
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), log.Close())
	}
	d := &daemon{cmd: cmd, done: make(chan struct{}), log: log}
	go func() {
		d.err = cmd.Wait()
		close(d.done)
	}()
	return d, nil
}

// stop asks the program to end, and kills it after ten seconds.
func (d *daemon) stop() error {
	d.once.Do(func() {
		_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
		select {
		case <-d.done:
		case <-time.After(10 * time.Second):
			_ = d.cmd.Process.Kill()
			<-d.done
		}
	})
	return d.log.Close()
}
