// Package relay carries bytes between one TLS connection and the engine's unix
// socket: layer 4, byte for byte, each direction's end kept apart.
//
// It holds no buffer while a connection is idle. Conn, which stands between
// crypto/tls and TCP, reads as many records as the kernel has in one call, but
// hands them to crypto/tls one at a time, so that crypto/tls never keeps more
// than one; and it tells an end of stream that TLS announced from one that was
// cut off. What crypto/tls keeps all the same is taken out of it (tlsmemory.go).
//
// It imports the standard library and x/sys, and knows nothing of
// certificates: who may have a relay, and for how long, is admission's part.
package relay
