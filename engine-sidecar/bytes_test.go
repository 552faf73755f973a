package sidecar_test

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// repetitions is the number of repetitions of each ending.
const repetitions = 80

// ending is a way to end a connection through the whole sidecar. Both sides
// compare every byte.
type ending struct {
	name   string
	engine func(c *net.UnixConn) error
	client func(c *tls.Conn) error
	// reason is the end reason of every relay, and in and out are its bytes.
	reason  string
	in, out int
}

func endings() []ending {
	short, long := make([]byte, 100<<10), make([]byte, 1<<20)
	rand.Read(short)
	rand.Read(long)
	return []ending{
		{
			name: "client half-closes, long answer", reason: "closed", in: len(short), out: len(long),
			engine: func(c *net.UnixConn) error {
				if err := readAll(c, short); err != nil {
					return err
				}
				return errors.Join(write(c, long), c.Close())
			},
			client: func(c *tls.Conn) error {
				if err := errors.Join(write(c, short), c.CloseWrite()); err != nil {
					return err
				}
				return errors.Join(readAll(c, long), c.Close())
			},
		},
		{
			name: "engine half-closes, client sends on", reason: "closed", in: len(long), out: len(short),
			engine: func(c *net.UnixConn) error {
				if err := errors.Join(write(c, short), c.CloseWrite()); err != nil {
					return err
				}
				return errors.Join(readAll(c, long), c.Close())
			},
			client: func(c *tls.Conn) error {
				if err := readAll(c, short); err != nil {
					return err
				}
				return errors.Join(write(c, long), c.Close())
			},
		},
		{
			name: "engine closes, slow reader", reason: "closed", out: len(long),
			engine: func(c *net.UnixConn) error { return errors.Join(write(c, long), c.Close()) },
			client: func(c *tls.Conn) error { return errors.Join(readAll(slowly{c}, long), c.Close()) },
		},
		truncation("FIN without close_notify", short, nil),
		truncation("FIN in a record's header", short, []byte{23, 3, 3, 1}),
		truncation("FIN in a record's body", short, append([]byte{23, 3, 3, 1, 0}, make([]byte, 255)...)),
	}
}

// truncation is a client whose TCP stream ends within a record. All complete
// records before it arrive. The engine sees no end of stream, and cannot
// answer.
func truncation(name string, whole, part []byte) ending {
	return ending{
		name: name, reason: "truncated", in: len(whole),
		engine: func(c *net.UnixConn) error {
			if err := readAll(c, whole); err != nil {
				return err
			}
			if _, err := c.Write([]byte("answer")); !errors.Is(err, syscall.EPIPE) {
				return fmt.Errorf("write after a truncated request: %v, want EPIPE", err)
			}
			return c.Close()
		},
		client: func(c *tls.Conn) error {
			return errors.Join(write(c, whole), write(c.NetConn(), part), c.NetConn().(*net.TCPConn).CloseWrite())
		},
	}
}

// slowly reads small parts with pauses.
type slowly struct{ r io.Reader }

var pause atomic.Int64

func (s slowly) Read(p []byte) (int, error) {
	if pause.Add(1)%8 == 0 {
		time.Sleep(50 * time.Microsecond) // the reader must be slow for this test
	}
	return s.r.Read(p[:min(len(p), 16<<10)])
}

func write(w io.Writer, b []byte) error {
	_, err := w.Write(b)
	return err
}

// readAll reads to the end, which must follow exactly want.
func readAll(r io.Reader, want []byte) error {
	got, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("after %d bytes: %w", len(got), err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%d bytes, want %d", len(got), len(want))
	}
	return nil
}

// TestEveryByte: no byte is lost at the end of a connection. The sidecar
// counts all bytes and reports how each connection ended.
func TestEveryByte(t *testing.T) {
	t.Parallel()
	for _, e := range endings() {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			w := setUp(t).run()
			// The sidecar has made this connection to check that the engine answers.
			probe, err := w.engine.Accept()
			if err != nil {
				t.Fatal(err)
			}
			probe.Close()
			cert := w.clientCert(nil)
			for i := range repetitions {
				alpn := [][]string{{wire.ALPNRelay}, nil}[i%2]
				if err := w.repeat(e, cert, alpn); err != nil {
					t.Fatalf("repetition %d: %v\n%s", i, err, w.log)
				}
			}
			for _, want := range []string{
				fmt.Sprintf(`mayfly_sidecar_relay_ends_total{reason="%s"} %d`, e.reason, repetitions),
				fmt.Sprintf(`mayfly_sidecar_relayed_bytes_total{direction="in"} %v`, float64(e.in*repetitions)),
				fmt.Sprintf(`mayfly_sidecar_relayed_bytes_total{direction="out"} %v`, float64(e.out*repetitions)),
			} {
				eventually(t, want, func() bool { _, b := w.get("/metrics"); return contains(b, want+"\n") })
			}
			if n := strings.Count(w.log.String(), "reason="+e.reason); n != repetitions {
				t.Errorf("the log has %d relays that ended %q, want %d", n, e.reason, repetitions)
			}
		})
	}
}

func (w *world) repeat(e ending, cert *tls.Certificate, alpn []string) error {
	conn, err := w.dial(cert, alpn...)
	if err != nil {
		return err
	}
	defer conn.Close()
	if len(alpn) > 0 && w.verdict(conn) != "" {
		return errors.New("refused")
	}
	engine, err := w.engine.Accept()
	if err != nil {
		return err
	}
	defer engine.Close()
	told := make(chan error, 1)
	go func() { told <- e.engine(engine.(*net.UnixConn)) }()
	client := e.client(conn)
	if err := engine.SetDeadline(time.Now().Add(20 * time.Second)); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	if err := <-told; err != nil || client != nil {
		return fmt.Errorf("engine: %v; client: %v", err, client)
	}
	return nil
}
