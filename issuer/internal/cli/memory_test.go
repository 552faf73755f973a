package cli

import (
	"math"
	"runtime"
	"runtime/debug"
	"testing"
)

func TestMeminfoTotal(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"MemTotal:         222924 kB\nMemFree: 1 kB\n": 222924 << 10,
		"MemFree: 1 kB\n":     math.MaxInt64,
		"MemTotal: lots kB\n": math.MaxInt64,
		"MemTotal: 0 kB\n":    math.MaxInt64,
		"":                    math.MaxInt64,
	} {
		if got := meminfoTotal(text); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

// TestCollectLess is not parallel: it changes the settings of the process.
func TestCollectLess(t *testing.T) {
	percent, limit := debug.SetGCPercent(100), debug.SetMemoryLimit(-1)
	t.Cleanup(func() { debug.SetGCPercent(percent); debug.SetMemoryLimit(limit) })
	t.Setenv("GOGC", "100")
	tuneGC()
	if got := debug.SetGCPercent(100); got != 100 {
		t.Errorf("GOGC=100 is not obeyed: %d", got)
	}
	t.Setenv("GOGC", "")
	t.Setenv("GOMEMLIMIT", "")
	tuneGC()
	if got := debug.SetGCPercent(100); got != 400 {
		t.Errorf("collects at %d%%", got)
	}
	if got := debug.SetMemoryLimit(-1); runtime.GOOS == "linux" && (got <= 0 || got == math.MaxInt64) {
		t.Errorf("memory limit %d", got)
	}
}
