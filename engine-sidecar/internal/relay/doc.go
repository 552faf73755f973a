// Package relay carries bytes between one TLS connection and the engine's unix
// socket. It works on layer 4, and ends each direction separately.
//
// It holds no buffer while a connection is idle. Conn, between crypto/tls and
// TCP, reads all available records in one call. It hands them to crypto/tls
// one at a time, so that crypto/tls never keeps more than one. It also
// distinguishes a stream that ended with close_notify from one that was cut
// off. Memory that crypto/tls would keep is freed in tlsmemory.go.
//
// The package imports the standard library and x/sys. It does not check
// certificates: package admission decides who may have a relay, and for how
// long.
package relay
