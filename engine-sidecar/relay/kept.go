package relay

import (
	"bytes"
	"crypto/tls"
	"reflect"
	"time"
	"unsafe"
)

// A tls.Conn keeps, for as long as it lives, the largest record that it ever
// read (24 KB) and the handshake's messages (3 KB): more than half of what an
// idle relay costs. crypto/tls has no way to give them back, so the two buffers
// are taken out of it here, and only while they are empty and nobody reads. What
// crypto/tls knows of the peer and of its keys is never touched.
//
// The fields are found by name and type when the program starts. With a Go that
// has others, nothing is taken out, relays cost more, and TestKept fails.

// keptAfter is how long a relay's client has to be silent until its buffer is
// given back: a buffer per burst costs more than it saves.
const keptAfter = time.Second

// keptMost is the capacity, in bytes, up to which a buffer may stay.
const keptMost = 1 << 10

// keptFields are the offsets of two bytes.Buffer within a tls.Conn.
type keptFields struct {
	known          bool
	rawInput, hand uintptr
}

var kept = findKept()

func findKept() (k keptFields) {
	conn := reflect.TypeFor[tls.Conn]()
	find := func(name string) (uintptr, bool) {
		field, ok := conn.FieldByName(name)
		return field.Offset, ok && field.Type == reflect.TypeFor[bytes.Buffer]()
	}
	rawInput, ok := find("rawInput")
	hand, also := find("hand")
	return keptFields{known: ok && also, rawInput: rawInput, hand: hand}
}

// buffer is the one at an offset within t, nil where it is not known. It is the
// reader's.
func buffer(t *tls.Conn, offset uintptr) *bytes.Buffer {
	if !kept.known {
		return nil
	}
	return (*bytes.Buffer)(unsafe.Add(unsafe.Pointer(t), offset))
}

// rawInput is the buffer that t reads records into.
func rawInput(t *tls.Conn) *bytes.Buffer { return buffer(t, kept.rawInput) }

// forgetHandshake drops the buffers of t, which has shaken hands and which nobody
// uses yet.
func forgetHandshake(t *tls.Conn) {
	giveBack(buffer(t, kept.hand))
	giveBack(rawInput(t))
}

// giveBack drops the buffer's memory if it holds nothing.
func giveBack(b *bytes.Buffer) {
	if b != nil && b.Len() == 0 {
		*b = bytes.Buffer{}
	}
}

// arm sees to it that the buffer of a client that falls silent is given back.
// The caller holds r.awake.
func (r *Relay) arm() {
	b := rawInput(r.tls)
	if r.armed || b == nil || b.Cap() <= keptMost {
		return
	}
	r.armed, r.armedAt = true, r.in.Load()
	if r.keeper == nil {
		r.keeper = time.AfterFunc(keptAfter, r.keep)
		return
	}
	r.keeper.Reset(keptAfter)
}

// keep is the timer's function: the buffer stays while bytes come.
func (r *Relay) keep() {
	r.awake.Lock()
	defer r.awake.Unlock()
	if r.over {
		return
	}
	if n := r.in.Load(); n != r.armedAt {
		r.armedAt = n
		r.keeper.Reset(keptAfter)
		return
	}
	r.armed = false
	giveBack(rawInput(r.tls))
}

// disarm ends that. The caller holds r.awake.
func (r *Relay) disarm() {
	r.over = true
	if r.keeper != nil {
		r.keeper.Stop()
	}
}
