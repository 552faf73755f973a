package sidecar

import (
	"context"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"time"
)

// Memory that was in use while relays were busy is the collector's to find, and
// it looks again only when as much has been allocated anew: in a sidecar that
// falls idle, never. The engine on the same machine has better use for it.
const (
	// lookAtMemory is how often its use is looked at.
	lookAtMemory = 3 * time.Second
	// quietly is what may be allocated between two looks, in bytes, in a sidecar
	// that counts as idle.
	quietly = 1 << 20
	// returns is how often memory is given back in one idle time: a stack
	// shrinks by half each time, and pools empty at the second.
	returns = 3
)

// giveMemoryBack does so whenever the sidecar has fallen idle, until ctx ends.
func giveMemoryBack(ctx context.Context) {
	tick := time.NewTicker(lookAtMemory)
	defer tick.Stop()
	r := memoryReturn{allocated: allocated()}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if r.due(allocated()) {
			debug.FreeOSMemory()
		}
	}
}

// memoryReturn decides when.
type memoryReturn struct {
	allocated uint64 // bytes, ever, at the last look
	left      int    // returns still to do in this idle time
}

// due is told, at each look, what has been allocated ever.
func (r *memoryReturn) due(now uint64) bool {
	busy := now-r.allocated > quietly
	r.allocated = now
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

// allocated is the bytes that were allocated since the program started.
func allocated() uint64 {
	sample := []runtimemetrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	runtimemetrics.Read(sample)
	if sample[0].Value.Kind() != runtimemetrics.KindUint64 {
		return 0
	}
	return sample[0].Value.Uint64()
}
