package supervise

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exit codes of a child that did not start the engine, or lost its sidecar.
// The sidecar reads the reply, not these codes.
const (
	exitNotStarted = 125
	exitAbandoned  = 128 + int(syscall.SIGKILL)
)

// forwarded are the signals that the child forwards. SIGKILL and SIGSTOP
// cannot be caught. The sidecar sends an engine no other signals.
var forwarded = []os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM,
	syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGCONT, syscall.SIGWINCH,
}

// Child runs the hidden subcommand: the first process of the engine's
// namespaces. It returns the process's exit code.
func Child(args []string) int {
	if !IsChild(args) {
		fmt.Fprintln(os.Stderr, "supervise: not the hidden subcommand")
		return exitNotStarted
	}
	// The engine's parent-death signal is tied to this thread.
	runtime.LockOSThread()
	link := os.NewFile(childLink, "sidecar")
	// Catch signals before the sidecar learns that the child runs, so that
	// none is lost: the first process of a PID namespace ignores uncaught
	// signals.
	signals := make(chan os.Signal, 32)
	signal.Notify(signals, forwarded...)
	s, err := readSpec(link)
	if err != nil {
		return refuse(link, "", err)
	}
	if err := closeOnExecAll(); err != nil {
		return refuse(link, "drop descriptors", err)
	}
	if s.Isolate {
		if op, err := isolate(s.Hide); err != nil {
			return refuse(link, op, err)
		}
		if s.Cgroup {
			if err := enterCgroupNamespace(); err != nil {
				return refuse(link, "cgroup namespace", err)
			}
		}
	} else if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return refuse(link, "", fmt.Errorf("become subreaper: %w", err))
	}
	pid, err := launch(s.Args)
	if err != nil {
		return refuse(link, "", err)
	}
	if err := answer(link, reply{}); err != nil {
		return abandon(s.Isolate)
	}
	return waitEngine(s.Isolate, pid, link, signals)
}

// waitEngine forwards signals to the engine and reaps children until the
// engine has ended or the sidecar is gone.
func waitEngine(isolated bool, pid int, link io.Reader, signals <-chan os.Signal) int {
	ended := make(chan int, 1)
	go func() { ended <- reapUntil(pid) }()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, link)
	}()
	for {
		select {
		case sig := <-signals:
			_ = syscall.Kill(pid, sig.(syscall.Signal))
		case code := <-ended:
			if !isolated {
				killDescendants()
			}
			return code // the kernel then kills the rest of the namespace
		case <-gone:
			return abandon(isolated)
		}
	}
}

// abandon kills everything at once, because the sidecar is gone.
func abandon(isolated bool) int {
	if !isolated {
		killDescendants()
	}
	return exitAbandoned
}

func readSpec(r io.Reader) (spec, error) {
	var s spec
	line, err := bufio.NewReader(io.LimitReader(r, maxLine)).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &s)
	}
	if err != nil {
		return spec{}, fmt.Errorf("read the sidecar's orders: %w", err)
	}
	if len(s.Args) == 0 {
		return spec{}, errors.New("read the sidecar's orders: no command")
	}
	return s, nil
}

// closeOnExecAll marks every descriptor above the three standard ones
// close-on-exec, including those inherited from the sidecar's parent.
func closeOnExecAll() error {
	return unix.CloseRange(childLink, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
}

// launch starts the engine in its own session. It uses the raw call, since
// only reapUntil may wait for children here.
func launch(args []string) (int, error) {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return 0, errors.Unwrap(err) // an *exec.Error repeats the name
	}
	pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2},
		Sys:   &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return 0, fmt.Errorf("execute: %w", err)
	}
	return pid, nil
}

// reapUntil waits for every child, including adopted ones, until pid has
// ended. It returns pid's exit code.
func reapUntil(pid int) int {
	for {
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return exitAbandoned
		case got == pid:
			return exitCode(ws)
		}
	}
}

func answer(link io.Writer, r reply) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = link.Write(append(line, '\n'))
	return err
}

// refuse reports to the sidecar why the engine does not run. op is set when
// isolation failed.
func refuse(link io.Writer, op string, err error) int {
	_ = answer(link, reply{Op: op, Error: err.Error()})
	return exitNotStarted
}
