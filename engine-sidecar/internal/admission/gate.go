package admission

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/revocation"
)

// Reasons of a cut, in addition to those of package wire.
const (
	// ReasonSilent: the control connection that held the relay sent nothing
	// for wire.ControlSilence.
	ReasonSilent = "silence"
	// ReasonMaxAge: the relay reached Options.MaxAge.
	ReasonMaxAge = "max_age"
)

// Checker judges certificate chains. *revocation.Checker is one.
type Checker interface {
	// Check judges a verified chain. The reason is empty, wire.ReasonRevoked
	// or wire.ReasonFeedStale. err gives the details of the last two.
	Check(chain []*x509.Certificate) (reason string, err error)
	// Revoked reports whether a certificate is revoked.
	Revoked(c revocation.Certificate) bool
}

// Cutter is the connection behind an AdmittedRelay. Cut must not block and may
// be called more than once.
type Cutter interface{ Cut(reason string) }

// Options are the options of a Gate. All are required.
type Options struct {
	Engine  string // must be in the peer's grant
	Checker Checker
	// MaxAge ends every relay, even one that is held.
	MaxAge time.Duration
	// MaxRelays bounds all relays at one time. MaxPerRun bounds those of one
	// SPIFFE ID and run.
	MaxRelays, MaxPerRun int
}

// Refusal says why a peer is not admitted.
type Refusal struct {
	Reason string // a reason of package wire
	Err    error  // for the log
}

// Error implements error.
func (r *Refusal) Error() string { return fmt.Sprintf("refused: %s: %v", r.Reason, r.Err) }

// Unwrap returns the cause.
func (r *Refusal) Unwrap() error { return r.Err }

// Gate admits peers and keeps the table of admitted connections. It is safe
// for concurrent use.
type Gate struct {
	o Options

	mu       sync.Mutex
	relays   map[*AdmittedRelay]struct{}
	byName   map[string]*AdmittedRelay
	perRun   map[runKey]int
	controls map[*Control]struct{}
	draining bool
	shut     bool
	ever     bool
	emptied  time.Time     // when the last relay ended; zero before the first
	empty    chan struct{} // closed while there are no relays
}

// runKey is the key of the count that MaxPerRun bounds.
type runKey struct{ id, run string }

// NewGate returns an empty Gate.
func NewGate(o Options) *Gate {
	g := &Gate{
		o:        o,
		relays:   map[*AdmittedRelay]struct{}{},
		byName:   map[string]*AdmittedRelay{},
		perRun:   map[runKey]int{},
		controls: map[*Control]struct{}{},
		empty:    make(chan struct{}),
	}
	close(g.empty)
	return g
}

// Judge returns why a peer would be refused now, or nil. For a control
// connection only permanent reasons count. The other reasons may pass, and
// meanwhile its client needs the notices of cuts.
func (g *Gate) Judge(p mtls.Peer) *Refusal {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.judge(p)
}

func (g *Gate) judge(p mtls.Peer) *Refusal {
	if !slices.Contains(p.Claims.Grant.Engines, g.o.Engine) {
		return &Refusal{wire.ReasonWrongEngine, fmt.Errorf("the certificate is for engines %q", p.Claims.Grant.Engines)}
	}
	reason, err := g.o.Checker.Check(p.Chain)
	switch {
	case reason == wire.ReasonRevoked:
		return &Refusal{reason, err}
	case time.Now().After(p.Certificate.NotAfter):
		return &Refusal{wire.ReasonExpired, fmt.Errorf("not after %s", p.Certificate.NotAfter.UTC().Format(time.RFC3339))}
	case p.ALPN == wire.ALPNControl:
		return nil
	case reason != "":
		return &Refusal{reason, err}
	case g.draining:
		return &Refusal{wire.ReasonDraining, errors.New("the engine is stopping")}
	case g.shut:
		return &Refusal{wire.ReasonDraining, errors.New("the server certificate is revoked")}
	case len(g.relays) >= g.o.MaxRelays:
		return &Refusal{wire.ReasonLimit, fmt.Errorf("%d connections", len(g.relays))}
	case g.perRun[keyOf(p)] >= g.o.MaxPerRun:
		return &Refusal{wire.ReasonLimit, fmt.Errorf("%d connections of this run", g.perRun[keyOf(p)])}
	}
	return nil
}

func keyOf(p mtls.Peer) runKey { return runKey{p.Claims.ID.String(), p.Claims.Grant.Run} }

// Admit judges a peer and, under the same lock, adds its relay to the table.
// name is the relay's name (mtls.RelayName). The caller calls Done when the
// relay has ended.
func (g *Gate) Admit(p mtls.Peer, name string, c Cutter) (*AdmittedRelay, *Refusal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if refusal := g.judge(p); refusal != nil {
		return nil, refusal
	}
	if g.byName[name] != nil {
		return nil, &Refusal{wire.ReasonLimit, errors.New("the relay's name is taken")}
	}
	now := time.Now()
	l := &AdmittedRelay{
		gate: g, name: name, cutter: c, run: keyOf(p),
		certs:    []revocation.Certificate{revocation.CertificateOf(p.Chain)},
		opened:   now,
		own:      p.Certificate.NotAfter,
		notAfter: p.Certificate.NotAfter,
	}
	if len(g.relays) == 0 {
		g.empty = make(chan struct{})
	}
	g.ever = true
	g.relays[l] = struct{}{}
	g.byName[name] = l
	g.perRun[l.run]++
	l.timer = time.AfterFunc(l.left(now), l.expire)
	return l, nil
}

// Drain makes the gate refuse new relays from now on.
func (g *Gate) Drain() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.draining = true
}

// Pause makes the gate refuse new relays until Resume, including those in a
// handshake.
func (g *Gate) Pause() { g.setShut(true) }

// Resume undoes Pause.
func (g *Gate) Resume() { g.setShut(false) }

func (g *Gate) setShut(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
}

// Draining reports whether Drain was called.
func (g *Gate) Draining() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.draining
}

// Sweep checks the whole table again, and cuts or ends the connections that
// are revoked or expired. Call it when the Checker has new information.
func (g *Gate) Sweep() {
	now := time.Now()
	g.mu.Lock()
	var cuts []cut
	for l := range g.relays {
		if reason := g.cutReason(l, now); reason != "" {
			cuts = l.markCut(cuts, reason)
		}
	}
	var ends []*Control
	for c := range g.controls {
		if g.o.Checker.Revoked(c.cert) || now.After(c.notAfter) {
			ends = append(ends, c)
		}
	}
	g.mu.Unlock()
	runCuts(cuts)
	for _, c := range ends {
		c.notifier.End()
	}
}

// cutReason returns the reason to cut l at now, or "".
func (g *Gate) cutReason(l *AdmittedRelay, now time.Time) string {
	for _, c := range l.certs {
		if g.o.Checker.Revoked(c) {
			return wire.ReasonRevoked
		}
	}
	switch {
	case now.Sub(l.opened) >= g.o.MaxAge:
		return ReasonMaxAge
	case now.After(l.notAfter):
		return wire.ReasonExpired
	}
	return ""
}

// CutAll cuts every relay. detail, if not empty, adds to the reason.
func (g *Gate) CutAll(reason, detail string) {
	g.mu.Lock()
	var cuts []cut
	for l := range g.relays {
		if l.cutFor == "" {
			l.detail = detail
		}
		cuts = l.markCut(cuts, reason)
	}
	g.mu.Unlock()
	runCuts(cuts)
}

// EndControls ends every control connection, after its queued messages.
func (g *Gate) EndControls() {
	g.mu.Lock()
	ends := make([]*Control, 0, len(g.controls))
	for c := range g.controls {
		ends = append(ends, c)
	}
	g.mu.Unlock()
	for _, c := range ends {
		c.notifier.End()
	}
}

// Empty returns a channel that is closed once there are no relays.
func (g *Gate) Empty() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.empty
}

// Counts holds the sizes of the table.
type Counts struct {
	Relays, Controls int
	// HadRelay reports whether any relay was ever admitted. IdleSince is when
	// the last relay ended. It is valid while there are no relays.
	HadRelay  bool
	IdleSince time.Time
}

// Counts returns the sizes of the table now.
func (g *Gate) Counts() Counts {
	g.mu.Lock()
	defer g.mu.Unlock()
	return Counts{Relays: len(g.relays), Controls: len(g.controls), HadRelay: g.ever, IdleSince: g.emptied}
}
