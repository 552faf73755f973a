package relay

import "sync"

// bufferSize is the most that one read returns: four TLS records of 16 KiB.
const bufferSize = 64 << 10

// corkSize holds the records for bufferSize bytes of plain text, also while
// crypto/tls writes the small records of a new connection.
const corkSize = bufferSize + 4<<10

var (
	buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}
	corks   = sync.Pool{New: func() any { b := make([]byte, 0, corkSize); return &b }}
)

func getBuffer() *[]byte  { return buffers.Get().(*[]byte) }
func putBuffer(b *[]byte) { buffers.Put(b) }

func getCork() *[]byte  { return corks.Get().(*[]byte) }
func putCork(b *[]byte) { *b = (*b)[:0]; corks.Put(b) }
