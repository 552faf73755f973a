// Package idtoken verifies OpenID Connect ID tokens and turns them into
// Claims: what a token says, once its provider's signature, its audience, its
// times and its form have been checked.
//
// A Verifier knows a fixed list of providers and fetches their keys itself:
// discovery by go-oidc, key sets by go-jose, both through a client that bounds
// size, time, redirects and the addresses that it dials. The token itself is
// taken apart here and not by go-oidc: a token must be spelled in one way only
// (canonical base64url, no duplicate names, no white space), and one strict
// pass over header and payload costs a third of what the libraries' repeated
// parsing does (BenchmarkVerify, BenchmarkVerifyGoOIDC). A test holds that
// go-oidc accepts whatever is accepted here.
//
// It imports the standard library, go-oidc and go-jose, and nothing of mayfly.
// It decides nothing: issuer/internal/policy does.
package idtoken
