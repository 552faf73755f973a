// Package admission decides which authenticated peers may have a connection.
// It keeps a table of the admitted connections, and cuts them when they are
// revoked, expired, silent or too old.
//
// A relay depends on the certificate that opened it, and on those under which
// its client has held it since (Control.Hold). It ends with the last of them,
// and at once when any of them is revoked.
//
// It imports client/mtls, client/wire and engine-sidecar/internal/revocation.
// It does no I/O on connections: it cuts relays through Cutter and writes to
// control connections through Notifier.
package admission
