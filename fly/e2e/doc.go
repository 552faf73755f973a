// Package e2e drives the real programs as their users do: it has only tests.
//
// A stack is `go run ./fly/local --keep`: issuer, machine, sidecar and BuildKit,
// with stand-ins for the identity providers. The tests talk to it through what
// DIR/env names and nothing else.
package e2e
