package supervise

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Probe defines which answer on the socket means that the engine is ready.
type Probe int

const (
	// ProbeAnswer sends the HTTP/2 preface (RFC 9113 section 3.4), as Dagger's
	// and BuildKit's clients do. A SETTINGS frame, or any other answer in
	// another protocol, means ready. Silence does not.
	ProbeAnswer Probe = iota
	// ProbeConnect accepts a successful connection, for engines that send
	// nothing before a request in their own protocol.
	ProbeConnect
)

// probeTimeout bounds one attempt.
const probeTimeout = 2 * time.Second

// greeting is the client connection preface and an empty SETTINGS frame.
var greeting = append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 0, 0, 0, 4, 0, 0, 0, 0, 0)

// goAway ends the probe's connection cleanly: GOAWAY, stream 0, NO_ERROR.
var goAway = []byte{0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// Ask makes one attempt on the engine's socket, of 2 s at most. It returns nil
// when the engine is ready.
func (p Probe) Ask(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	if p == ProbeConnect {
		return nil
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := conn.Write(greeting); err != nil {
		return fmt.Errorf("greet engine: %w", err)
	}
	var head [9]byte
	n, err := io.ReadFull(conn, head[:])
	switch {
	case ctx.Err() != nil:
		return errors.New("engine accepts connections and is silent")
	case n == 0 && err != io.EOF:
		return fmt.Errorf("engine's answer: %w", err)
	}
	// A SETTINGS frame, bytes of another protocol, or a close after the
	// unknown bytes: the engine is running.
	if n == len(head) && head[3] == 4 && bytes.Equal(head[5:], make([]byte, 4)) {
		_, _ = conn.Write(goAway)
	}
	return nil
}
