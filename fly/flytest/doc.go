// Package flytest is a Fly Machine and the Fly Proxy in front of it, on one
// machine and without an account: it reads the fly.toml files that are
// deployed, so that what is tested is what is deployed.
//
// A Machine runs a command with Fly's environment variables, owns its
// /.fly/api socket (OIDC tokens, stopping itself), and starts, stops and
// restarts the command as fly.toml says. A Proxy listens for the app's
// services on loopback, wakes the machine, holds the connection until it
// listens, and stops it when idle.
//
// Fly's own behaviour is known from its documents and from flyctl's source,
// not from a live account; what is unknown is an option here, or left out.
//
// It serves tests and fly/local. It imports the standard library, x/sys, a
// TOML decoder and a PROXY protocol writer; no house of mayfly enters it but
// the provider of tokens, behind the interface OIDC.
package flytest
