package idtokentest

import "github.com/mayfly-ca/mayfly/issuer/internal/idtoken"

// Type is the type of a provider, as in the policy file.
type Type = idtoken.Type

// The provider types.
const (
	GitHub = idtoken.GitHub
	Fly    = idtoken.Fly
	OIDC   = idtoken.OIDC
	People = idtoken.People
)

// AudiencePrefix is the start of every audience of mayfly.
const AudiencePrefix = idtoken.AudiencePrefix
