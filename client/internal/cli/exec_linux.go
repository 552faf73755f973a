package cli

import (
	"os/exec"
	"runtime"
	"syscall"
)

// loopbackKnowsUsers: the kernel tells whose the other end of a loopback
// connection is.
const loopbackKnowsUsers = true

// dieWithParent ends the command when mayfly is killed: its tunnel is gone
// then, and Dagger's client would wait for it for ten minutes.
func dieWithParent(a *syscall.SysProcAttr) { a.Pdeathsig = syscall.SIGTERM }

// startAndWait starts cmd and waits for its end. The parent that Pdeathsig
// watches is a thread, so the one that starts it stays.
func startAndWait(cmd *exec.Cmd, started chan<- error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Start()
	started <- err
	if err != nil {
		return err
	}
	return cmd.Wait()
}
