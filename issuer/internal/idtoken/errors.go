package idtoken

import "fmt"

// TokenError refuses a token: 401. Public is for the caller and holds nothing that the
// token's bearer does not know. Err, which may be nil, is for the log. Neither ever
// holds the token.
type TokenError struct {
	Public string
	Err    error
}

// Error returns the text for the log.
func (e *TokenError) Error() string {
	if e.Err == nil {
		return "id token: " + e.Public
	}
	return fmt.Sprintf("id token: %s: %v", e.Public, e.Err)
}

// Unwrap returns the cause.
func (e *TokenError) Unwrap() error { return e.Err }

func refuse(format string, args ...any) error {
	return &TokenError{Public: fmt.Sprintf(format, args...)}
}

// UnavailableError means that the provider's keys cannot be fetched now, so the token
// cannot be verified: 503. The caller may try again.
type UnavailableError struct {
	Provider string
	Err      error
}

// Error returns the text for the log.
func (e *UnavailableError) Error() string {
	return fmt.Sprintf("keys of provider %s: %v", e.Provider, e.Err)
}

// Unwrap returns the cause.
func (e *UnavailableError) Unwrap() error { return e.Err }
