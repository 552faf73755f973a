// Package idtokentest is a real OpenID provider on loopback: discovery, key
// set and signed tokens over HTTP, in the shape that GitHub Actions, Fly
// Machines, login providers and other workload platforms give theirs. Tests
// use it, and so does fly/local, for as long as it runs.
//
// Every provider mints what it is told to: POST <issuer>/mint takes a JSON
// object of claims to override and answers with the bare token. It listens on
// loopback only, and must never be reachable from anywhere else.
package idtokentest
