// Package admission decides which authenticated peer may have a connection,
// keeps the table of those that have one, and cuts them when they may no
// longer: revoked, expired, silent, too old.
//
// A relay hangs on the certificate that opened it, and on those under which
// its client held it since (Control.Hold); it ends with the last of them, and
// at once when any of them is revoked.
//
// It imports client/mtls, client/wire and engine-sidecar/internal/revocation. It reads
// and writes no connection: it cuts relays through Cutter and speaks to
// control connections through Notifier.
package admission
