package flytest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"
)

// command is one run of the machine's command.
type command struct {
	process *os.Process
	done    chan struct{}
	code    int // after done
}

// launch runs the command once, on its own thread. A root folder belongs to a
// thread, and so does the signal that ends the command when this process dies. The
// thread ends with the command.
func (m *Machine) launch() (*command, error) {
	c := &command{done: make(chan struct{})}
	launched := make(chan error, 1)
	onOwnThread(func() {
		defer close(c.done)
		cmd, err := m.start()
		if err != nil {
			launched <- err
			return
		}
		c.process = cmd.Process
		launched <- nil
		_ = cmd.Wait() // ProcessState has the result
		c.code = exitCode(cmd.ProcessState)
		c.kill() // also ends its remaining children, as the end of a virtual machine does
	})
	return c, <-launched
}

// onOwnThread runs f on a new thread, which ends with f. It never uses the first
// thread: Go keeps that one, so the effects of f would remain and show in
// /proc/self.
func onOwnThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if !isFirstThread() {
			f()
			return
		}
		locked := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(locked)
			f()
		}()
		<-locked
		runtime.UnlockOSThread()
	}()
}

// start starts the command on the calling thread.
func (m *Machine) start() (*exec.Cmd, error) {
	if !m.cfg.HostRoot {
		scratch := filepath.Join(m.cfg.Dir, rootFolder)
		if err := os.MkdirAll(scratch, 0o700); err != nil {
			return nil, err
		}
		if err := enterOwnRoot(scratch, filepath.Join(m.cfg.Dir, apiFolder)); err != nil {
			return nil, fmt.Errorf("give the machine its own /.fly: %w", err)
		}
	}
	cmd := exec.Command(m.cfg.Command[0], m.cfg.Command[1:]...)
	cmd.Env = m.env
	cmd.Stdout, cmd.Stderr = m.cfg.Stdout, m.cfg.Stderr
	cmd.SysProcAttr = commandAttr()
	// Its descendants may keep its output open.
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return cmd, nil
}

// kill ends the command and its process group.
func (c *command) kill() { killGroup(c.process) }

// killAll is kill for the end of a machine: it returns when all descendants of the
// command are gone, so that none is left for the next start.
func (c *command) killAll() {
	below := descendants(c.process.Pid)
	c.kill()
	<-c.done
	below.wait()
}
