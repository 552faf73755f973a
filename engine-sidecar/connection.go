package sidecar

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/admission"
	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/relay"
)

// engineDialTimeout bounds the connection to the engine's socket.
const engineDialTimeout = 10 * time.Second

// connection is the connection of an authenticated client.
type connection struct {
	s       *sidecar
	tls     *tls.Conn
	below   *relay.Conn
	peer    peerInfo
	pending *pendingConn // nil once it has left
	began   time.Time
	session *session // set once bytes flow

	mu    sync.Mutex
	relay *relay.Relay // nil until bytes flow
	cut   string       // reason of a cut before bytes flow
}

// serve prepares the connection and starts carry in a new goroutine. This
// goroutine's stack is deep from the handshake, and a stack is a large part of
// the cost of an idle relay. For the same reason the connection does not keep
// peer and its certificates.
func (c *connection) serve(peer mtls.Peer) {
	if peer.ALPN == wire.ALPNControl {
		c.s.listener.conns.Go(func() { c.serveControl(peer) })
		return
	}
	live := c.admit(peer)
	if live == nil {
		return
	}
	if !c.open(peer) {
		live.Done()
		return
	}
	c.s.listener.conns.Go(func() { c.carry(live) })
}

// carry relays until the end. Its frame stays while bytes flow, so it is
// small.
func (c *connection) carry(live *admission.AdmittedRelay) {
	reason, err := c.relay.Run()
	detail := ""
	if why, more := live.CutReason(); why != "" {
		reason, detail = why, more
	}
	c.ended(reason, detail, err)
	live.Done()
}

// admit adds the connection to the gate's table, or refuses it and returns
// nil.
func (c *connection) admit(peer mtls.Peer) *admission.AdmittedRelay {
	name, err := mtls.RelayName(c.tls.ConnectionState())
	if err != nil {
		c.leavePending()
		_ = c.below.Abort()
		return nil
	}
	live, refusal := c.s.gate.Admit(peer, name, c)
	if refusal != nil {
		c.refuse(refusal, peer.ALPN)
		return nil
	}
	c.leavePending()
	return live
}

// leavePending removes the connection from those that are not authenticated
// yet.
func (c *connection) leavePending() {
	c.pending.leave()
	c.pending = nil
}

// refuse sends the reason to a client that speaks a mayfly protocol, and
// closes the connection of any other.
func (c *connection) refuse(r *admission.Refusal, alpn string) {
	defer c.leavePending()
	c.s.refused(r, c.peer, alpn)
	c.hangUp(r.Reason, alpn)
}

// hangUp closes the connection. A client that speaks a mayfly protocol gets
// the reason first.
func (c *connection) hangUp(reason, alpn string) {
	if alpn != wire.ALPNRelay && alpn != wire.ALPNControl {
		_ = c.below.Abort() // authorize admitted it a moment ago
		return
	}
	if err := c.writeVerdict(wire.Verdict(reason)); err == nil {
		_ = c.tls.CloseWrite()
	}
	c.below.Farewell(refusalWait)
}

// writeVerdict writes a verdict.
func (c *connection) writeVerdict(line string) error {
	if err := c.tls.SetWriteDeadline(time.Now().Add(c.s.cfg.Limits.HandshakeTimeout)); err != nil {
		return err
	}
	_, err := c.tls.Write([]byte(line))
	return err
}

// open connects the client to the engine and sends the verdict. It reports
// whether that succeeded.
func (c *connection) open(peer mtls.Peer) bool {
	s := c.s
	c.began = time.Now()
	engine, err := s.dialEngine()
	if err != nil {
		s.log.LogAttrs(context.Background(), slog.LevelError, "engine does not accept a connection",
			append(c.peer.attrs(), slog.String("reason", wire.ReasonEngineUnavailable), slog.Any("error", err))...)
		s.metrics.refusals.WithLabelValues(wire.ReasonEngineUnavailable).Inc()
		c.hangUp(wire.ReasonEngineUnavailable, peer.ALPN)
		return false
	}
	if peer.ALPN == wire.ALPNRelay {
		if err := c.writeVerdict(wire.VerdictOK); err != nil {
			_ = engine.Close()
			_ = c.below.Abort()
			return false
		}
	}
	r := relay.New(c.tls, c.below, engine)
	if s.engine.Done() != nil { // the engine's end cuts all relays, with the reason
		r.ExpectCut = func() bool { return s.crashed.Load() || !s.gate.Draining() }
	}
	c.attach(r)
	s.log.LogAttrs(context.Background(), slog.LevelInfo, "relay opened",
		append(c.peer.attrs(), slog.String("alpn", peer.ALPN))...)
	c.session = s.reporter.open(c.peer, r)
	return true
}

// ended reports how the relay ended, to the session, metrics and log.
func (c *connection) ended(reason, detail string, err error) {
	m := c.s.metrics
	in, out := c.relay.Bytes()
	if detail == "" {
		c.session.end(reason)
	} else {
		c.session.end(reason + ": " + detail)
	}
	m.ends.WithLabelValues(reason).Inc()
	m.bytes.WithLabelValues("in").Add(float64(in))
	m.bytes.WithLabelValues("out").Add(float64(out))
	attrs := append(c.peer.attrs(), slog.String("reason", reason), slog.Int64("bytes_in", in), slog.Int64("bytes_out", out),
		slog.Duration("lasted", time.Since(c.began).Round(time.Millisecond)))
	if detail != "" {
		attrs = append(attrs, slog.String("detail", detail))
	}
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	}
	c.s.log.LogAttrs(context.Background(), slog.LevelInfo, "relay ended", attrs...)
}

func (s *sidecar) dialEngine() (*net.UnixConn, error) {
	d := net.Dialer{Timeout: engineDialTimeout}
	conn, err := d.Dial("unix", s.cfg.EngineSocket)
	if err != nil {
		return nil, err
	}
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("not a unix socket"), conn.Close())
	}
	return unix, nil
}

// attach makes r the relay that Cut cuts.
func (c *connection) attach(r *relay.Relay) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.relay = r
	if c.cut != "" {
		r.Cut(c.cut)
	}
}

// Cut implements admission.Cutter.
func (c *connection) Cut(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.relay != nil {
		c.relay.Cut(reason)
		return
	}
	c.cut = reason
	_ = c.below.Abort()
}
