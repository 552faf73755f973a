// Package policy decides who gets what. It reads the policy file into an immutable Set
// and decides which certificate or role verified claims are granted.
//
// Everything that no rule grants is denied. Claims are compared by type and byte by
// byte; there are no regular expressions. A rule that would grant more than its author
// meant is refused when the file is loaded.
//
// It is pure: no I/O, no network, no key. It imports issuer/internal/idtoken, ca/grant
// and ca/identity, go-spiffe's spiffeid and a YAML parser, and never ca.
package policy
