// Package e2e runs the real programs as their users do. It has only tests.
//
// A stack is `go run ./fly/local --keep`: issuer, machine, sidecar and BuildKit,
// with stand-ins for the identity providers. The tests reach it only through the
// values in DIR/env.
package e2e
