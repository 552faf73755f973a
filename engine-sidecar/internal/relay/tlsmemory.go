package relay

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"reflect"
	"time"
	"unsafe"
)

// A tls.Conn keeps the largest record that it ever read (24 KB), the
// handshake's messages (3 KB) and the peer's parsed certificates (12 KB). This
// is four fifths of the cost of an idle relay. crypto/tls has no way to free
// them, so this file clears its fields: buffers only while they are empty and
// no reader is active, certificates after the handshake.
//
// The fields are found by name and type when the program starts. With a Go
// version that has other fields nothing is freed, relays cost more, and
// TestKept fails.

// keptAfter is how long a client must be silent until its buffer is freed. A
// new buffer for each burst would cost more than it saves.
const keptAfter = time.Second

// keptMost is the largest capacity, in bytes, of a buffer that is not freed.
const keptMost = 1 << 10

// keptFields are offsets within a tls.Conn.
type keptFields struct {
	known                            bool
	rawInput, hand                   uintptr // bytes.Buffer
	peerCertificates, verifiedChains uintptr
}

var kept = findKept()

func findKept() (k keptFields) {
	conn := reflect.TypeFor[tls.Conn]()
	find := func(name string, want reflect.Type, offset *uintptr) bool {
		field, ok := conn.FieldByName(name)
		*offset = field.Offset
		return ok && field.Type == want
	}
	k.known = find("rawInput", reflect.TypeFor[bytes.Buffer](), &k.rawInput) &&
		find("hand", reflect.TypeFor[bytes.Buffer](), &k.hand) &&
		find("peerCertificates", reflect.TypeFor[[]*x509.Certificate](), &k.peerCertificates) &&
		find("verifiedChains", reflect.TypeFor[[][]*x509.Certificate](), &k.verifiedChains)
	return k
}

// rawInput returns the buffer that t reads records into, or nil if the field
// is unknown. Only the reader may use it.
func rawInput(t *tls.Conn) *bytes.Buffer {
	if !kept.known {
		return nil
	}
	return (*bytes.Buffer)(unsafe.Add(unsafe.Pointer(t), kept.rawInput))
}

// forgetHandshake frees the memory of t that only the handshake needed. The
// handshake must be complete and t not in use yet. Afterwards its
// ConnectionState names no peer.
func forgetHandshake(t *tls.Conn) {
	if !kept.known {
		return
	}
	if hand := (*bytes.Buffer)(unsafe.Add(unsafe.Pointer(t), kept.hand)); hand.Len() == 0 {
		*hand = bytes.Buffer{}
	}
	*(*[]*x509.Certificate)(unsafe.Add(unsafe.Pointer(t), kept.peerCertificates)) = nil
	*(*[][]*x509.Certificate)(unsafe.Add(unsafe.Pointer(t), kept.verifiedChains)) = nil
	freeBuffer(rawInput(t))
}

// freeBuffer drops the buffer's memory if it holds nothing.
func freeBuffer(b *bytes.Buffer) {
	if b != nil && b.Len() == 0 {
		*b = bytes.Buffer{}
	}
}

// scheduleTrim starts the timer that frees an idle client's read buffer. The
// caller holds r.readMu.
func (r *Relay) scheduleTrim() {
	b := rawInput(r.tls)
	if r.armed || b == nil || b.Cap() <= keptMost {
		return
	}
	r.armed, r.armedAt = true, r.in.Load()
	if r.keeper == nil {
		r.keeper = time.AfterFunc(keptAfter, r.trim)
		return
	}
	r.keeper.Reset(keptAfter)
}

// trim is the timer's function. The buffer stays while bytes arrive.
func (r *Relay) trim() {
	r.readMu.Lock()
	defer r.readMu.Unlock()
	if r.over {
		return
	}
	if n := r.in.Load(); n != r.armedAt {
		r.armedAt = n
		r.keeper.Reset(keptAfter)
		return
	}
	r.armed = false
	freeBuffer(rawInput(r.tls))
}

// stopTrim stops the timer. The caller holds r.readMu.
func (r *Relay) stopTrim() {
	r.over = true
	if r.keeper != nil {
		r.keeper.Stop()
	}
}
