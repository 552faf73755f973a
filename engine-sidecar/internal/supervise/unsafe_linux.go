package supervise

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// isSubreaper reports whether orphans below this process become its children.
func isSubreaper() bool {
	var set int32 // prctl(2) writes through its argument
	_, _, errno := unix.Syscall(unix.SYS_PRCTL, unix.PR_GET_CHILD_SUBREAPER, uintptr(unsafe.Pointer(&set)), 0)
	return errno == 0 && set != 0
}
