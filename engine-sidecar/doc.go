// Package sidecar runs in front of a build engine and admits the clients whose
// certificates are for this engine. It gets a server certificate from the
// issuer and starts the engine on a unix socket. It relays the clients' bytes,
// and cuts a relay when its certificate is revoked.
//
// Run is the whole program. The internal packages do the work: admission
// decides, relay carries bytes, revocation follows the issuer's feed,
// supervise runs the engine. This package connects them to the network, and
// holds the sidecar's own certificate, whose key is in memory only.
//
// It imports client (calls to the issuer), client/mtls, client/wire,
// client/tokensource and ca/identity. It never imports the issuer or ca.
package sidecar
