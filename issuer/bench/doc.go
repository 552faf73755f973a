// Command bench measures issuance: mayfly's issuer over SQLite and PostgreSQL, step-ca
// over badger, bbolt and PostgreSQL, and Fulcio, which stores nothing. Each is a
// separate process on loopback, as released. All are loaded in turn, in one run, with
// the same fresh tokens.
//
//	go run ./issuer/bench
//
// README.md explains the output. The other servers are built from the nested module
// peers, so that this module does not depend on them; a clone is needed. The command
// may import any package but pipeline, and no package imports it. It runs only on
// Linux, because it reads /proc.
package main
