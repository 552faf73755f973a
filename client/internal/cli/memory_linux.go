package cli

import "golang.org/x/sys/unix"

// disableDumps keeps the key out of core dumps, and other processes of this user
// cannot read it (ptrace, /proc/PID/mem), as far as the kernel ensures this. Root
// can read everything. Programs that mayfly starts are not affected.
func disableDumps() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }
