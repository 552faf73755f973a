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

// How a relay ended, in addition to the reasons passed to Cut.
const (
	// Closed: both sides ended their streams, and each end was passed on.
	Closed = "closed"
	// Truncated: the client's TCP stream ended without close_notify. The
	// client's data may be incomplete, so the engine's connection was closed
	// in both directions.
	Truncated = "truncated"
	// ClientLost: reading from or writing to the client failed.
	ClientLost = "client_lost"
	// EngineLost: the engine's connection failed, or the engine closed it with
	// unread bytes. The client got all earlier bytes, without close_notify.
	EngineLost = "engine_lost"
)

// lingerIdle ends the wait for a client to receive the sent bytes, when it has
// acknowledged nothing for this long, not even a closed window.
const lingerIdle = 30 * time.Second

// Relay joins one TLS connection to one connection of the engine. It is used
// once.
type Relay struct {
	// ExpectCut, if set before Run, reports whether Cut follows the end of the
	// engine's process. The relay then waits up to cutWait for Cut before it
	// passes on the end of the engine's stream. Otherwise the client would
	// take a partial answer for a complete one.
	ExpectCut func() bool

	tls    *tls.Conn
	conn   *Conn
	engine *net.UnixConn

	in, out      atomic.Int64
	reason       atomic.Pointer[string] // the first Cut's
	down         chan engineEnd
	engineClosed bool // owned by upstream: the engine takes no more bytes

	readMu  sync.Mutex // held by upstream, except while it waits for the client
	keeper  *time.Timer
	armed   bool  // keeper is running
	armedAt int64 // value of in at keeper's last check
	over    bool
}

// engineEnd describes how the engine's direction ended.
type engineEnd struct {
	clean  bool // end of the engine's stream, and close_notify was sent
	client bool // not clean: the client's side failed, not the engine's
	late   bool // the client's side failed after all bytes were delivered
}

// New creates a relay from a TLS connection after its handshake, the Conn
// below it, and a connection to the engine. The relay owns all three.
// Afterwards t's ConnectionState names no certificates.
func New(t *tls.Conn, below *Conn, engine *net.UnixConn) *Relay {
	forgetHandshake(t)
	return &Relay{tls: t, conn: below, engine: engine, down: make(chan engineEnd, 1)}
}

// Bytes returns the bytes relayed so far, client to engine and engine to
// client.
func (r *Relay) Bytes() (in, out int64) { return r.in.Load(), r.out.Load() }

// Cut ends the relay at once, on both sides. Run then returns the reason of
// the first Cut. Cut may be called at any time and more than once.
func (r *Relay) Cut(reason string) {
	if r.reason.CompareAndSwap(nil, &reason) {
		r.abort()
	}
}

func (r *Relay) abort() {
	// Either may already be closed.
	_ = r.conn.Abort()
	_ = r.engine.Close()
}

// Run relays until both directions have ended and returns the reason. It
// closes all connections. The error gives details when the end was not clean.
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
		// Wake upstream, which waits for the client. This fails once conn is
		// closed.
		_ = r.conn.SetReadDeadline(time.Unix(1, 0))
	})
	reason, err = r.upstream()
	if reason != Closed {
		r.abort()
		wg.Wait()
		if end := <-r.down; end.client && !errors.Is(downErr, net.ErrClosed) {
			// The kernel gives the error to one of the two directions, and an end of
			// stream to the other.
			return ClientLost, downErr
		}
		return reason, err
	}
	wg.Wait()
	return r.finish(downErr)
}

// finish closes both sides after the client's stream ended, or is no longer
// read.
func (r *Relay) finish(downErr error) (string, error) {
	end := <-r.down
	defer r.engine.Close()
	if end.client {
		_ = r.conn.Abort()
		if end.late && !r.engineClosed {
			return Closed, nil // the client had ended its stream, and then closed
		}
		return ClientLost, downErr
	}
	// The client may be slow, and may still be sending. It must get all sent
	// bytes before the socket closes.
	err := r.linger(r.engineClosed || !end.clean)
	err = errors.Join(err, r.conn.Close())
	switch {
	case !end.clean:
		return EngineLost, downErr
	case r.engineClosed && err != nil:
		return ClientLost, err
	case hungUp(err):
		return Closed, nil // the client had ended its stream
	}
	return Closed, err
}

// hungUp reports whether the client closed its socket without waiting for the
// answer to its close_notify, as most clients do.
func hungUp(err error) bool {
	return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

// upstream carries bytes from client to engine. It returns Closed when the
// client sent close_notify, or when the engine takes no more bytes and its own
// end was delivered.
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
				// This fails only when the engine is gone, which downstream detects.
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

// readRecords decrypts the available bytes until p is full or none are left.
func (r *Relay) readRecords(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.tls.Read(p[n:])
		n += m
	}
	return n, err
}

// toEngine writes to the engine. When the engine takes no more, the client's
// bytes are read and dropped: unread bytes would cause a reset, and the client
// could lose the engine's last bytes.
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

// await waits for more bytes from the client. It returns a reason when the
// client no longer needs to be read: the engine's end has been passed on, and
// the engine takes no more bytes.
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
			return "", nil // the next read finds which end it was
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

// downstream carries bytes from engine to client.
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
			// The client is gone: also wake the other direction.
			_ = r.conn.Abort()
			return engineEnd{client: true}, err
		}
		r.out.Add(int64(n))
	}
}

// cutWait bounds the wait for Cut after the end of the engine's process. A
// busy machine reports that end late.
const cutWait = 5 * time.Second

// awaitCut waits up to most for an expected Cut, and reports whether it came.
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
// still be sending, until it has closed. Closing a socket with unread bytes
// resets it, and some systems then drop the bytes that the client has not
// read.
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

// dropInput reads and drops bytes for at most step. It returns io.EOF once the
// client's TCP stream has ended: at once the first time, later after step.
func (r *Relay) dropInput(step time.Duration) error {
	if r.conn.readErr == io.EOF {
		time.Sleep(step) // only the peer's acknowledgement is left to wait for
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
