package supervise

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// childCommand is the hidden subcommand.
const childCommand = "__engine"

// childLink is the child's descriptor of the connection to the sidecar.
const childLink = 3

// replyTimeout bounds the wait for the child's reply, which takes a few mounts
// and a fork.
const replyTimeout = 20 * time.Second

// IsChild reports whether args (os.Args[1:]) are the hidden subcommand. A
// program that calls Start must pass it to Child before anything else.
func IsChild(args []string) bool { return len(args) == 1 && args[0] == childCommand }

// Engine is a started engine. Its goroutines end with it.
type Engine struct {
	opts    Options
	log     *slog.Logger
	process *os.Process // the child; its end ends an isolated engine's PID namespace
	notify  *net.UnixConn
	ready   chan struct{} // closed at READY=1
	done    chan struct{}
	code    int // valid after done
	stop    sync.Once
	ended   sync.WaitGroup
	cgroup  *engineCgroup // of an isolated engine; nil if it has none
}

// Start starts the engine and returns once it runs. Ready waits until it
// answers. ctx bounds the start, not the engine's life. A failure to isolate
// is an *IsolationError.
func Start(ctx context.Context, o Options) (*Engine, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	e, err := startChild(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("start engine %q: %w", o.Args[0], err)
	}
	return e, nil
}

func startChild(ctx context.Context, o Options) (*Engine, error) {
	env, dropped, err := environment(o.Env, o.Withhold, os.Environ())
	if err != nil {
		return nil, err
	}
	if o.Isolate && os.Geteuid() != 0 {
		return nil, &IsolationError{Op: "namespaces", Err: os.ErrPermission}
	}
	e := &Engine{opts: o, log: o.logger(), ready: make(chan struct{}), done: make(chan struct{})}
	if e.notify, err = listenNotify(); err != nil {
		return nil, err
	}
	if o.Isolate {
		if e.cgroup, err = newEngineCgroup(cgroupRoot); err != nil {
			e.log.Info("the engine shares the sidecar's cgroup", "reason", err)
		}
	}
	env = append(env, notifyVariable+"="+e.notify.LocalAddr().String())
	e.ended.Go(e.readNotify)
	if len(dropped) > 0 {
		e.log.Info("variables that the engine does not get", "names", dropped)
	}
	started := make(chan error, 1)
	go e.run(ctx, env, started)
	if err := <-started; err != nil {
		<-e.done
		return nil, err
	}
	e.log.Info("engine started", "command", o.Args[0], "pid", e.process.Pid, "isolated", o.Isolate)
	return e, nil
}

// run owns the child from its start to its end. The parent-death signal is
// tied to the thread that forks, so run keeps that thread until the end.
func (e *Engine) run(ctx context.Context, env []string, started chan<- error) {
	runtime.LockOSThread()
	defer close(e.done)
	defer e.cleanCgroups()
	defer e.ended.Wait()
	defer e.notify.Close()
	cmd, link, err := e.spawn(env)
	if err != nil {
		started <- err
		return
	}
	defer link.Close()
	if e.cgroup != nil {
		err = e.cgroup.add(cmd.Process.Pid)
	}
	if err == nil {
		err = e.sendSpec(ctx, link)
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		started <- err
		return
	}
	e.process = cmd.Process
	started <- nil
	_ = cmd.Wait() // the process state has the result
	e.code = exitCode(cmd.ProcessState.Sys().(syscall.WaitStatus))
	e.log.Info("engine ended", "exit_code", e.code)
}

// cleanCgroups removes the cgroup of an isolated engine.
func (e *Engine) cleanCgroups() {
	if e.cgroup != nil {
		e.cgroup.remove()
	}
}

// spawn executes this program again as the child, with one end of a socket
// pair. When the pair closes, the child knows that the sidecar is gone.
func (e *Engine) spawn(env []string) (*exec.Cmd, *net.UnixConn, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, fmt.Errorf("find own program: %w", err)
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	cmd := exec.Command(self, childCommand)
	cmd.Env = env
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{theirs}
	// For a writer of another type than *os.File, os/exec makes a pipe. So the
	// engine never holds the sidecar's terminal.
	cmd.Stdout, cmd.Stderr = output{e.opts.Stdout}, output{e.opts.Stderr}
	cmd.WaitDelay = 2 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if e.opts.Isolate {
		// The namespace dies with its first process. Without one, the child must
		// survive to kill the engine, when the connection closes.
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC
	}
	if err := cmd.Start(); err != nil {
		ours.Close()
		if e.opts.Isolate {
			return nil, nil, &IsolationError{Op: "namespaces", Err: err}
		}
		return nil, nil, err
	}
	return cmd, ours, nil
}

// sendSpec sends the spec to the child and waits for the reply.
func (e *Engine) sendSpec(ctx context.Context, link *net.UnixConn) error {
	_ = link.SetDeadline(time.Now().Add(replyTimeout))
	defer context.AfterFunc(ctx, func() { _ = link.SetDeadline(time.Unix(1, 0)) })()
	orders := e.opts.spec()
	orders.Cgroup = e.cgroup != nil
	line, err := json.Marshal(orders)
	if err != nil {
		return fmt.Errorf("brief the engine's child: %w", err)
	}
	if _, err := link.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("brief the engine's child: %w", err)
	}
	var r reply
	answer, err := bufio.NewReader(io.LimitReader(link, maxLine)).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(answer, &r)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, io.EOF):
		return errors.New("the child ended without a word (does the program call supervise.Child?)")
	case err != nil:
		return err
	case r.Error != "" && r.Op != "":
		return &IsolationError{Op: r.Op, Err: errors.New(r.Error)}
	case r.Error != "":
		return errors.New(r.Error)
	}
	_ = link.SetDeadline(time.Time{})
	return nil
}

// Ready returns nil once the engine answers on its socket, an *ExitError if it
// ends first, or ctx's error with the last cause.
func (e *Engine) Ready(ctx context.Context) error {
	told := e.ready
	// An attempt costs microseconds, and a longer wait would delay each start
	// of the machine.
	for wait := 2 * time.Millisecond; ; wait = min(wait+wait/4, 25*time.Millisecond) {
		err := e.opts.Probe.Ask(ctx, e.opts.Socket)
		if err == nil {
			return nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-e.done:
			timer.Stop()
			return &ExitError{Code: e.code}
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("engine is not ready: %w: %w", ctx.Err(), err)
		case <-told: // READY=1: probe at once, then by the timer
			told = nil
		case <-timer.C:
		}
		timer.Stop()
	}
}

// Done is closed when the engine and everything that it started in its
// namespace have ended.
func (e *Engine) Done() <-chan struct{} { return e.done }

// ExitCode waits for the engine's end and returns its exit code, 128 + signal
// when a signal ended it.
func (e *Engine) ExitCode() int {
	<-e.done
	return e.code
}

// Signal sends a signal to the engine. It returns nil when the engine has
// ended.
func (e *Engine) Signal(sig os.Signal) error {
	if err := e.process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal engine: %w", err)
	}
	return nil
}

// Stop stops the engine: it sends the first of signals, or SIGTERM without
// any, calls Options.Cut, and waits. When ctx ends first, it kills the engine
// and returns ErrKilled. Of several calls only one signals and cuts, since a
// third signal makes Dagger quit at once. All calls wait.
func (e *Engine) Stop(ctx context.Context, signals ...os.Signal) error {
	e.stop.Do(func() {
		var sig os.Signal = syscall.SIGTERM
		if len(signals) > 0 {
			sig = signals[0]
		}
		e.log.Info("engine stopping", "signal", sig.String())
		if err := e.Signal(sig); err != nil {
			e.log.Warn("engine not signalled", "error", err)
		}
		after := e.opts.CutAfter
		if after == 0 {
			after = DefaultCutAfter
		}
		timer := time.NewTimer(after)
		defer timer.Stop()
		select {
		case <-e.done:
			return
		case <-ctx.Done():
		case <-timer.C:
		}
		if e.opts.Cut != nil {
			e.opts.Cut()
		}
	})
	select {
	case <-e.done:
		return nil
	case <-ctx.Done():
	}
	return e.Kill()
}

// Kill kills the engine and all that it started, and waits for their end. It
// returns ErrKilled, or nil when the engine had already ended.
func (e *Engine) Kill() error {
	select {
	case <-e.done:
		return nil
	default:
	}
	_ = e.process.Kill()
	<-e.done
	return ErrKilled
}

// readNotify reads the engine's notifications until the socket is closed. They
// only trigger the next probe, since any process in the engine's network
// namespace could forge them.
func (e *Engine) readNotify() {
	buf := make([]byte, 4096)
	var once sync.Once
	for {
		n, err := e.notify.Read(buf)
		if err != nil {
			return
		}
		if isReady(buf[:n]) {
			once.Do(func() { close(e.ready) })
		}
	}
}

// output hides the type of w. A nil w discards.
type output struct{ w io.Writer }

// Write implements io.Writer. It never fails, so that a reader that went away
// does not stop the engine.
func (o output) Write(p []byte) (int, error) {
	if o.w != nil {
		_, _ = o.w.Write(p)
	}
	return len(p), nil
}

func exitCode(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}
