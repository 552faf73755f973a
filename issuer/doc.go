// Package issuer is the HTTP service that turns a verified OIDC token into a
// short-lived certificate, and lets admins see, find and revoke what was issued.
//
// It joins three rooms and decides nothing that is theirs: issuer/internal/idtoken
// verifies a token, issuer/internal/policy decides what it may have, and ca issues,
// records and revokes. What is here: the configuration, the routes of the API,
// the mapping of errors to RFC 9457 problems (problem.go, the only place), rate
// limits, metrics, reload of the policy, and an orderly stop.
//
// It imports ca, ca/store for its types, ca/grant, ca/identity, issuer/internal/idtoken,
// issuer/internal/policy, issuer/internal/web and client/wire; never smallstep. No private key
// enters it: the authority holds the signer.
package issuer
