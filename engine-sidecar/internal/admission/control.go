package admission

import (
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/revocation"
)

// maxFreeControls bounds the control connections of one SPIFFE ID and run that
// hold no relay. Those that hold one are bounded by the relays. Another free
// connection ends an older free one, since no limit refuses a control
// connection. After a reset, the owner's new connection is free until it sends
// its hold. To evict it, a thief of the certificate would have to open
// maxFreeControls connections in that time, and handshake_rate prevents this.
const maxFreeControls = 64

// maxCertificates bounds the certificates that one relay ever depends on. A
// client that renews every minute of a day stays below.
const maxCertificates = 1500

// Notifier writes to a control connection. Its methods do not block.
type Notifier interface {
	// Notify sends a message and then calls sent soon, even if the message
	// cannot be sent.
	Notify(m wire.Control, sent func())
	// End closes the connection after all earlier messages are sent.
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
	relays map[*AdmittedRelay]struct{} // relays that this connection holds
	closed bool
	timer  *time.Timer
}

// OpenControl judges a peer and adds its control connection to the table. The
// caller calls Touch for each line and Close at the end.
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

// evictable returns the connection to close when a run has too many free ones,
// otherwise nil. It never returns a connection that holds a relay: with a
// stolen certificate, a thief could otherwise end the owner's connection and
// its relays. It prefers the certificate that expires first, so a renewed one
// is safe from any number of connections under the old one. Among those it
// prefers the oldest.
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

// evictBefore reports whether c is evicted before other.
func (c *Control) evictBefore(other *Control) bool {
	if !c.notAfter.Equal(other.notAfter) {
		return c.notAfter.Before(other.notAfter)
	}
	return c.opened.Before(other.opened)
}

// Touch restarts the silence timer, after a line from the client.
func (c *Control) Touch() {
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	if !c.closed {
		c.timer.Reset(wire.ControlSilence)
	}
}

// Hold attaches the named relays to this connection's certificate. It returns
// the names of those now attached: relays with this connection's SPIFFE ID and
// run. The run must not be empty.
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
			held = append(held, name) // already held
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
		l.notAfter = l.own // the relay's own certificate also holds it
	}
	return true
}

// Close records that the connection has ended. Its relays are cut when
// wire.ControlSilence has passed since its last line, unless another control
// connection holds them by then.
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
