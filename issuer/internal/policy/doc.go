// Package policy says who gets what: it reads the policy file into an
// immutable Set and decides, for verified claims, which certificate or which
// role they are granted.
//
// Everything is denied that no rule grants. Claims are compared by type and
// byte by byte; there are no regular expressions. What would grant more than
// its author meant is refused when the file is loaded, not when a token comes.
//
// It is pure: no I/O, no network, no key. It imports issuer/internal/idtoken,
// ca/grant and ca/identity, go-spiffe's spiffeid and a YAML parser, and
// never ca.
package policy
