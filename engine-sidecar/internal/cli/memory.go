package cli

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// An idle sidecar returns memory for the engine on the same machine. Go's
// collector frees the memory of busy relays only after as many bytes are
// allocated again, and an idle process never does that. In a busy process with
// little memory in use the collector runs far too often: a handshake leaves 70
// KB of garbage, and collecting it took 5 % of the CPU.
const (
	// lookAtMemory is the interval of the checks.
	lookAtMemory = 3 * time.Second
	// quietly bounds what an idle sidecar allocates between two checks, in
	// bytes. The bound is a sixteenth of the memory in use if that is more,
	// since many idle relays still cause reports.
	quietly = 1 << 20
	// returns is how often memory is returned in one idle period. A stack
	// shrinks by half each time, and pools are empty after the second.
	returns = 3
	// room is the least that may be allocated between two collections, in
	// bytes, within the limits of collectorPercent.
	room = 16 << 20
)

// returnIdleMemory returns memory to the system when the process is idle,
// until ctx ends. It also sets GOGC, unless the environment does.
func returnIdleMemory(ctx context.Context) {
	tuned := os.Getenv("GOGC") != ""
	tick := time.NewTicker(lookAtMemory)
	defer tick.Stop()
	used := memory()
	r := memoryReturn{allocated: used.allocated}
	for {
		if !tuned {
			debug.SetGCPercent(collectorPercent(used.live))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		used = memory()
		if r.due(used.allocated, used.objects) {
			debug.FreeOSMemory()
		}
	}
}

// memoryReturn decides when to return memory.
type memoryReturn struct {
	allocated uint64 // bytes, ever, at the last check
	left      int    // returns still to do in this idle period
}

// due reports whether to return memory now. allocated is the total ever
// allocated, objects is in use.
func (r *memoryReturn) due(allocated, objects uint64) bool {
	busy := allocated-r.allocated > max(quietly, objects/16)
	r.allocated = allocated
	switch {
	case busy:
		r.left = returns
		return false
	case r.left == 0:
		return false
	}
	r.left--
	return true
}

// collectorPercent returns GOGC for live bytes in use: Go's default 100, or up
// to 400 while that allows less than room.
func collectorPercent(live uint64) int {
	return int(max(100, min(400, 100*room/max(live, 1))))
}

// memoryUse holds memory statistics, in bytes.
type memoryUse struct {
	allocated uint64 // since the program started
	live      uint64 // found in use by the last collection
	objects   uint64 // live, and everything allocated since
}

func memory() memoryUse {
	samples := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(samples)
	var u memoryUse
	for i, value := range []*uint64{&u.allocated, &u.live, &u.objects} {
		if samples[i].Value.Kind() == metrics.KindUint64 {
			*value = samples[i].Value.Uint64()
		}
	}
	return u
}
