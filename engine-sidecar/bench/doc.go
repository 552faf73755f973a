// Command bench measures the relay of mayfly-sidecar against other relays from
// mutual TLS to a unix socket: a bare crypto/tls copy loop, ghostunnel,
// haproxy and nginx. All run on one machine and take turns in one run.
//
//	go run ./engine-sidecar/bench [--json FILE] [--markdown]
//
// README.md explains the table. This process runs the clients and the engine
// behind the socket. Every server is a separate process, and only its CPU and
// memory are counted.
package main
