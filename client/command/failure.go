package command

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// Exit codes of the three programs. Scripts and the GitHub Action depend on them,
// so they never change.
const (
	ExitOK     = 0
	ExitFailed = 1
	ExitUsage  = 2
	ExitDenied = 3 // the policy denied it (403)
	ExitIssuer = 4 // issuer unreachable, 429 or 503: the same call may succeed later
	ExitEngine = 5 // engine unreachable, or the engine refused
)

// UsageError is an invalid command line. Its exit code is 2.
type UsageError struct {
	What string // the fault
	Hint string // what to do
	Err  error  // the cause; nil if there is none
}

func (e *UsageError) Error() string { return e.What }

// Unwrap returns the cause.
func (e *UsageError) Unwrap() error { return e.Err }

// Usagef returns a UsageError whose hint is the program's help.
func Usagef(format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &UsageError{What: err.Error(), Err: err}
}

// Exit is an error that ends a program with this code and prints nothing.
type Exit int

func (e Exit) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// usageError explains arguments that the grammar does not accept.
func (p Program) usageError(err error) error {
	help := p.Name + " --help"
	var pe *kong.ParseError
	if errors.As(err, &pe) && pe.Context != nil && pe.Context.Selected() != nil {
		help = pe.Context.Selected().FullPath() + " --help"
	}
	what := err.Error()
	// Replace kong's texts for a flag at the end of the line and a missing argument.
	if before, _, ok := strings.Cut(what, ": expected "); ok && strings.HasSuffix(what, `but got "EOL" (<EOL>)`) {
		what = before + " needs a value"
	}
	if missing, ok := strings.CutPrefix(what, `expected "<`); ok {
		what = "<" + strings.TrimSuffix(missing, `"`) + " is missing"
	}
	// Remove the empty value of an optional enum, which users do not type.
	for _, empty := range []string{`"",`, `,""`} {
		what = strings.Replace(what, empty, "", 1)
	}
	return &UsageError{What: what, Hint: "`" + help + "` shows how to call it", Err: err}
}

// hinted is an error with one thing to do about it.
type hinted struct {
	error
	hint string
}

// Hint returns the one thing to do.
func (h *hinted) Hint() string { return h.hint }

// Unwrap returns the error without the hint.
func (h *hinted) Unwrap() error { return h.error }

// WithHint returns err with the one thing to do about it. End prints the hint of
// any error with a method Hint.
func WithHint(err error, hint string) error { return &hinted{err, hint} }

// End prints err and its hint to stderr, unless err is nil or an Exit, and returns
// the exit code. With --log-format json it writes both as one log record.
func (p Program) End(stderr io.Writer, log Log, err error) int {
	if err == nil {
		return ExitOK
	}
	var exit Exit
	if errors.As(err, &exit) {
		return int(exit)
	}
	code, hint := ExitFailed, ""
	var usage *UsageError
	var h interface{ Hint() string } // *hinted, or an error of another package
	switch {
	case errors.As(err, &usage):
		code, hint = ExitUsage, usage.Hint
		if hint == "" {
			hint = "`" + p.Name + " --help` shows how to call it"
		}
	case errors.As(err, &h):
		hint = h.Hint()
	}
	if log.LogFormat == "json" {
		hints := slices.Collect(strings.Lines(hint))
		log.Logger(stderr).Error(err.Error(), "hints", hints, "exit_code", code)
		return code
	}
	p.print(stderr, ": error:", err.Error())
	p.print(stderr, ": hint:", hint)
	return code
}

// print writes text after the program's name and kind. It indents further
// lines.
func (p Program) print(w io.Writer, kind, text string) {
	prefix := p.Name + kind
	for line := range strings.Lines(text) {
		fmt.Fprintf(w, "%s %s\n", prefix, Printable(strings.TrimRight(line, "\n")))
		prefix = " "
	}
}
