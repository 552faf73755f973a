package client

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// cutGrace is how long a broken relay waits for the reason, which arrives on the
// control connection. The two connections are separate, so either may be first.
const cutGrace = 500 * time.Millisecond

var errShut = errors.New("write after CloseWrite")

// relay is one connection that carries engine bytes. The control connection of
// its engineRelays holds it at the sidecar.
type relay struct {
	conn   *engineConn
	name   string
	relays *engineRelays

	sent, received atomic.Int64
	// holder is the certificate that holds the relay. At first it is the
	// certificate that the relay was dialed with.
	holder atomic.Pointer[Credential]

	mu     sync.Mutex
	closed bool
	shut   bool // CloseWrite was called
	held   bool // a control connection has held it
	cut    *CutError
	// cutSet is closed when cut is set.
	cutSet chan struct{}
}

// open registers an admitted connection as a relay.
func (c *Client) open(conn *engineConn, name string) (*relay, error) {
	r := &relay{conn: conn, name: name, cutSet: make(chan struct{})}
	r.holder.Store(conn.cred)
	t, err := c.relaysTo(conn.engine.Name)
	if err == nil {
		r.relays = t
		err = t.add(r)
	}
	if err != nil {
		conn.abandon()
		return nil, err
	}
	c.stats.connections.Add(1)
	c.stats.open.Add(1)
	return r, nil
}

func (r *relay) Read(b []byte) (int, error) {
	n, err := r.conn.Read(b)
	if n > 0 {
		r.received.Add(int64(n))
		r.relays.c.stats.received.Add(int64(n))
	}
	if err != nil {
		err = r.explain(err)
	}
	return n, err
}

func (r *relay) Write(b []byte) (int, error) {
	r.mu.Lock()
	shut := r.shut
	r.mu.Unlock()
	if shut {
		return 0, errShut
	}
	n, err := r.conn.Write(b)
	r.sent.Add(int64(n))
	r.relays.c.stats.sent.Add(int64(n))
	if err != nil {
		err = r.explain(err)
	}
	return n, err
}

// CloseWrite ends the client's direction. The engine reads everything and then
// EOF, and the client can still read its answer.
func (r *relay) CloseWrite() error {
	r.mu.Lock()
	r.shut = true
	r.mu.Unlock()
	if err := r.conn.CloseWrite(); err != nil {
		return r.explain(err)
	}
	return nil
}

// Close ends the relay.
func (r *relay) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return net.ErrClosed
	}
	r.closed = true
	cut := r.cut != nil
	r.mu.Unlock()
	r.relays.remove(r)
	r.relays.c.stats.open.Add(-1)
	if cut {
		r.conn.abandon()
		return nil
	}
	return r.conn.Close()
}

func (r *relay) LocalAddr() net.Addr                { return r.conn.LocalAddr() }
func (r *relay) RemoteAddr() net.Addr               { return r.conn.RemoteAddr() }
func (r *relay) SetDeadline(t time.Time) error      { return r.conn.SetDeadline(t) }
func (r *relay) SetReadDeadline(t time.Time) error  { return r.conn.SetReadDeadline(t) }
func (r *relay) SetWriteDeadline(t time.Time) error { return r.conn.SetWriteDeadline(t) }

// abort ends the relay without TLS's close_notify, so that the engine sees a
// broken stream and not a complete one.
func (r *relay) abort() {
	r.conn.abandon()
	_ = r.Close()
}

// hold records that cred's control connection holds the relay.
func (r *relay) hold(cred *Credential) {
	r.holder.Store(cred)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = true
}

func (r *relay) wasHeld() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held
}

// end records why the relay ends and ends it. The first reason is kept.
func (r *relay) end(reason string, cause error) {
	if r.setCut(reason, cause) {
		r.conn.abandon()
	}
}

// setCut records the reason and reports whether it is the first one.
func (r *relay) setCut(reason string, cause error) bool {
	holder := r.holder.Load()
	err := &CutError{
		Engine: r.conn.engine.Name, Reason: reason,
		Serial: holder.Serial(), NotAfter: holder.Response.NotAfter, Err: cause,
	}
	c := r.relays.c
	if failed := c.renewal.Load(); failed != nil {
		err.Renewal = failed.err
	}
	r.mu.Lock()
	if r.cut != nil || r.closed {
		r.mu.Unlock()
		return false
	}
	r.cut = err
	close(r.cutSet)
	r.mu.Unlock()
	c.stats.cut.Add(1)
	c.log.Warn("relay cut", "engine", err.Engine, "reason", reason, "serial", err.Serial)
	c.event(Event{Kind: EventCut, Engine: err.Engine, Endpoint: r.conn.engine.Endpoint, Serial: err.Serial, NotAfter: err.NotAfter, Err: err})
	return true
}

// explain replaces a connection's error by the reason that the sidecar gave for
// it. EOF is returned as it is: TLS reports it only when the engine ended the
// stream, never for a broken connection.
func (r *relay) explain(err error) error {
	if cut, closed := r.state(); cut != nil {
		return cut
	} else if closed || errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	t := time.NewTimer(cutGrace)
	defer t.Stop()
	select {
	case <-r.cutSet:
	case <-t.C:
		r.inferCut(err)
	}
	if cut, _ := r.state(); cut != nil {
		return cut
	}
	return err
}

func (r *relay) state() (*CutError, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cut, r.closed
}

// inferCut sets the reason of a broken relay for which the control connection
// reported none. It is the refusal of the control connection or the certificate's
// expiry, otherwise ReasonLost.
func (r *relay) inferCut(err error) {
	reason := ReasonLost
	if refused := r.relays.refusal(); refused != nil {
		reason = refused.Reason
	} else if !time.Now().Before(r.holder.Load().Response.NotAfter) {
		reason = wire.ReasonExpired
	}
	r.setCut(reason, err)
}
