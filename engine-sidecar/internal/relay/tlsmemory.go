package relay

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"reflect"
	"time"
	"unsafe"
)

// A tls.Conn keeps, for as long as it lives, the largest record that it ever
// read (24 KB), the handshake's messages (3 KB) and the peer's certificates,
// parsed (12 KB): four fifths of what an idle relay costs. crypto/tls has no way
// to give them back, so they are taken out of it here: buffers only while they
// are empty and nobody reads, certificates once the handshake is over.
//
// The fields are found by name and type when the program starts. With a Go that
// has others, nothing is taken out, relays cost more, and TestKept fails.

// keptAfter is how long a relay's client has to be silent until its buffer is
// given back: a buffer per burst costs more than it saves.
const keptAfter = time.Second

// keptMost is the capacity, in bytes, up to which a buffer may stay.
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

// rawInput is the buffer that t reads records into, nil where it is not known.
// It is the reader's.
func rawInput(t *tls.Conn) *bytes.Buffer {
	if !kept.known {
		return nil
	}
	return (*bytes.Buffer)(unsafe.Add(unsafe.Pointer(t), kept.rawInput))
}

// forgetHandshake takes out of t, which has shaken hands and which nobody uses
// yet, what only the handshake needed. Its ConnectionState then names no peer.
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

// scheduleTrim sees to it that the buffer of a client that falls silent is given back.
// The caller holds r.awake.
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

// trim is the timer's function: the buffer stays while bytes come.
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

// stopTrim ends that. The caller holds r.awake.
func (r *Relay) stopTrim() {
	r.over = true
	if r.keeper != nil {
		r.keeper.Stop()
	}
}
