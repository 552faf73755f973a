//go:build !linux

package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// Engine is a started engine. Only Linux can run one.
type Engine struct{}

var errLinuxOnly = fmt.Errorf("the sidecar runs engines on Linux only: %w", errors.ErrUnsupported)

// Start returns an error: only Linux has namespaces.
func Start(context.Context, Options) (*Engine, error) { return nil, errLinuxOnly }

// IsChild always returns false here.
func IsChild([]string) bool { return false }

// Child is never called here.
func Child([]string) int { return 1 }

// Harden returns an error.
func Harden() error { return errLinuxOnly }

// ReapOrphans does nothing here.
func ReapOrphans(context.Context) {}

// Ready returns an error.
func (e *Engine) Ready(context.Context) error { return errLinuxOnly }

// Done is never closed.
func (e *Engine) Done() <-chan struct{} { return nil }

// ExitCode returns 1.
func (e *Engine) ExitCode() int { return 1 }

// Signal returns an error.
func (e *Engine) Signal(os.Signal) error { return errLinuxOnly }

// Stop returns an error.
func (e *Engine) Stop(context.Context, ...os.Signal) error { return errLinuxOnly }

// Kill returns an error.
func (e *Engine) Kill() error { return errLinuxOnly }
