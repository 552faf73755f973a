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

// Probe says what counts as the engine's answer on its socket.
type Probe int

const (
	// ProbeAnswer greets in HTTP/2 (RFC 9113 section 3.4), as both Dagger's
	// and BuildKit's clients do, and takes a SETTINGS frame, or any other
	// answer of an engine that speaks something else, as ready. Silence is not.
	ProbeAnswer Probe = iota
	// ProbeConnect is content with an accepted connection: for engines that
	// say nothing before they are asked in their own protocol.
	ProbeConnect
)

// probeTimeout bounds one attempt.
const probeTimeout = 2 * time.Second

// greeting is the client connection preface and an empty SETTINGS frame.
var greeting = append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 0, 0, 0, 4, 0, 0, 0, 0, 0)

// goAway ends the probe's connection politely: GOAWAY, stream 0, NO_ERROR.
var goAway = []byte{0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// Ask makes one attempt on the engine's socket, of 2 s at most, and returns nil
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
	// A SETTINGS frame, another protocol's bytes, or its hanging up on bytes
	// that it does not understand: somebody is at home.
	if n == len(head) && head[3] == 4 && bytes.Equal(head[5:], make([]byte, 4)) {
		_, _ = conn.Write(goAway)
	}
	return nil
}
