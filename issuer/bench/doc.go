// Command bench measures issuance: mayfly's issuer over SQLite and PostgreSQL
// beside step-ca over badger, bbolt and PostgreSQL, and Fulcio, which stores
// nothing. Each is a process of its own on loopback, as its makers ship it; all
// are loaded in turn, in one run, with the same fresh tokens.
//
//	go run ./issuer/bench
//
// README.md says how to read what it prints. The peers are built from the
// nested module peers, so that this module does not carry them; a clone is
// needed. It may import everything but pipeline, and nobody imports it. Linux
// only: it reads /proc.
package main
