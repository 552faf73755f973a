// Package web is the issuer's admin page: who can get in, who got in, who is in
// now, and how to throw them out.
//
// It is html/template over embedded files, served from memory. It works without
// JavaScript; the little there is reloads who is in. It decides nothing:
// a Backend, the issuer, verifies, judges, lists and acts, and each request asks
// it again who looks. The page holds no state of its own but two cookies.
//
// It imports client/wire, the standard library, and go-oidc and x/oauth2 for the
// authorization code flow; the store, the policy and keys never enter it.
package web
