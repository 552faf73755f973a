// Package sidecar stands in front of a build engine: it gets a server
// certificate from the issuer, starts the engine on a unix socket, admits the
// clients whose certificates are for this engine, relays their bytes, and cuts
// them when their certificates are revoked.
//
// Run is the whole program. The rooms below do the work: admission decides,
// relay carries bytes, revocation follows the issuer's feed, supervise runs the
// engine. This package joins them to the network, and holds the sidecar's own
// certificate, whose key is in memory only.
//
// It imports client (calls to the issuer), client/mtls, client/wire,
// client/tokensource and ca/identity. It never imports the issuer or ca.
package sidecar
