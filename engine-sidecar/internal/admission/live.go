package admission

import (
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/revocation"
)

// AdmittedRelay is an admitted relay.
type AdmittedRelay struct {
	gate   *Gate
	name   string
	cutter Cutter
	run    runKey
	opened time.Time // with a monotonic reading
	own    time.Time // NotAfter of the certificate that opened it

	// Owned by gate.mu.
	certs    []revocation.Certificate // every one that it ever hung on
	holder   *Control                 // nil: it holds itself
	notAfter time.Time                // of the certificate that holds it
	timer    *time.Timer
	cutFor   string // why a cut is under way
	detail   string // what is said beside cutFor
	done     bool
}

// Done takes the relay out of the table. It may be called once.
func (l *AdmittedRelay) Done() {
	g := l.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	l.done = true
	l.timer.Stop()
	if l.holder != nil {
		delete(l.holder.relays, l)
	}
	delete(g.relays, l)
	delete(g.byName, l.name)
	if g.perRun[l.run]--; g.perRun[l.run] <= 0 {
		delete(g.perRun, l.run)
	}
	if len(g.relays) == 0 {
		g.emptied = time.Now()
		close(g.empty)
	}
}

// CutReason returns why a cut of the relay was ordered, "" when none was, and what is
// said beside that. A client that reads of it may hang up before the cut.
func (l *AdmittedRelay) CutReason() (reason, detail string) {
	l.gate.mu.Lock()
	defer l.gate.mu.Unlock()
	return l.cutFor, l.detail
}

// left is how long the relay may still live, at least a moment.
func (l *AdmittedRelay) left(now time.Time) time.Duration {
	return max(min(l.notAfter.Sub(now), l.gate.o.MaxAge-now.Sub(l.opened)), 0) + time.Millisecond
}

// expire is the timer's function.
func (l *AdmittedRelay) expire() {
	now := time.Now()
	g := l.gate
	g.mu.Lock()
	var cuts []cut
	if reason := g.cutReason(l, now); reason != "" {
		cuts = l.markCut(cuts, reason)
	} else if !l.done {
		l.timer.Reset(l.left(now)) // held meanwhile, or the wall clock was set back
	}
	g.mu.Unlock()
	runCuts(cuts)
}

// cut is a decided cut, to be run without the lock.
type cut struct {
	live   *AdmittedRelay
	holder *Control
	reason string
	detail string
}

// markCut decides to cut l, once. The caller holds gate.mu.
func (l *AdmittedRelay) markCut(cuts []cut, reason string) []cut {
	if l.cutFor != "" || l.done {
		return cuts
	}
	l.cutFor = reason
	return append(cuts, cut{l, l.holder, reason, l.detail})
}

// runCuts tells who holds each relay and then cuts it.
func runCuts(cuts []cut) {
	for _, c := range cuts {
		end := func() { c.live.cutter.Cut(c.reason) }
		if c.holder == nil {
			end()
			continue
		}
		c.holder.notifier.Notify(wire.Control{Cut: c.live.name, Reason: c.reason, Detail: c.detail}, end)
	}
}
