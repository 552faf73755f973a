// Package web is the issuer's admin page. It shows who may connect, who did, and who
// is connected now, and it revokes access.
//
// It uses html/template with embedded files, served from memory. It works without
// JavaScript; a small script reloads pages that show the current state. It decides
// nothing: a Backend, the issuer, verifies, decides, lists and acts, and each request
// asks it again for the user's role. The page keeps no state except two cookies.
//
// It imports client/wire, the standard library, and go-oidc and x/oauth2 for the
// authorization code flow. The store, the policy and keys never enter it.
package web
