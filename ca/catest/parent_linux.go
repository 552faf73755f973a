package catest

import "syscall"

// endWithParent stops the server when the test dies without stopping it.
func endWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGQUIT }
