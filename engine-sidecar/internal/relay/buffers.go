package relay

import "sync"

// bufferSize is what one read may bring: four TLS records of 16 KiB.
const bufferSize = 64 << 10

// corkSize holds the records that bufferSize bytes of plain text become while
// crypto/tls still writes the small records of a young connection.
const corkSize = bufferSize + 4<<10

var (
	buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}
	corks   = sync.Pool{New: func() any { b := make([]byte, 0, corkSize); return &b }}
)

func getBuffer() *[]byte  { return buffers.Get().(*[]byte) }
func putBuffer(b *[]byte) { buffers.Put(b) }

func getCork() *[]byte  { return corks.Get().(*[]byte) }
func putCork(b *[]byte) { *b = (*b)[:0]; corks.Put(b) }
