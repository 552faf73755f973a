package wire

import (
	"errors"
	"fmt"
	"syscall"
)

// WithHint returns err with a hint: the one thing to do about it. A hint names
// settings by their configuration keys.
func WithHint(err error, hint string) error { return &hintedError{err, hint} }

// Hint returns the hint of the outermost error that has one, or "" if none has one.
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

// ListenError explains why a program cannot listen. key is the setting that has
// the address.
func ListenError(key string, err error) error {
	err = fmt.Errorf("%s: %w", key, err)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return WithHint(err, "end the other program that has this address, or change "+key)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return WithHint(err, "change "+key+" to an address of this machine")
	case errors.Is(err, syscall.EACCES):
		return WithHint(err, "change "+key+" to a port above 1023, or give the program CAP_NET_BIND_SERVICE")
	}
	return err
}
