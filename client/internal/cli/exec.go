package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The variables in which Dagger and BuildKit look for the engine's address.
const (
	daggerVariable   = "_EXPERIMENTAL_DAGGER_RUNNER_HOST"
	buildkitVariable = "BUILDKIT_HOST"
)

// killAfter is how long a command may take to end after SIGTERM.
const killAfter = 5 * time.Second

type execCommand struct {
	tunnelFlags
	Listen  string   `help:"Where the tunnel begins: unix:PATH, or tcp:127.0.0.1:0 for tools without unix sockets. Default: a socket in a folder of its own." placeholder:"ADDRESS"`
	NoWait  bool     `help:"Run the command at once: its first connection wakes the engine. Default: the command is run when the engine is awake."`
	Command []string `arg:"" optional:"" passthrough:"" help:"The command and its arguments."`
}

func (execCommand) Help() string {
	return `Gets a certificate with the job's own ID token, wakes the engine, and runs the command with ` + daggerVariable + ` and ` + buildkitVariable + ` set to a tunnel that leads there. The key stays in memory; the certificate is renewed for as long as the command runs.

The command has mayfly's stdin, stdout and stderr. Signals are passed on, and so is the exit code. When the engine refuses for good, or an admin revokes the certificate, the reason is printed and the command is ended (SIGTERM, SIGKILL after 5 s): exit code 5. Without that, Dagger's client would try again in silence for ten minutes. When the policy denies the job (exit code 3), the rule that would admit it is printed.

Examples:

	mayfly exec -- dagger call test
	mayfly exec --engine arm64 -- buildctl build --frontend dockerfile.v0 --local context=. --local dockerfile=.`
}

// Run runs the command.
func (c *execCommand) Run(ctx context.Context, p *program) error {
	argv := c.Command
	if len(argv) > 0 && argv[0] == "--" {
		argv = argv[1:]
	}
	if len(argv) == 0 {
		return usagef("name one after --: mayfly exec -- dagger call test", "there is no command to run")
	}
	path, err := exec.LookPath(argv[0])
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return failf(exitFailed, "install it, or give its path", "there is no program %s in PATH", argv[0])
	case err != nil:
		return failf(exitFailed, "give the path of a program that can be run", "%w", err)
	}
	if os.Getenv("DAGGER_SESSION_PORT") != "" {
		p.warn("DAGGER_SESSION_PORT is set: a Dagger program uses that session and not this tunnel")
	}
	setup, stop := interruptible(ctx)
	defer stop()
	t, ln, cleanup, err := p.enter(setup, c.tunnelFlags, c.Listen)
	if err != nil {
		return err
	}
	if !c.NoWait {
		if _, err := t.wake(setup); err != nil {
			return errors.Join(err, ln.Close(), t.client.Close(), cleanup())
		}
	}
	end := t.serve(ctx, ln)
	err = c.command(p, path, argv, host(ln)).run(ctx, t, func() error {
		defer stop()
		return setup.Err()
	})
	if err := errors.Join(end(), cleanup()); err != nil {
		p.warn("%v", err)
	}
	return err
}

// enter listens and then obtains the certificate, so that no certificate is
// issued if the address is not available. cleanup removes the files of the listener.
func (p *program) enter(ctx context.Context, f tunnelFlags, spec string) (*tunnel, net.Listener, func() error, error) {
	ln, cleanup, err := p.listen(spec)
	if err != nil {
		return nil, nil, nil, err
	}
	t, err := p.open(ctx, f)
	if err != nil {
		return nil, nil, nil, errors.Join(err, ln.Close(), cleanup())
	}
	return t, ln, cleanup, nil
}

// listen makes a tunnel's listener: at spec, or at a socket in a new folder.
func (p *program) listen(spec string) (net.Listener, func() error, error) {
	if spec != "" {
		ln, err := listen(spec)
		if err != nil {
			return nil, nil, usagef("give --listen unix:PATH or tcp:127.0.0.1:0", "listen: %w", err)
		}
		if _, tcp := ln.(*loopbackListener); tcp && !loopbackKnowsUsers {
			p.warn("any user of this machine can use a TCP port: prefer --listen unix:PATH")
		}
		return ln, func() error { return nil }, nil
	}
	folder, err := newRunFolder()
	if err != nil {
		return nil, nil, failf(exitFailed, "the folder for temporary files must be writable: set TMPDIR, or give --listen unix:PATH", "%w", err)
	}
	ln, err := listenUnix(folder.socket())
	if err != nil {
		return nil, nil, failf(exitFailed, "set TMPDIR to a folder in which sockets can be made, or give --listen unix:PATH", "listen: %w", errors.Join(err, folder.Close()))
	}
	return ln, folder.Close, nil
}

// child is a command that runs under a tunnel.
type child struct {
	p   *program
	cmd *exec.Cmd
	// group reports whether the command leads its own process group, which gets the signals.
	group bool
}

func (c *execCommand) command(p *program, path string, argv []string, host string) *child {
	cmd := exec.Command(path, argv[1:]...)
	cmd.Args[0] = argv[0]
	cmd.Env = withVariables(os.Environ(), daggerVariable+"="+host, buildkitVariable+"="+host)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.in, p.out, p.err
	cmd.WaitDelay = 2 * time.Second
	// On a terminal the command stays in mayfly's group. The shell moves that group
	// to the foreground and the terminal signals it. Elsewhere the command gets its
	// own group, so that its child processes end with it.
	own := !onTerminal()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: own}
	dieWithParent(cmd.SysProcAttr)
	return &child{p: p, cmd: cmd, group: own}
}

// onTerminal reports whether a standard stream is a terminal.
func onTerminal() bool {
	_, found := foreground()
	return found
}

// foreground returns the process group to which the terminal sends its signals.
func foreground() (group int, found bool) {
	for _, f := range []*os.File{os.Stdin, os.Stdout, os.Stderr} {
		if group, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP); err == nil {
			return group, true
		}
	}
	return 0, false
}

// withVariables returns env with the variables in set added or replaced.
func withVariables(env []string, set ...string) []string {
	var out []string
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		keep := true
		for _, s := range set {
			keep = keep && !strings.HasPrefix(s, name+"=")
		}
		if keep {
			out = append(out, kv)
		}
	}
	return append(out, set...)
}

// forwardedSignals are the signals that mayfly passes on to the command.
var forwardedSignals = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}

// jobControl are the signals that mayfly also passes on to a separate group. In
// the foreground group, the terminal stops and continues all processes.
var jobControl = []os.Signal{syscall.SIGTSTP, syscall.SIGCONT}

// run runs the command until it or the tunnel ends. It calls takeOver once it
// receives the signals; takeOver returns an error if a signal came earlier. So no
// signal is lost, and none ends mayfly without its cleanup.
func (c *child) run(ctx context.Context, t *tunnel, takeOver func() error) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, forwardedSignals...)
	if c.group {
		signal.Notify(signals, jobControl...)
	}
	defer signal.Stop(signals)
	if err := takeOver(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	started := make(chan error, 1)
	go func() { ended <- startAndWait(c.cmd, started) }()
	if err := <-started; err != nil {
		<-ended
		return failf(exitFailed, "give a program that can be run on this machine", "%w", err)
	}
	refused := exitOK
	var kill <-chan time.Time
	stop := func() {
		c.send(syscall.SIGTERM)
		kill = time.After(killAfter)
	}
	for {
		select {
		case err := <-ended:
			if c.group && kill != nil {
				c.send(syscall.SIGKILL) // child processes of the command may still run
			}
			if refused != exitOK {
				return commandStatus(refused)
			}
			return c.refusalOrStatus(c.status(err), t.refusal())
		case s := <-signals:
			c.pass(s.(syscall.Signal))
		case err := <-t.final:
			// Print the reason before the command ends, because the command may then
			// print a lot.
			f := c.p.located(t.explain(err))
			refused = f.code
			c.p.fail(f)
			c.p.note("ending the command")
			stop()
		case <-ctx.Done():
			if kill == nil {
				stop()
			}
			ctx = context.WithoutCancel(ctx)
		case <-kill:
			c.send(syscall.SIGKILL)
		}
	}
}

// pass passes a signal on, unless the terminal has sent it to the whole foreground
// group already. A group that a shell started with & is not in the foreground.
func (c *child) pass(s syscall.Signal) {
	if !c.group && (s == syscall.SIGINT || s == syscall.SIGQUIT) {
		if group, _ := foreground(); group == unix.Getpgrp() {
			return
		}
	}
	c.send(s)
	if s == syscall.SIGTSTP {
		syscall.Kill(os.Getpid(), syscall.SIGSTOP) // until SIGCONT, which mayfly passes on too
	}
}

func (c *child) send(s syscall.Signal) {
	pid := c.cmd.Process.Pid
	if c.group {
		syscall.Kill(-pid, s)
		return
	}
	c.cmd.Process.Signal(s)
}

// refusalOrStatus returns the refusal, if any, when the command failed. After a
// success it only warns of the refusal.
func (c *child) refusalOrStatus(status, refusal error) error {
	switch {
	case refusal == nil:
		return status
	case status == nil:
		c.p.warn("%s", explain(refusal).what)
		return nil
	}
	return refusal
}

// status returns how the command ended, with the exit code that a shell would give.
func (c *child) status(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
			return failf(exitFailed, "the command's own output may say more", "wait for the command: %w", err)
		}
		return nil
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		c.p.note("the command was killed by signal %d (%s)", int(ws.Signal()), fmt.Sprint(ws.Signal()))
		return commandStatus(128 + int(ws.Signal()))
	}
	return commandStatus(exit.ExitCode())
}
