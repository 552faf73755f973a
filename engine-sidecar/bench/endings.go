package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"time"
)

// endingMost bounds one repetition. A server that does not end in time counts
// as a loss.
const endingMost = 10 * time.Second

// ending is a way to end a connection. Its run reports whether every byte
// arrived.
type ending struct {
	name string
	run  func(w *world, conn *tls.Conn, id uint64) (whole bool, err error)
}

var allEndings = []ending{
	{"client half-closes, long answer", clientHalfCloses},
	{"engine half-closes, client sends on", engineHalfCloses},
	{"engine closes, slow reader", engineCloses},
	{"FIN without close_notify", truncates},
}

// endings counts, for each server and each ending, the repetitions that lost
// bytes, or in which a truncated request looked complete.
func (w *world) endings(ctx context.Context, o options, r *report) error {
	id := uint64(0)
	for _, s := range w.servers {
		if err := w.restart(ctx, s); err != nil {
			return err
		}
		for _, e := range allEndings {
			w.say("%s: %s", s.name, e.name)
			results := make([]bool, o.losses)
			first := id
			id += uint64(o.losses)
			err := each(8, o.losses, func(i int) error {
				conn, err := w.dial(s, classical, i)
				if err != nil {
					return err
				}
				defer conn.NetConn().Close()
				if err := conn.SetDeadline(time.Now().Add(endingMost)); err != nil {
					return err
				}
				whole, _ := e.run(w, conn, first+uint64(i)) // an error is a loss
				results[i] = whole
				return ctx.Err()
			})
			if err != nil {
				return fmt.Errorf("%s: %s: %w", s.name, e.name, err)
			}
			lost := 0
			for _, whole := range results {
				if !whole {
					lost++
				}
			}
			r.add(s, row{e.name, fmt.Sprintf("lost of %d", o.losses)}, float64(lost))
		}
	}
	return nil
}

const (
	question = 300 << 10
	answer   = 2 << 20 // more than all socket buffers
)

// clientHalfCloses sends a question, half-closes, and reads a long answer.
func clientHalfCloses(w *world, conn *tls.Conn, id uint64) (bool, error) {
	told := w.engine.expect(id)
	if err := send(conn, request(askAnswer, answer, id), question); err != nil {
		return false, err
	}
	if err := conn.CloseWrite(); err != nil {
		return false, err
	}
	got, err := io.ReadAll(conn)
	if err != nil {
		return false, err
	}
	h, err := await(told)
	return poured(got, answer) && poured(h.bytes, question), err
}

// engineHalfCloses has the engine end its stream first, while the client keeps
// sending.
func engineHalfCloses(w *world, conn *tls.Conn, id uint64) (bool, error) {
	told := w.engine.expect(id)
	if _, err := conn.Write(request(askFirst, question, id)); err != nil {
		return false, err
	}
	got, err := io.ReadAll(conn)
	if err != nil {
		return false, err
	}
	if err := pour(conn, answer); err != nil {
		return false, err
	}
	if err := conn.CloseWrite(); err != nil {
		return false, err
	}
	h, err := await(told)
	return poured(got, question) && poured(h.bytes, answer), err
}

// engineCloses has the engine close while its answer is on the way to a slow
// client.
func engineCloses(_ *world, conn *tls.Conn, id uint64) (bool, error) {
	if _, err := conn.Write(request(askHangUp, answer, id)); err != nil {
		return false, err
	}
	var got []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buf)
		got = append(got, buf[:n]...)
		if err == io.EOF {
			return poured(got, answer), nil
		}
		if err != nil {
			return false, err
		}
		time.Sleep(time.Millisecond) // the reader is slow
	}
}

// truncates ends the client's TCP stream without close_notify. The engine must
// not take the received part for the whole.
func truncates(w *world, conn *tls.Conn, id uint64) (bool, error) {
	told := w.engine.expect(id)
	if err := send(conn, request(askTruncation, 0, id), question); err != nil {
		return false, err
	}
	if err := conn.NetConn().(*net.TCPConn).CloseWrite(); err != nil {
		return false, err
	}
	h, err := await(told)
	return err == nil && !h.clean, err
}

// send writes a request and n bytes.
func send(conn net.Conn, head []byte, n int64) error {
	if _, err := conn.Write(head); err != nil {
		return err
	}
	return pour(conn, n)
}

func await(told <-chan heard) (heard, error) {
	select {
	case h := <-told:
		return h, nil
	case <-time.After(endingMost):
		return heard{}, fmt.Errorf("the engine heard no end within %v", endingMost)
	}
}
