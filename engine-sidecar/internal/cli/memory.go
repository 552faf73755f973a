package cli

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// The engine on the same machine has better use for memory than a sidecar that
// has fallen idle. What relays used while they were busy is the collector's to
// find, and it looks again only when as much has been allocated again: in an idle
// process, never. In a busy process with little in use it looks far too often: a
// handshake leaves 70 KB behind, and 5 % of its CPU went into that.
const (
	// lookAtMemory is how often its use is looked at.
	lookAtMemory = 3 * time.Second
	// quietly is what may be allocated between two looks, in bytes, in a sidecar
	// that counts as idle; a sixteenth of what is in use, where that is more: many
	// idle relays are reported now and then.
	quietly = 1 << 20
	// returns is how often memory is given back in one idle time: a stack
	// shrinks by half each time, and pools empty at the second.
	returns = 3
	// room is what may be allocated between two collections, in bytes, however
	// little is in use.
	room = 16 << 20
)

// returnIdleMemory gives memory back whenever the process has fallen idle, until ctx
// ends, and sets how often the collector runs, unless GOGC does.
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

// memoryReturn decides when to give back.
type memoryReturn struct {
	allocated uint64 // bytes, ever, at the last look
	left      int    // returns still to do in this idle time
}

// due is told, at each look, what has been allocated ever and what is in use.
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

// collectorPercent is GOGC for so many bytes in use: Go's own 100, or more while
// that would leave less than room.
func collectorPercent(live uint64) int {
	return int(max(100, min(400, 100*room/max(live, 1))))
}

// memoryUse is in bytes.
type memoryUse struct {
	allocated uint64 // since the program started
	live      uint64 // found in use by the last collection
	objects   uint64 // that, and what was allocated since
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
