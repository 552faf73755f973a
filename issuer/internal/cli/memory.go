package cli

import (
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
)

// tuneGC has the garbage collector run when the heap has grown fivefold,
// not twofold: an issuer keeps little and allocates much, and collecting was a
// tenth of its work. As memory runs short, it collects as often as it must. Who
// has set GOGC or GOMEMLIMIT is obeyed.
func tuneGC() {
	const growth = 400 // percent
	if os.Getenv("GOGC") != "" {
		return
	}
	debug.SetGCPercent(growth)
	if limit := memory(); os.Getenv("GOMEMLIMIT") == "" && limit < math.MaxInt64 {
		debug.SetMemoryLimit(limit / 2) // the rest is SQLite's, and the kernel's for files
	}
}

// memory is what this process may use in bytes, of the machine or of its
// control group; math.MaxInt64 where that cannot be read.
func memory() int64 {
	limit := int64(math.MaxInt64)
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		limit = min(limit, meminfoTotal(string(text)))
	}
	if text, err := os.ReadFile("/sys/fs/cgroup/memory.max"); err == nil {
		if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && n > 0 { // else "max"
			limit = min(limit, n)
		}
	}
	return limit
}

// meminfoTotal reads MemTotal of proc_meminfo(5).
func meminfoTotal(text string) int64 {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			if n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 64); err == nil && n > 0 {
				return n << 10
			}
		}
	}
	return math.MaxInt64
}
