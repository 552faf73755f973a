package cli

import (
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
)

// tuneGC lets the heap grow fivefold, not twofold, between collections. An issuer
// keeps little and allocates much, and collecting took a tenth of its CPU time. Near
// the memory limit, the collector runs as often as needed. GOGC and GOMEMLIMIT take
// precedence.
func tuneGC() {
	const growth = 400 // percent
	if os.Getenv("GOGC") != "" {
		return
	}
	debug.SetGCPercent(growth)
	if limit := memory(); os.Getenv("GOMEMLIMIT") == "" && limit < math.MaxInt64 {
		debug.SetMemoryLimit(limit / 2) // the rest is for SQLite and for the kernel's file cache
	}
}

// memory returns how many bytes this process may use: the machine's memory or the limit
// of its control group, whichever is less. It returns math.MaxInt64 if neither can be
// read.
func memory() int64 {
	limit := int64(math.MaxInt64)
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		limit = min(limit, meminfoTotal(string(text)))
	}
	if text, err := os.ReadFile("/sys/fs/cgroup/memory.max"); err == nil {
		if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && n > 0 { // else it is "max"
			limit = min(limit, n)
		}
	}
	return limit
}

// meminfoTotal returns MemTotal in the text of proc_meminfo(5).
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
