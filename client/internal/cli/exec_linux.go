package cli

import (
	"os/exec"
	"runtime"
	"syscall"
)

// loopbackKnowsUsers reports whether the kernel knows the user at the other end of
// a loopback connection.
const loopbackKnowsUsers = true

// dieWithParent ends the command when mayfly is killed. Otherwise Dagger's client
// would wait ten minutes for the lost tunnel.
func dieWithParent(a *syscall.SysProcAttr) { a.Pdeathsig = syscall.SIGTERM }

// startAndWait starts cmd and waits for its end. Pdeathsig watches the thread that
// started cmd, so that thread stays until the end.
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
