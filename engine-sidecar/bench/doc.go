// Command bench measures the relay of mayfly-sidecar beside others that end
// mutual TLS in front of a unix socket: a bare crypto/tls copy loop, ghostunnel,
// haproxy and nginx, all on one machine, in one run, taking turns.
//
//	go run ./engine-sidecar/bench [--json FILE] [--markdown]
//
// README.md tells how to read the table. The clients and the engine behind the
// socket are this process; every server is a process of its own, and what is
// counted of CPU and memory is that process alone.
package main
