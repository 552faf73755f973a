package cli

import "golang.org/x/sys/unix"

// disableDumps keeps the key out of core dumps and out of reach of other
// processes of this user (ptrace, /proc/PID/mem), as far as the kernel goes;
// root reads everything. Programs that are started from here are as usual.
func disableDumps() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }
