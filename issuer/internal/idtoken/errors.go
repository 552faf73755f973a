package idtoken

import "fmt"

// TokenError refuses a token: 401. Public is for the caller and holds nothing
// that the token's bearer does not know; Err, which may be nil, is for the log.
// Neither ever holds the token.
type TokenError struct {
	Public string
	Err    error
}

// Error gives the log's text.
func (e *TokenError) Error() string {
	if e.Err == nil {
		return "id token: " + e.Public
	}
	return fmt.Sprintf("id token: %s: %v", e.Public, e.Err)
}

// Unwrap exposes the cause.
func (e *TokenError) Unwrap() error { return e.Err }

func refuse(format string, args ...any) error {
	return &TokenError{Public: fmt.Sprintf(format, args...)}
}

// UnavailableError says that the provider's keys are not to be had now, so
// that nothing can be said of the token: 503. The caller may try again.
type UnavailableError struct {
	Provider string
	Err      error
}

// Error gives the log's text.
func (e *UnavailableError) Error() string {
	return fmt.Sprintf("keys of provider %s: %v", e.Provider, e.Err)
}

// Unwrap exposes the cause.
func (e *UnavailableError) Unwrap() error { return e.Err }
