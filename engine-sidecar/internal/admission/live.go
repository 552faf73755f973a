package admission

import (
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/revocation"
)

// AdmittedRelay is a relay in the table of a Gate.
type AdmittedRelay struct {
	gate   *Gate
	name   string
	cutter Cutter
	run    runKey
	opened time.Time // with a monotonic reading
	own    time.Time // NotAfter of the certificate that opened the relay

	// Owned by gate.mu.
	certs    []revocation.Certificate // every certificate that the relay ever depended on
	holder   *Control                 // nil: no control connection holds it
	notAfter time.Time                // of the certificate that holds the relay
	timer    *time.Timer
	cutFor   string // reason of an ordered cut
	detail   string // sent together with cutFor
	done     bool
}

// Done removes the relay from the table. It may be called once.
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

// CutReason returns the reason and detail of an ordered cut, or "" when none
// was ordered. After a notice of the cut, a client may close the connection
// before it.
func (l *AdmittedRelay) CutReason() (reason, detail string) {
	l.gate.mu.Lock()
	defer l.gate.mu.Unlock()
	return l.cutFor, l.detail
}

// left returns how long the relay may still live, at least a millisecond.
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
		l.timer.Reset(l.left(now)) // held since then, or the wall clock was set back
	}
	g.mu.Unlock()
	runCuts(cuts)
}

// cut is a decided cut. It runs without the lock.
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

// runCuts notifies the holder of each relay and then cuts the relay.
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
