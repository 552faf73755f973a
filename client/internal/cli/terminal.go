package cli

// The rules of what a person or a program sees. They hold for every command,
// and this file is the only one that writes to the two streams.
//
//   - stdout is for data: what was asked for, and nothing else. stderr is for
//     progress, warnings and errors. A command that succeeds may be silent on
//     stderr; one that fails never is.
//   - An error is one line that begins "mayfly: error: " and says what happened
//     and where; the lines that follow begin "mayfly: hint: " and say what to
//     change. There is no error without a hint, but that a person stopped it.
//     A hint may end in YAML to paste, whose lines begin with two spaces.
//   - On a terminal, progress is one line that is rewritten and goes away, and
//     tables fit its width. Without one (CI), each fact is one whole line,
//     nothing is cut, and times are RFC 3339.
//   - Colour marks states only, is never the only carrier of a meaning, and is
//     left out without a terminal, when NO_COLOR is set to anything but
//     nothing (no-color.org), and when TERM is dumb.
//   - --json prints the API's body as one line ending in a line feed. JSON
//     carries control characters harmlessly, and a program must get what was
//     recorded: only "##[" is spelled "\u0023#[", which means the same.
//   - Everything that came from the API, a token or a certificate goes through
//     visible before a person sees it: control characters, ANSI sequences, line
//     breaks and bidirectional marks are written out and do nothing.
//   - No line is a workflow command of GitHub's runner, whatever it is made of:
//     all that this file writes goes through command.Inert or visible, which
//     share one rule.
//   - Secrets (keys, tokens) are never printed.

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"charm.land/lipgloss/v2"
	"golang.org/x/term"

	"github.com/mayfly-ca/mayfly/client/command"
)

// Stdio is where a command reads and writes. A nil In reads nothing.
type Stdio = command.Stdio

// terminal writes by the rules above. It is safe for concurrent use.
type terminal struct {
	in  io.Reader
	now func() time.Time

	outWidth int  // columns of a terminal on stdout; 0 when it is none
	errTTY   bool // stderr is a terminal: progress may be rewritten
	inTTY    bool // stdin is a terminal: questions may be asked
	outColor bool
	errColor bool

	log command.Log // how notes, warnings and errors are written

	mu     sync.Mutex
	out    io.Writer
	err    io.Writer
	status bool // a progress line stands on stderr and must be wiped first
}

func newTerminal(s Stdio) *terminal {
	t := &terminal{in: s.In, out: s.Out, err: s.Err, now: time.Now}
	if t.out == nil {
		t.out = io.Discard
	}
	if t.err == nil {
		t.err = io.Discard
	}
	color := os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	if f, ok := s.Out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		t.outWidth, t.outColor = 80, color
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			t.outWidth = w
		}
	}
	if f, ok := s.Err.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		t.errTTY, t.errColor = os.Getenv("TERM") != "dumb", color
	}
	if f, ok := s.In.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		t.inTTY = true
	}
	return t
}

// The palette: the eight colours that every terminal lets its owner choose.
var (
	styleBad   = lipgloss.NewStyle().Foreground(lipgloss.Color("1"))
	styleGood  = lipgloss.NewStyle().Foreground(lipgloss.Color("2"))
	styleWarn  = lipgloss.NewStyle().Foreground(lipgloss.Color("3"))
	styleFaint = lipgloss.NewStyle().Faint(true)
	styleHead  = lipgloss.NewStyle().Bold(true)
)

// paint colours s for stdout. s must be harmless already.
func (t *terminal) paint(st lipgloss.Style, s string) string {
	if !t.outColor || s == "" {
		return s
	}
	return st.Render(s)
}

func (t *terminal) paintErr(st lipgloss.Style, s string) string {
	if !t.errColor {
		return s
	}
	return st.Render(s)
}

// printf writes data to stdout. Foreign strings among args go through visible
// at the caller, which knows them.
func (t *terminal) printf(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wipe()
	io.WriteString(t.out, command.Inert(fmt.Sprintf(format, args...)))
}

// body writes an API body as one line.
func (t *terminal) body(raw []byte) {
	// In JSON a number sign stands in strings only.
	t.printf("%s\n", strings.ReplaceAll(strings.TrimRight(string(raw), "\r\n"), "##[", `\u0023#[`))
}

// note writes one line of progress that stays.
func (t *terminal) note(format string, args ...any) {
	t.errLine(slog.LevelInfo, t.paintErr(styleFaint, "mayfly:"), fmt.Sprintf(format, args...))
}

func (t *terminal) warn(format string, args ...any) {
	t.errLine(slog.LevelWarn, t.paintErr(styleWarn, "mayfly: warning:"), fmt.Sprintf(format, args...))
}

// fail writes an error and its hints.
func (t *terminal) fail(f *failure) {
	attributes := []any{"hints", f.hints, "exit_code", f.code}
	if f.rule != "" {
		attributes = append(attributes, "rule", f.rule)
	}
	t.errLine(slog.LevelError, t.paintErr(styleBad, "mayfly: error:"), f.what, attributes...)
	if t.log.LogFormat == "json" {
		return
	}
	for _, h := range f.hints {
		t.errLine(slog.LevelError, t.paintErr(styleWarn, "mayfly: hint:"), h)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for line := range strings.Lines(f.rule) {
		fmt.Fprintln(t.err, escapeText(strings.TrimRight(line, "\n")))
	}
}

// errLine writes a line at a level of --log-level: text after its prefix, or
// one JSON document with the attributes.
func (t *terminal) errLine(level slog.Level, prefix, text string, attributes ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wipe()
	switch {
	case t.log.LogFormat == "json":
		t.log.Logger(t.err).Log(context.Background(), level, text, attributes...)
	case level >= t.log.Level():
		fmt.Fprintf(t.err, "%s %s\n", prefix, escapeText(text))
	}
}

// logger returns the log of the packages that a command uses. What they log is
// for who looks for a fault: it is shown with --log-level debug.
func (t *terminal) logger() *slog.Logger {
	if t.log.Level() > slog.LevelDebug {
		return slog.New(slog.DiscardHandler)
	}
	return t.log.Logger(lineWriter{t})
}

// lineWriter writes whole lines to stderr where no progress stands.
type lineWriter struct{ t *terminal }

func (w lineWriter) Write(line []byte) (int, error) {
	w.t.mu.Lock()
	defer w.t.mu.Unlock()
	w.t.wipe()
	return w.t.err.Write(line)
}

// progress shows what is going on: rewritten in place on a terminal. Without
// one it writes nothing: who has a fact worth a line in CI calls note.
func (t *terminal) progress(format string, args ...any) {
	if !t.errTTY || t.log.LogFormat == "json" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wipe()
	fmt.Fprintf(t.err, "%s %s", t.paintErr(styleFaint, "mayfly:"), cut(escapeText(fmt.Sprintf(format, args...)), 70))
	t.status = true
}

// settle takes the progress line away.
func (t *terminal) settle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wipe()
}

// wipe needs mu.
func (t *terminal) wipe() {
	if t.status {
		io.WriteString(t.err, "\r\x1b[K")
		t.status = false
	}
}

// confirm asks on a terminal and wants the answer "yes" in full. Without a
// terminal there is no question, and the answer is no.
func (t *terminal) confirm(question string) bool {
	t.settle()
	_, yes := command.Confirm(Stdio{In: t.in, Err: t.err}, question)
	return yes
}

// ask puts a question on a terminal and returns the answer, which may be empty.
func (t *terminal) ask(question string) string {
	if !t.inTTY || !t.errTTY {
		return ""
	}
	t.mu.Lock()
	t.wipe()
	io.WriteString(t.err, command.Inert(question))
	t.mu.Unlock()
	return strings.TrimSpace(command.ReadLine(t.in, 1024))
}

// escapeText makes a foreign string harmless and whole.
func escapeText(s string) string { return command.Printable(s) }

// width is how many columns s takes.
func width(s string) int { return lipgloss.Width(s) }

// cut shortens s to at most n columns, the last of them an ellipsis.
func cut(s string, n int) string {
	if n < 1 || width(s) <= n {
		return s
	}
	var b strings.Builder
	w := 0
	for _, r := range s {
		rw := width(string(r))
		if w+rw > n-1 {
			break
		}
		b.WriteRune(r)
		w += rw
	}
	return b.String() + "…"
}
