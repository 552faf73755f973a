package main

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
)

// Requests of a client to the engine. A request is the letter, a number of
// bytes and the request's id. askEcho is only the letter, which the engine
// echoes too.
const (
	askEcho       = 'e' // echo everything, beginning with the letter
	askTake       = 'u' // read that many bytes, answer one, wait for the next request
	askGive       = 'd' // write that many bytes, wait for the next request
	askAnswer     = 'h' // read to the end, then write that many bytes and close
	askFirst      = 's' // write that many bytes, half-close, then read to the end
	askHangUp     = 'c' // write that many bytes and close
	askTruncation = 't' // read to the end, then check whether the client is still connected

	requestSize = 1 + 8 + 8
)

// engine is the engine behind the socket.
type engine struct {
	ln    net.Listener
	conns sync.WaitGroup

	mu   sync.Mutex
	open map[net.Conn]struct{}
	read map[uint64]chan heard
}

// heard is the data that the engine read from a client until the end.
type heard struct {
	bytes []byte
	clean bool // the end looked complete: the engine could still write
}

func listenEngine(path string) (*engine, error) {
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	e := &engine{ln: ln, open: map[net.Conn]struct{}{}, read: map[uint64]chan heard{}}
	e.conns.Go(e.accept)
	return e, nil
}

func (e *engine) close() {
	_ = e.ln.Close()
	e.mu.Lock()
	for c := range e.open {
		_ = c.Close()
	}
	e.mu.Unlock()
	e.conns.Wait()
}

func (e *engine) accept() {
	for {
		c, err := e.ln.Accept()
		if err != nil {
			return
		}
		e.mu.Lock()
		e.open[c] = struct{}{}
		e.mu.Unlock()
		e.conns.Go(func() {
			e.serve(c.(*net.UnixConn))
			_ = c.Close()
			e.mu.Lock()
			delete(e.open, c)
			e.mu.Unlock()
		})
	}
}

// expect returns the channel that gets the data of request id.
func (e *engine) expect(id uint64) <-chan heard {
	e.mu.Lock()
	defer e.mu.Unlock()
	ch := make(chan heard, 1)
	e.read[id] = ch
	return ch
}

func (e *engine) tell(id uint64, h heard) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if ch := e.read[id]; ch != nil {
		ch <- h
		delete(e.read, id)
	}
}

func (e *engine) serve(c *net.UnixConn) {
	for {
		var request [requestSize]byte
		if _, err := io.ReadFull(c, request[:1]); err != nil {
			return
		}
		if request[0] == askEcho {
			e.echo(c)
			return
		}
		if _, err := io.ReadFull(c, request[1:]); err != nil {
			return
		}
		n, id := int64(binary.BigEndian.Uint64(request[1:])), binary.BigEndian.Uint64(request[9:])
		if again := e.answer(c, request[0], n, id); !again {
			return
		}
	}
}

// echo uses its own small buffer, so that ten thousand idle connections cost
// this process little memory.
func (e *engine) echo(c *net.UnixConn) {
	if _, err := c.Write([]byte{askEcho}); err != nil {
		return
	}
	buf := make([]byte, 4<<10)
	for {
		n, err := c.Read(buf)
		if n > 0 {
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// answer executes a request, and reports whether another may follow.
func (e *engine) answer(c *net.UnixConn, ask byte, n int64, id uint64) bool {
	switch ask {
	case askTake:
		if discard(c, n) != nil {
			return false
		}
		_, err := c.Write([]byte{1})
		return err == nil
	case askGive:
		return pour(c, n) == nil
	case askAnswer:
		got, err := io.ReadAll(c)
		e.tell(id, heard{got, err == nil})
		_ = pour(c, n)
	case askFirst:
		_ = pour(c, n)
		_ = c.CloseWrite()
		got, err := io.ReadAll(c)
		e.tell(id, heard{got, err == nil})
	case askHangUp:
		_ = pour(c, n)
	case askTruncation:
		got, err := io.ReadAll(c)
		if err == nil {
			// A half-closed connection accepts this byte; a closed one does not.
			_, err = c.Write([]byte{1})
		}
		e.tell(id, heard{got, err == nil})
	}
	return false
}

// request returns the bytes of a request.
func request(ask byte, n int64, id uint64) []byte {
	b := []byte{ask}
	b = binary.BigEndian.AppendUint64(b, uint64(n))
	return binary.BigEndian.AppendUint64(b, id)
}

// content is the data that pour repeats. No two parts of it are alike.
var content = func() []byte {
	b := make([]byte, 256<<10)
	x := uint64(88172645463325252) // xorshift64
	for i := 0; i < len(b); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.BigEndian.PutUint64(b[i:], x)
	}
	return b
}()

// pour writes n bytes of content.
func pour(w io.Writer, n int64) error {
	for n > 0 {
		m, err := w.Write(content[:min(n, int64(len(content)))])
		if n -= int64(m); err != nil {
			return err
		}
	}
	return nil
}

var discards = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// discard reads exactly n bytes.
func discard(r io.Reader, n int64) error {
	buf := discards.Get().(*[]byte)
	defer discards.Put(buf)
	for n > 0 {
		m, err := r.Read((*buf)[:min(n, int64(len(*buf)))])
		if n -= int64(m); err != nil && n > 0 {
			return errors.Join(io.ErrUnexpectedEOF, err)
		}
	}
	return nil
}

// poured reports whether got is the first n bytes that pour writes.
func poured(got []byte, n int64) bool {
	if int64(len(got)) != n {
		return false
	}
	for i := 0; i < len(got); i += len(content) {
		part := got[i:min(i+len(content), len(got))]
		if string(part) != string(content[:len(part)]) {
			return false
		}
	}
	return true
}
