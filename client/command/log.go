package command

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"unicode/utf16"

	"golang.org/x/term"
)

// Log has the flags of the log on stderr.
type Log struct {
	LogFormat string `help:"Form of the log on stderr: text or json. Default: ${log_format}." enum:"text,json," default:"" placeholder:"FORMAT" aliases:"log" group:"global"`
	LogLevel  string `help:"Least level that is logged: debug, info, warn or error." enum:"debug,info,warn,error" default:"info" placeholder:"LEVEL" group:"global"`
}

// Level returns the lowest level that is logged.
func (l Log) Level() slog.Level {
	var level slog.Level
	_ = level.UnmarshalText([]byte(l.LogLevel)) // the enum has only valid names
	return level
}

// Logger returns the log on w. Its format is that of --log-format, or by default
// text on a terminal and JSON elsewhere. No value in it can move a cursor, begin a
// line, change the text direction or become a command of a CI runner.
func (l Log) Logger(w io.Writer) *slog.Logger {
	o := &slog.HandlerOptions{Level: l.Level()}
	if l.LogFormat == "text" || l.LogFormat == "" && IsTerminal(w) {
		return slog.New(slog.NewTextHandler(harmlessWriter{w}, o))
	}
	o.ReplaceAttr = func(_ []string, a slog.Attr) slog.Attr {
		if a.Value.Kind() == slog.KindDuration { // JSON would have a number without a unit
			a.Value = slog.StringValue(a.Value.Duration().String())
		}
		return a
	}
	return slog.New(slog.NewJSONHandler(harmlessWriter{w}, o))
}

// IsTerminal reports whether w, or an io.Reader, is a terminal.
func IsTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// harmlessWriter escapes text that slog's handlers do not escape: in JSON,
// non-printable characters beyond ASCII, and in both formats "##[", which begins a
// command of GitHub's runner. Each Write is one record. \uXXXX has the same meaning
// in JSON and in the text format, which quotes as Go does.
type harmlessWriter struct{ w io.Writer }

func (h harmlessWriter) Write(record []byte) (int, error) {
	line := strings.TrimSuffix(string(record), "\n")
	if !harmless(line) {
		var b strings.Builder
		for i, r := range line {
			if strconv.IsPrint(r) && !workflowCommand(line, i) {
				b.WriteRune(r)
				continue
			}
			for _, unit := range utf16.Encode([]rune{r}) {
				fmt.Fprintf(&b, `\u%04x`, unit)
			}
		}
		line = b.String()
	}
	if _, err := io.WriteString(h.w, line+"\n"); err != nil {
		return 0, err
	}
	return len(record), nil
}
