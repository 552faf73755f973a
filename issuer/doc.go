// Package issuer is the HTTP service that turns a verified OIDC token into a
// short-lived certificate. It also lets admins list, find and revoke certificates.
//
// It joins three packages: issuer/internal/idtoken verifies a token,
// issuer/internal/policy decides what the token is granted, and ca issues, records and
// revokes. This package holds the configuration, the routes of the API, the mapping of
// errors to RFC 9457 problems (only in problem.go), rate limits, metrics, reload of
// the policy, and the orderly shutdown.
//
// It imports ca, ca/store for its types, ca/grant, ca/identity,
// issuer/internal/idtoken, issuer/internal/policy, issuer/internal/web and
// client/wire; never smallstep. No private key enters it: the authority holds the
// signer.
package issuer
