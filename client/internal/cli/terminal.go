package cli

// The output rules. They apply to every command, and only this file writes to
// the two streams.
//
//   - stdout is for data: the requested data and nothing else. stderr is for
//     progress, warnings and errors. A successful command may print nothing on
//     stderr; a failed command always prints something.
//   - An error is one line that begins "mayfly: error: " and says what happened
//     and where. The next lines begin "mayfly: hint: " and say what to change.
//     Every error has a hint, except when a person stopped the command. A hint
//     may end in YAML to paste, whose lines begin with two spaces.
//   - On a terminal, progress is one line that is rewritten and removed, and
//     tables fit the width. Without a terminal (CI), each fact is one whole line,
//     nothing is cut, and times are RFC 3339.
//   - Colour only marks states and never has a meaning that the text lacks. There
//     is no colour without a terminal, when NO_COLOR is not empty (no-color.org),
//     or when TERM is dumb.
//   - --json prints the API's body as one line with a line feed. JSON escapes
//     control characters, and a program must get the recorded values. Only "##["
//     is replaced by "\u0023#[", which has the same meaning.
//   - Text from the API, a token or a certificate passes through escapeText before
//     a person sees it. escapeText escapes control characters, ANSI sequences,
//     line breaks and bidirectional marks.
//   - No line is a workflow command of GitHub's runner, whatever its source. All
//     output of this file passes through command.Inert or escapeText, which share
//     one rule.
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

// Stdio has the streams of a command. A nil In is empty.
type Stdio = command.Stdio

// terminal writes output by these rules. It is safe for concurrent use.
type terminal struct {
	in  io.Reader
	now func() time.Time

	outWidth int  // columns of the terminal on stdout; 0 without one
	errTTY   bool // stderr is a terminal: progress may be rewritten
	inTTY    bool // stdin is a terminal: questions may be asked
	outColor bool
	errColor bool

	log command.Log // format and level of notes, warnings and errors

	mu     sync.Mutex
	out    io.Writer
	err    io.Writer
	status bool // a progress line is on stderr and must be wiped first
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

// The palette: terminal colours that the user can configure.
var (
	styleBad   = lipgloss.NewStyle().Foreground(lipgloss.Color("1"))
	styleGood  = lipgloss.NewStyle().Foreground(lipgloss.Color("2"))
	styleWarn  = lipgloss.NewStyle().Foreground(lipgloss.Color("3"))
	styleFaint = lipgloss.NewStyle().Faint(true)
	styleHead  = lipgloss.NewStyle().Bold(true)
)

// paint colours s for stdout. s must be escaped already.
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

// printf writes data to stdout. The caller passes untrusted strings through
// escapeText first.
func (t *terminal) printf(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wipe()
	io.WriteString(t.out, command.Inert(fmt.Sprintf(format, args...)))
}

// body writes an API body as one line.
func (t *terminal) body(raw []byte) {
	// In JSON, "#" occurs only inside strings.
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

// errLine writes a line if --log-level includes level: the prefix and the text, or
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

// logger returns the logger for the packages that a command uses. Their messages
// help to find faults and appear only with --log-level debug.
func (t *terminal) logger() *slog.Logger {
	if t.log.Level() > slog.LevelDebug {
		return slog.New(slog.DiscardHandler)
	}
	return t.log.Logger(lineWriter{t})
}

// lineWriter writes whole lines to stderr and first removes the progress line.
type lineWriter struct{ t *terminal }

func (w lineWriter) Write(line []byte) (int, error) {
	w.t.mu.Lock()
	defer w.t.mu.Unlock()
	w.t.wipe()
	return w.t.err.Write(line)
}

// progress shows the current activity on a terminal and rewrites it in place.
// Without a terminal it writes nothing; call note for a fact that CI must show.
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

// settle removes the progress line.
func (t *terminal) settle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wipe()
}

// wipe removes the progress line. The caller holds mu.
func (t *terminal) wipe() {
	if t.status {
		io.WriteString(t.err, "\r\x1b[K")
		t.status = false
	}
}

// confirm asks a question on a terminal and reports whether the answer is a full
// "yes". Without a terminal it does not ask, and returns false.
func (t *terminal) confirm(question string) bool {
	t.settle()
	_, yes := command.Confirm(Stdio{In: t.in, Err: t.err}, question)
	return yes
}

// ask asks a question on a terminal and returns the answer, which may be empty.
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

// escapeText escapes an untrusted string and does not shorten it.
func escapeText(s string) string { return command.Printable(s) }

// width returns how many columns s takes.
func width(s string) int { return lipgloss.Width(s) }

// cut shortens s to at most n columns; the last one is an ellipsis.
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
