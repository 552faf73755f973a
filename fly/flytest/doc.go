// Package flytest simulates a Fly Machine and the Fly Proxy in front of it, on one
// machine and without an account. It reads the deployed fly.toml files, so that
// tests run what is deployed.
//
// A Machine runs a command with Fly's environment variables and owns its /.fly/api
// socket (OIDC tokens, stopping itself). It starts, stops and restarts the command
// as fly.toml says. A Proxy listens for the app's services on loopback, wakes the
// machine, holds a connection until the machine listens, and stops an idle machine.
//
// The simulation follows Fly's documents and flyctl's source, not a live account.
// Unknown behaviour is an option here, or left out.
//
// It serves tests and fly/local. It imports the standard library, x/sys, a TOML
// decoder and a PROXY protocol writer. It uses no other package of mayfly but the
// provider of tokens, behind the interface OIDC.
package flytest
