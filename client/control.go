package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// Times of a control connection, in addition to those of package wire.
const (
	controlDelayMin  = 250 * time.Millisecond
	controlDelayMax  = 5 * time.Second
	controlDial      = 15 * time.Second
	controlHandover  = 5 * time.Second
	controlWriteTime = 10 * time.Second
	// maxHolds is how often a control connection asks the sidecar to hold a relay
	// before it gives up.
	maxHolds = 3
)

// engineRelays tracks the client's relays to one engine and the control
// connection that holds them. While there are relays, there is one control
// connection, under the newest certificate.
type engineRelays struct {
	c      *Client
	engine string
	// wake signals run that the relays or the certificate have changed.
	wake chan struct{}

	mu      sync.Mutex
	relays  map[*relay]struct{}
	running bool
	closed  bool
	// refused is the last refusal of a control connection, with the serial of the
	// refused certificate. A later success clears it.
	refused *RejectedError
	// silence fires when the engine's machine has sent nothing for too long.
	silence *time.Timer
}

// relaysTo returns the relays to an engine. The first call for an engine makes them.
func (c *Client) relaysTo(engine string) (*engineRelays, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	t := c.tethers[engine]
	if t == nil {
		t = &engineRelays{c: c, engine: engine, wake: make(chan struct{}, 1), relays: map[*relay]struct{}{}}
		c.tethers[engine] = t
	}
	return t, nil
}

// add adds a relay, and starts the control connection with the first one.
func (t *engineRelays) add(r *relay) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	t.relays[r] = struct{}{}
	if len(t.relays) == 1 {
		t.silence = time.AfterFunc(wire.ControlSilence, t.silent)
	}
	if !t.running {
		if !t.c.start(t.run) {
			delete(t.relays, r)
			t.silence.Stop()
			return ErrClosed
		}
		t.running = true
	}
	t.signal()
	return nil
}

func (t *engineRelays) remove(r *relay) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.relays, r)
	if len(t.relays) == 0 && t.silence != nil {
		t.silence.Stop()
	}
	t.signal()
}

// close ends all relays; their readers see a closed connection.
func (t *engineRelays) close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	for _, r := range t.snapshot() {
		_ = r.Close()
	}
}

func (t *engineRelays) signal() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (t *engineRelays) snapshot() []*relay {
	t.mu.Lock()
	defer t.mu.Unlock()
	relays := make([]*relay, 0, len(t.relays))
	for r := range t.relays {
		relays = append(relays, r)
	}
	return relays
}

func (t *engineRelays) refusal() *RejectedError {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.refused
}

// resetSilence restarts the silence timer, because the engine's machine sent something.
func (t *engineRelays) resetSilence() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.relays) > 0 {
		t.silence.Reset(wire.ControlSilence)
	}
}

// silent cuts every relay that a control connection has held: the machine or the
// network is gone, and no other signal may arrive for minutes. It leaves a relay
// that was never held to the kernel's timers, because the sidecar does not judge
// that relay by pings either. If control connections are refused, the machine
// is alive and silent cuts nothing.
func (t *engineRelays) silent() {
	if t.refusal() != nil {
		t.resetSilence()
		return
	}
	for _, r := range t.snapshot() {
		if r.wasHeld() {
			r.end(ReasonSilence, nil)
		}
	}
	t.resetSilence() // for the next check
}

// idle reports whether there are no relays, and if so marks run as ended.
func (t *engineRelays) idle() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.relays) > 0 {
		return false
	}
	t.running = false
	t.refused = nil
	return true
}

// run keeps a control connection open while there are relays. It opens another
// one after a renewal or a reset. After a renewal, the new connection takes over
// before the old one closes.
func (t *engineRelays) run(ctx context.Context) {
	var now *control
	defer func() {
		if now != nil {
			now.close()
		}
	}()
	b := backoff{min: controlDelayMin, max: controlDelayMax}
	for ctx.Err() == nil && !t.idle() {
		var retry <-chan time.Time
		if cred := t.c.cred.Load(); now == nil || now.conn.cred != cred {
			next, err := t.next(ctx, cred, now)
			if err == nil {
				now = next
				b.reset()
			} else if ctx.Err() == nil {
				wait := b.next()
				retry = time.After(wait)
				t.c.log.Warn("no control connection", "engine", t.engine, "serial", cred.Serial(), "retry_in", wait, "error", err)
			}
		}
		if now != nil {
			now.hold(t.snapshot())
		}
		select {
		case <-ctx.Done():
		case <-t.wake:
		case <-retry:
		case <-now.ended():
			now.close()
			now = nil
		}
	}
}

// next opens a control connection under cred. It closes the old one once the new
// one holds the relays.
func (t *engineRelays) next(ctx context.Context, cred *Credential, old *control) (*control, error) {
	ctx, cancel := context.WithTimeout(ctx, controlDial)
	defer cancel()
	engine, ok := cred.engine(t.engine)
	if !ok {
		return nil, fmt.Errorf("certificate %s is no longer for engine %s", cred.Serial(), t.engine)
	}
	conn, err := t.c.connect(ctx, cred, engine, wire.ALPNControl)
	if err != nil {
		var rejected *RejectedError
		if errors.As(err, &rejected) {
			t.mu.Lock()
			t.refused = rejected
			t.mu.Unlock()
		}
		return nil, err
	}
	t.mu.Lock()
	t.refused = nil
	t.mu.Unlock()
	t.resetSilence()
	next := newControl(t, conn)
	if old != nil {
		next.hold(t.snapshot())
		if !next.waitHeld(ctx, controlHandover) {
			next.close()
			return nil, errors.New("it ended before it held anything: the one before goes on")
		}
		old.close()
	}
	return next, nil
}

// control is one control connection.
type control struct {
	t    *engineRelays
	conn *engineConn
	done chan struct{} // closed when the connection has ended
	stop func()        // closes done, once
	wg   sync.WaitGroup

	mu    sync.Mutex
	asked map[*relay]int // how often each relay was asked for; only relays not held yet
	names map[string]*relay
	held  map[*relay]struct{}
	// news signals waitHeld that asked has shrunk.
	news chan struct{}
}

func newControl(t *engineRelays, conn *engineConn) *control {
	k := &control{
		t: t, conn: conn, done: make(chan struct{}),
		asked: map[*relay]int{}, names: map[string]*relay{}, held: map[*relay]struct{}{},
		news: make(chan struct{}, 1),
	}
	k.stop = sync.OnceFunc(func() { close(k.done) })
	k.wg.Go(k.read)
	k.wg.Go(k.ping)
	return k
}

// ended returns a channel that is closed when the connection has ended, or nil if k is nil.
func (k *control) ended() <-chan struct{} {
	if k == nil {
		return nil
	}
	return k.done
}

// close ends the connection and its goroutines.
func (k *control) close() {
	k.stop()
	_ = k.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_ = k.conn.Close()
	k.wg.Wait()
}

// hold asks the sidecar to tie relays to this connection's certificate. It skips
// a relay that was dialed with a newer certificate; the next connection holds it.
func (k *control) hold(relays []*relay) {
	k.mu.Lock()
	present := make(map[*relay]struct{}, len(relays))
	var names []string
	for _, r := range relays {
		present[r] = struct{}{}
		_, held := k.held[r]
		if held || k.asked[r] > 0 || r.conn.cred.Leaf.NotAfter.After(k.conn.cred.Leaf.NotAfter) {
			continue
		}
		k.asked[r] = 1
		k.names[r.name] = r
		names = append(names, r.name)
	}
	k.forget(present)
	k.mu.Unlock()
	k.sendHold(names)
}

// forget drops the relays that are not in present. The caller holds k.mu.
func (k *control) forget(present map[*relay]struct{}) {
	for name, r := range k.names {
		if _, ok := present[r]; !ok {
			delete(k.names, name)
			delete(k.asked, r)
			delete(k.held, r)
		}
	}
}

// resendHolds repeats the holds that the sidecar has not confirmed.
func (k *control) resendHolds() {
	k.mu.Lock()
	var names []string
	for r, times := range k.asked {
		if times >= maxHolds {
			continue
		}
		k.asked[r] = times + 1
		names = append(names, r.name)
	}
	k.mu.Unlock()
	k.sendHold(names)
}

func (k *control) sendHold(names []string) {
	for len(names) > 0 {
		n := min(len(names), wire.MaxHoldNames)
		k.send(wire.Control{Hold: names[:n]})
		names = names[n:]
	}
}

// waitHeld waits until the sidecar has confirmed every hold, but no longer than
// most. It returns false if the connection ended first.
func (k *control) waitHeld(ctx context.Context, most time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for {
		k.mu.Lock()
		left := len(k.asked)
		k.mu.Unlock()
		if left == 0 {
			return true
		}
		select {
		case <-k.news:
		case <-k.done:
			return false
		case <-ctx.Done():
			return true
		}
	}
}

// ping sends a ping every wire.ControlPingEvery until the connection ends.
func (k *control) ping() {
	tick := time.NewTicker(wire.ControlPingEvery)
	defer tick.Stop()
	for n := uint64(1); ; n++ {
		select {
		case <-k.done:
			return
		case <-tick.C:
			k.send(wire.Control{Ping: n})
			k.resendHolds()
		}
	}
}

// send writes one line. crypto/tls does not interleave concurrent writes.
func (k *control) send(m wire.Control) {
	line, err := m.Line()
	if err == nil {
		_ = k.conn.SetWriteDeadline(time.Now().Add(controlWriteTime))
		_, err = k.conn.Write(line)
	}
	if err != nil {
		k.stop()
	}
}

// read reads lines until the connection ends, falls silent or breaks the protocol.
func (k *control) read() {
	defer k.stop()
	lines := bufio.NewReaderSize(k.conn, wire.MaxControlLine)
	for {
		_ = k.conn.SetReadDeadline(time.Now().Add(wire.ControlSilence))
		line, err := lines.ReadSlice('\n')
		if err != nil {
			k.ending(err)
			return
		}
		k.t.resetSilence()
		m, err := wire.ParseControl(line)
		if err != nil {
			k.ending(err)
			return
		}
		k.receive(m)
	}
}

func (k *control) ending(err error) {
	select {
	case <-k.done: // the client ended it
	default:
		k.t.c.log.Info("control connection ended", "engine", k.t.engine, "serial", k.conn.cred.Serial(), "error", err)
	}
}

func (k *control) receive(m wire.Control) {
	switch {
	case m.Held != nil:
		k.confirmed(m.Held)
	case m.Cut != "":
		k.mu.Lock()
		r := k.names[m.Cut]
		k.mu.Unlock()
		if r == nil {
			r = k.t.byName(m.Cut)
		}
		if r != nil {
			var detail error
			if m.Detail != "" {
				detail = errors.New(m.Detail)
			}
			r.end(m.Reason, detail)
		}
	}
}

func (k *control) confirmed(names []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, name := range names {
		r := k.names[name]
		if r == nil {
			continue
		}
		delete(k.asked, r)
		k.held[r] = struct{}{}
		r.hold(k.conn.cred)
	}
	select {
	case k.news <- struct{}{}:
	default:
	}
}

func (t *engineRelays) byName(name string) *relay {
	for _, r := range t.snapshot() {
		if r.name == name {
			return r
		}
	}
	return nil
}
