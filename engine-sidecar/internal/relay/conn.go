package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// recordHeader is the length of a TLS record's header (RFC 8446 section 5.1).
const recordHeader = 5

// errAgain is returned by Conn.Read when it may not block and holds no bytes.
// crypto/tls keeps a partial record over temporary errors.
var errAgain error = againError{}

type againError struct{}

func (againError) Error() string   { return "no bytes yet" }
func (againError) Timeout() bool   { return true }
func (againError) Temporary() bool { return true }

// Conn is a TCP connection below crypto/tls. Like any net.Conn it allows one
// reader and any number of writers at a time. Use NewConn to create one.
type Conn struct {
	tcp *net.TCPConn
	raw syscall.RawConn

	// Owned by the one reader.
	in       *[]byte // records from the kernel that crypto/tls has not read; nil when there are none
	pos, end int     // (*in)[pos:end]
	header   [recordHeader]byte
	have     int  // bytes of header that crypto/tls has read
	body     int  // bytes of the record's body that crypto/tls has not read
	relaying bool // Read returns errAgain instead of blocking
	readErr  error
	fillN    int
	fillErr  error
	fillFn   func(fd uintptr) bool

	mu   sync.Mutex
	cork *[]byte // bytes that Write collects; nil when Write does not collect

	peerTimeout peerTimeout
}

// NewConn wraps tcp and takes ownership of it.
func NewConn(tcp *net.TCPConn) (*Conn, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("raw connection: %w", err)
	}
	c := &Conn{tcp: tcp, raw: raw}
	c.fillFn = c.fillOnce
	return c, nil
}

// Read returns bytes of one record's header or of one record's body, never
// bytes of two records.
func (c *Conn) Read(p []byte) (int, error) {
	if c.pos == c.end {
		if c.readErr != nil {
			return 0, c.readErr
		}
		if c.relaying {
			return 0, errAgain
		}
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	if len(p) == 0 {
		return 0, nil
	}
	n := c.take(p)
	if c.pos == c.end {
		c.release()
	}
	return n, nil
}

// take copies held bytes up to the end of the header or of the body.
func (c *Conn) take(p []byte) int {
	held := (*c.in)[c.pos:c.end]
	if c.body == 0 {
		n := copy(p, held[:min(len(held), recordHeader-c.have)])
		copy(c.header[c.have:], held[:n])
		c.have += n
		c.pos += n
		if c.have == recordHeader {
			c.have = 0
			c.body = int(c.header[3])<<8 | int(c.header[4])
		}
		return n
	}
	n := copy(p, held[:min(len(held), c.body)])
	c.body -= n
	c.pos += n
	return n
}

// fill waits for bytes and reads them. It holds no buffer while it waits. It
// returns io.EOF at the end of the TCP stream and on every later call. A
// deadline error is not kept.
func (c *Conn) fill() error {
	if c.readErr != nil {
		return c.readErr
	}
	c.fillN, c.fillErr = 0, nil
	err := c.raw.Read(c.fillFn)
	switch {
	case err != nil && errors.Is(err, os.ErrDeadlineExceeded):
		return err
	case err != nil:
		c.readErr = err
	case c.fillErr != nil:
		c.readErr = os.NewSyscallError("read", c.fillErr)
	case c.fillN == 0:
		c.readErr = io.EOF
	default:
		c.pos, c.end = 0, c.fillN
		return nil
	}
	return c.readErr
}

func (c *Conn) fillOnce(fd uintptr) bool {
	c.in = getBuffer()
	c.fillN, c.fillErr = readFD(fd, *c.in)
	if c.fillN <= 0 {
		c.release()
	}
	return c.fillErr != unix.EAGAIN
}

func (c *Conn) release() {
	if c.in != nil {
		putBuffer(c.in)
		c.in = nil
	}
	c.pos, c.end = 0, 0
}

// readFD reads once, and retries after an interruption. n is never negative.
func readFD(fd uintptr, p []byte) (n int, err error) {
	for {
		n, err = unix.Read(int(fd), p)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// Write writes p, or collects it until flush.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cork == nil {
		return c.tcp.Write(p)
	}
	if len(*c.cork)+len(p) > corkSize && len(*c.cork) > 0 {
		c.watch()
		if _, err := c.tcp.Write(*c.cork); err != nil {
			return 0, err
		}
		*c.cork = (*c.cork)[:0]
	}
	if len(p) > corkSize {
		return c.tcp.Write(p)
	}
	*c.cork = append(*c.cork, p...)
	return len(p), nil
}

// startCork makes Write collect until flush.
func (c *Conn) startCork() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cork == nil {
		c.cork = getCork()
	}
}

// flush writes the bytes collected since startCork, in one call.
func (c *Conn) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cork == nil {
		return nil
	}
	var err error
	if len(*c.cork) > 0 {
		c.watch()
		_, err = c.tcp.Write(*c.cork)
	}
	putCork(c.cork)
	c.cork = nil
	return err
}

// startRelaying makes Read non-blocking, clears the deadlines, and disables
// the write deadlines that crypto/tls sets.
func (c *Conn) startRelaying() error {
	c.relaying = true
	return c.tcp.SetDeadline(time.Time{})
}

// unsent returns the number of bytes that the peer has not acknowledged, or 0
// where the kernel does not report it.
func (c *Conn) unsent() int {
	n := 0
	if err := c.raw.Control(func(fd uintptr) { n = outQueue(fd) }); err != nil {
		return 0
	}
	return n
}

// Abort closes the connection at once with a reset, and drops unsent bytes.
func (c *Conn) Abort() error {
	return errors.Join(c.tcp.SetLinger(0), c.tcp.Close())
}

// Close closes the TCP connection.
func (c *Conn) Close() error { return c.tcp.Close() }

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.tcp.LocalAddr() }

// RemoteAddr implements net.Conn. It returns the TCP peer, not the address of
// a PROXY header.
func (c *Conn) RemoteAddr() net.Addr { return c.tcp.RemoteAddr() }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.tcp.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn. While relaying it does nothing:
// crypto/tls sets five seconds around close_notify, but a slow reader needs
// longer for all the bytes before it.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if c.relaying {
		return nil
	}
	return c.tcp.SetWriteDeadline(t)
}

// Farewell closes the connection so that the peer can read the last bytes, an
// alert or a refusal. It sends FIN and drops incoming bytes until the peer
// closes too or most has passed. Closing with unread bytes would be a reset,
// and some peers would lose those last bytes.
func (c *Conn) Farewell(most time.Duration) {
	defer c.Close()
	if c.tcp.CloseWrite() != nil || c.tcp.SetReadDeadline(time.Now().Add(most)) != nil {
		return
	}
	for range 64 { // buffers: a peer that sends more is not reading
		if c.fill() != nil {
			return
		}
		c.release()
	}
}
