package wire

import "errors"

// WithHint returns err with the one thing to do about it. Settings in a hint
// have the names of configuration keys.
func WithHint(err error, hint string) error { return &hintedError{err, hint} }

// Hint returns the hint of the outermost error that has one, and "" where none
// has.
func Hint(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

type hintedError struct {
	error
	hint string
}

// Hint returns the one thing to do.
func (e *hintedError) Hint() string { return e.hint }

// Unwrap returns the error without its hint.
func (e *hintedError) Unwrap() error { return e.error }
