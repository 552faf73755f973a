package relay

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// How a relay ended, beside the reason given to Cut.
const (
	// Closed: both sides ended their streams, and each was told.
	Closed = "closed"
	// Truncated: the client's TCP stream ended without close_notify. What it
	// sent may be incomplete, so the engine's connection was closed whole.
	Truncated = "truncated"
	// ClientLost: reading from or writing to the client failed.
	ClientLost = "client_lost"
	// EngineLost: the engine's connection failed, or the engine closed it with
	// bytes unread. What it sent before was delivered, without close_notify.
	EngineLost = "engine_lost"
)

// lingerIdle ends the wait for a client to take what was sent to it, when it
// acknowledged nothing for so long, not even that its window is closed.
const lingerIdle = 30 * time.Second

// Relay is one TLS connection joined to one connection of the engine. It is
// used once.
type Relay struct {
	// ExpectCut, if set before Run, reports whether Cut follows the end of the
	// engine's process. The relay then waits up to cutWait for Cut before it passes
	// the end of the engine's stream on, which the client would take for a whole
	// answer.
	ExpectCut func() bool

	tls    *tls.Conn
	conn   *Conn
	engine *net.UnixConn

	in, out      atomic.Int64
	reason       atomic.Pointer[string] // the first Cut's
	down         chan engineEnd
	engineClosed bool // owned by up: the engine takes no more bytes

	readMu  sync.Mutex // held by up, but while it waits for the client
	keeper  *time.Timer
	armed   bool  // keeper runs
	armedAt int64 // in, when the keeper last looked
	over    bool
}

// engineEnd is how the engine's direction ended.
type engineEnd struct {
	clean  bool // the engine's end of stream, and close_notify was sent
	client bool // otherwise: the client's side failed, not the engine's
	late   bool // and that only when all bytes had been delivered
}

// New makes a relay of a TLS connection that has shaken hands, the Conn below
// it, and a connection to the engine. It owns all three, and t's ConnectionState
// names no certificates any more.
func New(t *tls.Conn, below *Conn, engine *net.UnixConn) *Relay {
	forgetHandshake(t)
	return &Relay{tls: t, conn: below, engine: engine, down: make(chan engineEnd, 1)}
}

// Bytes tells what has been relayed so far, client to engine and back.
func (r *Relay) Bytes() (in, out int64) { return r.in.Load(), r.out.Load() }

// Cut ends the relay at once, on both sides; Run then returns the reason of
// the first Cut. It may be called at any time and more than once.
func (r *Relay) Cut(reason string) {
	if r.reason.CompareAndSwap(nil, &reason) {
		r.abort()
	}
}

func (r *Relay) abort() {
	// Either may be closed already.
	_ = r.conn.Abort()
	_ = r.engine.Close()
}

// Run relays until both directions have ended and says how. Everything is
// closed when it returns. The error says more where the end was not clean.
func (r *Relay) Run() (reason string, err error) {
	reason, err = r.run()
	if cut := r.reason.Load(); cut != nil {
		return *cut, nil
	}
	return reason, err
}

func (r *Relay) run() (reason string, err error) {
	if err := r.conn.startRelaying(); err != nil {
		r.abort()
		return ClientLost, err
	}
	var downErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		var end engineEnd
		end, downErr = r.downstream()
		r.down <- end
		// Wake upstream, which waits for the client. Fails once that is closed.
		_ = r.conn.SetReadDeadline(time.Unix(1, 0))
	})
	reason, err = r.upstream()
	if reason != Closed {
		r.abort()
		wg.Wait()
		if end := <-r.down; end.client && !errors.Is(downErr, net.ErrClosed) {
			// The kernel tells one of the two directions why, and the other an end
			// of stream.
			return ClientLost, downErr
		}
		return reason, err
	}
	wg.Wait()
	return r.finish(downErr)
}

// finish closes both sides after the client's stream ended or went unheard.
func (r *Relay) finish(downErr error) (string, error) {
	end := <-r.down
	defer r.engine.Close()
	if end.client {
		_ = r.conn.Abort()
		if end.late && !r.engineClosed {
			return Closed, nil // it had said its own end, and then hung up
		}
		return ClientLost, downErr
	}
	// The client may be slow, and may still be sending: all that was sent to
	// it is its own before the socket goes.
	err := r.linger(r.engineClosed || !end.clean)
	err = errors.Join(err, r.conn.Close())
	switch {
	case !end.clean:
		return EngineLost, downErr
	case r.engineClosed && err != nil:
		return ClientLost, err
	case hungUp(err):
		return Closed, nil // it had said its own end
	}
	return Closed, err
}

// hungUp reports whether the client closed its socket without waiting for the
// answer to its close_notify, as most do.
func hungUp(err error) bool {
	return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

// upstream carries client to engine. It returns Closed when the client said
// close_notify, or when the engine takes no more and its own end was
// delivered.
func (r *Relay) upstream() (string, error) {
	r.readMu.Lock()
	defer r.readMu.Unlock()
	defer r.stopTrim()
	for {
		buf := getBuffer()
		n, err := r.readRecords(*buf)
		if n > 0 {
			r.toEngine((*buf)[:n])
		}
		putBuffer(buf)
		switch {
		case err == nil:
			continue
		case err == errAgain:
			reason, err := r.await()
			if reason != "" {
				return reason, err
			}
			continue
		case errors.Is(err, io.EOF) && r.conn.readErr == nil:
			// close_notify: the TCP stream itself has not ended.
			if !r.engineClosed {
				// Fails only when the engine is gone, which downstream sees.
				_ = r.engine.CloseWrite()
			}
			return Closed, nil
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return Truncated, io.ErrUnexpectedEOF
		default:
			return ClientLost, err
		}
	}
}

// readRecords decrypts what is at hand until p is full or nothing is left.
func (r *Relay) readRecords(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.tls.Read(p[n:])
		n += m
	}
	return n, err
}

// toEngine writes to the engine. When the engine takes no more, the client's
// bytes have nowhere to go; they are read and dropped, so that a reset does not
// take the engine's last bytes from the client.
func (r *Relay) toEngine(p []byte) {
	if r.engineClosed {
		return
	}
	n, err := r.engine.Write(p)
	r.in.Add(int64(n))
	if err != nil {
		r.engineClosed = true
	}
}

// await waits for more from the client. It returns a reason when the client
// need not be heard any more: the engine's own end has been passed on, and the
// engine hears nothing.
func (r *Relay) await() (string, error) {
	for {
		if end, ended := r.downEnded(); ended && (r.engineClosed || !end.clean) {
			return Closed, nil
		}
		r.scheduleTrim()
		r.readMu.Unlock()
		err := r.conn.fill()
		r.readMu.Lock()
		switch {
		case err == nil, errors.Is(err, io.EOF):
			return "", nil // the next read says which end it was
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return ClientLost, err
		}
		// Woken by downstream.
		if err := r.conn.SetReadDeadline(time.Time{}); err != nil {
			return ClientLost, err
		}
	}
}

func (r *Relay) downEnded() (engineEnd, bool) {
	select {
	case end := <-r.down:
		r.down <- end
		return end, true
	default:
		return engineEnd{}, false
	}
}

// downstream carries engine to client.
func (r *Relay) downstream() (engineEnd, error) {
	raw, err := r.engine.SyscallConn()
	if err != nil {
		return engineEnd{}, err
	}
	var (
		buf    *[]byte
		n      int
		sysErr error
	)
	once := func(fd uintptr) bool {
		buf = getBuffer()
		if n, sysErr = readFD(fd, *buf); n <= 0 {
			putBuffer(buf)
			buf = nil
		}
		return sysErr != unix.EAGAIN
	}
	for {
		if err := raw.Read(once); err != nil {
			return engineEnd{}, err
		}
		if n == 0 && r.awaitCut(cutWait) {
			return engineEnd{}, net.ErrClosed
		}
		if sysErr != nil {
			return engineEnd{}, os.NewSyscallError("read", sysErr)
		}
		if n == 0 {
			return r.sendCloseNotify()
		}
		r.conn.startCork()
		_, err := r.tls.Write((*buf)[:n])
		err = errors.Join(err, r.conn.flush())
		putBuffer(buf)
		if err != nil {
			// The client is gone: wake the other direction too.
			_ = r.conn.Abort()
			return engineEnd{client: true}, err
		}
		r.out.Add(int64(n))
	}
}

// cutWait bounds the wait for Cut after the end of the engine's process, which a
// busy machine reports late.
const cutWait = 5 * time.Second

// awaitCut waits up to most for Cut, where it is expected, and reports whether it
// came.
func (r *Relay) awaitCut(most time.Duration) bool {
	if r.ExpectCut == nil || !peerExiting(r.engine) || !r.ExpectCut() {
		return false
	}
	for deadline := time.Now().Add(most); r.reason.Load() == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// sendCloseNotify passes the engine's end of stream on as close_notify.
func (r *Relay) sendCloseNotify() (engineEnd, error) {
	r.conn.startCork()
	err := errors.Join(r.tls.CloseWrite(), r.conn.flush())
	if err != nil {
		_ = r.conn.Abort()
		return engineEnd{client: true, late: true}, err
	}
	return engineEnd{clean: true}, nil
}

// linger waits until the client has acknowledged everything, and, if it may
// still be sending, until it has closed: closing a socket with bytes unread
// resets it, and some systems then drop what was not yet read there.
func (r *Relay) linger(sending bool) error {
	if err := r.conn.tcp.CloseWrite(); err != nil {
		return err
	}
	step := time.Millisecond
	left, since := r.conn.unsent(), time.Now()
	for left > 0 || sending {
		if err := r.dropInput(step); errors.Is(err, io.EOF) {
			sending = false
		} else if err != nil {
			return err
		}
		now := r.conn.unsent()
		if now != left {
			left, since = now, time.Now()
		} else if time.Since(since) > lingerIdle && (left == 0 || !r.conn.alive(lingerIdle)) {
			return os.ErrDeadlineExceeded
		}
		step = min(step*2, 250*time.Millisecond)
	}
	return nil
}

// dropInput reads and drops for at most step. It returns io.EOF once the
// client's TCP stream has ended, at first at once and then after step.
func (r *Relay) dropInput(step time.Duration) error {
	if r.conn.readErr == io.EOF {
		time.Sleep(step) // nothing to wait on but the peer's acknowledgement
		return io.EOF
	}
	if err := r.conn.SetReadDeadline(time.Now().Add(step)); err != nil {
		return err
	}
	err := r.conn.fill()
	r.conn.release()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}
