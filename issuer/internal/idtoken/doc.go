// Package idtoken verifies OpenID Connect ID tokens and turns them into Claims. It
// checks the provider's signature, the audience, the times and the form.
//
// A Verifier has a fixed list of providers and fetches their keys itself. It uses
// go-oidc for discovery and go-jose for key sets, through a client that bounds size,
// time, redirects and the addresses that it dials. This package parses the token
// itself and does not use go-oidc for it. A token has only one valid spelling:
// canonical base64url, no duplicate names, no white space. One strict pass over header
// and payload costs a third of the libraries' repeated parsing (BenchmarkVerify,
// BenchmarkVerifyGoOIDC). A test checks that go-oidc accepts every token that this
// package accepts.
//
// It imports the standard library, go-oidc and go-jose, and nothing of mayfly. It
// decides nothing: issuer/internal/policy does.
package idtoken
