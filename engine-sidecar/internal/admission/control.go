package admission

import (
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/revocation"
)

// maxFreeControls bounds the control connections of one SPIFFE ID and run that
// hold no relay; those that hold one are as few as its relays. One more ends
// another that is free, since no limit refuses a control connection: an owner's
// next one, after a reset, is free until it has said what it holds. In that time
// a thief of its certificate would have to open so many, and handshake_rate
// stands against it.
const maxFreeControls = 64

// maxCertificates bounds those that one relay ever hung on: a client that
// renews each minute of a day stays below.
const maxCertificates = 1500

// Notifier speaks on a control connection. Its methods do not block.
type Notifier interface {
	// Notify sends a message and then calls sent: soon, even if the message
	// cannot be sent.
	Notify(m wire.Control, sent func())
	// End closes the connection after what was notified before.
	End()
}

// Control is a live control connection.
type Control struct {
	gate     *Gate
	notifier Notifier
	run      runKey
	cert     revocation.Certificate
	notAfter time.Time

	// Owned by gate.mu.
	opened time.Time
	relays map[*AdmittedRelay]struct{} // those that it holds
	closed bool
	timer  *time.Timer
}

// OpenControl judges a peer and enters its control connection. The caller calls
// Heard for each line and Close at the end.
func (g *Gate) OpenControl(p mtls.Peer, n Notifier) (*Control, *Refusal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p.ALPN = wire.ALPNControl
	if refusal := g.judge(p); refusal != nil {
		return nil, refusal
	}
	c := &Control{
		gate: g, notifier: n, run: keyOf(p),
		cert:     revocation.CertificateOf(p.Chain),
		notAfter: p.Certificate.NotAfter,
		opened:   time.Now(),
		relays:   map[*AdmittedRelay]struct{}{},
	}
	c.timer = time.AfterFunc(wire.ControlSilence, c.silent)
	g.controls[c] = struct{}{}
	if out := g.evictable(c.run); out != nil {
		delete(g.controls, out)
		out.notifier.End()
	}
	return c, nil
}

// evictable returns the control connection that has to make room in a run with
// too many free ones, nil when there is room. A connection that holds a relay
// never does: with a stolen certificate one could end the owner's, and with that
// its relays. Of the others it is one of the certificate that ends first, so that
// a renewed one stands against any number of the old one's, and of those the
// oldest.
func (g *Gate) evictable(run runKey) *Control {
	var out *Control
	free := 0
	for c := range g.controls {
		if c.run != run || len(c.relays) > 0 {
			continue
		}
		free++
		if out == nil || c.evictBefore(out) {
			out = c
		}
	}
	if free <= maxFreeControls {
		return nil
	}
	return out
}

// evictBefore reports whether c makes room before other does.
func (c *Control) evictBefore(other *Control) bool {
	if !c.notAfter.Equal(other.notAfter) {
		return c.notAfter.Before(other.notAfter)
	}
	return c.opened.Before(other.opened)
}

// Touch notes that the client said something.
func (c *Control) Touch() {
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	if !c.closed {
		c.timer.Reset(wire.ControlSilence)
	}
}

// Hold ties the named relays to this connection's certificate, and returns the
// names of those that now hang on it: those whose SPIFFE ID and run, which is
// not empty, are this connection's.
func (c *Control) Hold(names []string) (held []string) {
	g := c.gate
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	held = []string{}
	if c.run.run == "" || c.closed || now.After(c.notAfter) || g.o.Checker.Revoked(c.cert) {
		return held
	}
	for _, name := range names {
		l := g.byName[name]
		if l != nil && l.holder == c && l.cutFor == "" {
			held = append(held, name) // again: nothing changes
			continue
		}
		if l == nil || l.run != c.run || l.cutFor != "" || !l.attachTo(c) {
			continue
		}
		l.timer.Reset(l.left(now))
		held = append(held, name)
	}
	return held
}

// attachTo makes c the holder of l.
func (l *AdmittedRelay) attachTo(c *Control) bool {
	if !slices.Contains(l.certs, c.cert) {
		if len(l.certs) >= maxCertificates {
			return false
		}
		l.certs = append(l.certs, c.cert)
	}
	if l.holder != nil {
		delete(l.holder.relays, l)
	}
	l.holder = c
	c.relays[l] = struct{}{}
	l.notAfter = c.notAfter
	if l.own.After(l.notAfter) {
		l.notAfter = l.own // its own certificate holds it as well
	}
	return true
}

// Close notes that the connection has ended. What it still holds is cut when
// wire.ControlSilence has passed since it was last heard, unless another
// control connection holds it by then.
func (c *Control) Close() {
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	c.closed = true
	delete(c.gate.controls, c)
	if len(c.relays) == 0 {
		c.timer.Stop()
	}
}

// silent is the timer's function.
func (c *Control) silent() {
	g := c.gate
	g.mu.Lock()
	var cuts []cut
	for l := range c.relays {
		cuts = l.markCut(cuts, ReasonSilent)
	}
	g.mu.Unlock()
	runCuts(cuts)
	c.notifier.End()
}
