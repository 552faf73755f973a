package cli

import (
	"os/exec"
	"syscall"
)

// loopbackKnowsUsers reports whether the kernel knows the user at the other end of
// a loopback connection.
const loopbackKnowsUsers = false

// dieWithParent does nothing here: if mayfly is killed, its command continues
// without the tunnel.
func dieWithParent(*syscall.SysProcAttr) {}

// startAndWait starts cmd and waits for its end.
func startAndWait(cmd *exec.Cmd, started chan<- error) error {
	err := cmd.Start()
	started <- err
	if err != nil {
		return err
	}
	return cmd.Wait()
}
