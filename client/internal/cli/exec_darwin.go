package cli

import (
	"os/exec"
	"syscall"
)

// loopbackKnowsUsers: the kernel does not tell whose the other end of a
// loopback connection is.
const loopbackKnowsUsers = false

// dieWithParent has no counterpart here: a command whose mayfly is killed goes
// on without its tunnel.
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
