// Package idtokentest is a real OpenID provider on loopback. It serves discovery, a
// key set and signed tokens over HTTP, in the form used by GitHub Actions, Fly
// Machines, login providers and other workload platforms. Tests use it, and so does
// fly/local while it runs.
//
// Every provider mints any token on request: POST <issuer>/mint takes a JSON object of
// claims to override and answers with the bare token. It listens on loopback only, and
// must never be reachable from another machine.
package idtokentest
