package sidecar

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/admission"
)

const (
	// noticeWait is how long a cut waits until its notice is written.
	// noticeLead is the time between the written notice and the cut.
	noticeWait = 250 * time.Millisecond
	noticeLead = 10 * time.Millisecond
	// controlQueue bounds the messages that wait to be written. Further cuts
	// get no notice.
	controlQueue = 1024
	// controlWrite bounds one write.
	controlWrite = 10 * time.Second
	// controlRate bounds the lines per second of a client, after controlBurst:
	// a hold for each relay of a run, and then some pings. Further lines are
	// read later.
	controlRate, controlBurst = 50, 1024
)

// serveControl runs a control connection to its end.
func (c *connection) serveControl(peer mtls.Peer) {
	k := &control{conn: c, out: make(chan message, controlQueue), ending: make(chan struct{}), gone: make(chan struct{})}
	member, refusal := c.s.gate.OpenControl(peer, k)
	if refusal != nil {
		c.refuse(refusal, peer.ALPN)
		return
	}
	c.leavePending()
	var wg sync.WaitGroup
	wg.Go(k.write)
	err := k.read(member)
	member.Close()
	k.End()
	wg.Wait()
	c.s.log.LogAttrs(context.Background(), slog.LevelDebug, "control connection ended",
		append(c.peer.attrs(), slog.Any("error", err))...)
}

// control is a live control connection, and its admission.Notifier.
type control struct {
	conn   *connection
	out    chan message
	ending chan struct{} // closed by End
	gone   chan struct{} // closed when the writer has ended
	once   sync.Once
}

// message is a line to write. sent, if not nil, is called after the write.
type message struct {
	line []byte
	sent func()
}

// Notify implements admission.Notifier.
func (k *control) Notify(m wire.Control, sent func()) {
	line, err := m.Line()
	if err != nil {
		sent()
		return
	}
	once := sync.OnceFunc(sent)
	select {
	case k.out <- message{line, func() { time.AfterFunc(noticeLead, once) }}:
		// The writer may block on a client that does not read.
		time.AfterFunc(noticeWait, once)
	default:
		once()
	}
}

// End implements admission.Notifier.
func (k *control) End() { k.once.Do(func() { close(k.ending) }) }

// answer queues a line, and waits for space in the queue.
func (k *control) answer(m wire.Control) error {
	line, err := m.Line()
	if err != nil {
		return err
	}
	select {
	case k.out <- message{line: line}:
		return nil
	case <-k.gone:
		return io.ErrClosedPipe
	}
}

// write owns the outgoing side of the connection, and closes it.
func (k *control) write() {
	defer close(k.gone)
	conn := k.conn.tls
	err := k.writeMessage(conn, message{line: []byte(wire.VerdictOK)})
	for err == nil {
		select {
		case m := <-k.out:
			err = k.writeMessage(conn, m)
			continue
		case <-k.ending:
		}
		err = k.flush(conn)
		break
	}
	if err == nil && conn.CloseWrite() == nil {
		// This wakes read, if read has not ended.
		_ = k.conn.below.SetReadDeadline(time.Now().Add(refusalWait))
		return
	}
	_ = k.conn.below.Abort()
	k.release()
}

// flush writes the queued messages.
func (k *control) flush(conn *tls.Conn) error {
	for {
		select {
		case m := <-k.out:
			if err := k.writeMessage(conn, m); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

// release calls sent for the queued messages, which will not be written.
func (k *control) release() {
	for {
		select {
		case m := <-k.out:
			if m.sent != nil {
				m.sent()
			}
		default:
			return
		}
	}
}

func (k *control) writeMessage(conn *tls.Conn, m message) error {
	err := conn.SetWriteDeadline(time.Now().Add(controlWrite))
	if err == nil {
		_, err = conn.Write(m.line)
	}
	if m.sent != nil {
		m.sent()
	}
	return err
}

// read handles the client's lines until the connection ends or a line is
// invalid.
func (k *control) read(member *admission.Control) error {
	defer k.conn.below.Close()
	if err := k.conn.below.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	lines := bufio.NewScanner(k.conn.tls)
	lines.Buffer(nil, wire.MaxControlLine)
	pace := rate.NewLimiter(controlRate, controlBurst)
	for lines.Scan() {
		if err := k.throttle(pace); err != nil {
			return err
		}
		m, err := wire.ParseControl(lines.Bytes())
		if err != nil {
			return err
		}
		member.Touch()
		switch {
		case m.Hold != nil:
			err = k.answer(wire.Control{Held: member.Hold(m.Hold)})
		case m.Ping != 0:
			err = k.answer(wire.Control{Pong: m.Ping})
		}
		if err != nil {
			return err
		}
	}
	return lines.Err()
}

// throttle waits until the client's next line is within the rate.
func (k *control) throttle(pace *rate.Limiter) error {
	wait := pace.Reserve().Delay()
	if wait <= 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-k.gone:
		return io.ErrClosedPipe
	}
}

var _ admission.Cutter = (*connection)(nil)
var _ admission.Notifier = (*control)(nil)
