package idtokentest

import "github.com/mayfly-ca/mayfly/issuer/internal/idtoken"

// Type is the type of a provider, as the policy file names it.
type Type = idtoken.Type

// Types of providers.
const (
	GitHub = idtoken.GitHub
	Fly    = idtoken.Fly
	OIDC   = idtoken.OIDC
	People = idtoken.People
)

// AudiencePrefix begins every audience of mayfly.
const AudiencePrefix = idtoken.AudiencePrefix
