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

// Start refuses: namespaces are Linux's.
func Start(context.Context, Options) (*Engine, error) { return nil, errLinuxOnly }

// IsChild is never true here.
func IsChild([]string) bool { return false }

// Child is never called here.
func Child([]string) int { return 1 }

// Harden refuses.
func Harden() error { return errLinuxOnly }

// ReapOrphans has nothing to do.
func ReapOrphans(context.Context) {}

// Ready refuses.
func (e *Engine) Ready(context.Context) error { return errLinuxOnly }

// Done is never closed.
func (e *Engine) Done() <-chan struct{} { return nil }

// ExitCode is that of an engine that never ran.
func (e *Engine) ExitCode() int { return 1 }

// Signal refuses.
func (e *Engine) Signal(os.Signal) error { return errLinuxOnly }

// Stop refuses.
func (e *Engine) Stop(context.Context, ...os.Signal) error { return errLinuxOnly }

// Kill refuses.
func (e *Engine) Kill() error { return errLinuxOnly }
