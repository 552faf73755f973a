package catest

import "syscall"

// endWithParent makes the kernel stop the server when the test dies first.
func endWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGQUIT }
