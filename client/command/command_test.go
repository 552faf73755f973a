package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
)

// TestDependencies checks the dependencies of this package, which each program has.
func TestDependencies(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	want := []string{"github.com/alecthomas/kong", "golang.org/x/sys/unix", "golang.org/x/term", "github.com/mayfly-ca/mayfly/client/command"}
	if diff := cmp.Diff(want, strings.Fields(string(out))); diff != "" {
		t.Error(diff)
	}
}

// A log message cannot act on a terminal or a runner, in either format. Its JSON
// value is unchanged.
func TestLogIsHarmless(t *testing.T) {
	t.Parallel()
	hostile := "a\x1b[2J\r\n\u202eb\u200b\U000e0001 ##[error]x ::stop größe 世界 \xff"
	for _, format := range []string{"text", "json"} {
		var out bytes.Buffer
		Log{LogFormat: format, LogLevel: "info"}.Logger(&out).Info("said", "value", hostile, "##[group]", 1, "took", 736*time.Millisecond)
		line := strings.TrimSuffix(out.String(), "\n")
		for _, r := range line {
			if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
				t.Errorf("%s has %U: %q", format, r, line)
			}
		}
		if strings.Contains(line, "##[") || !strings.Contains(line, "größe 世界") {
			t.Errorf("%s: %s", format, line)
		}
		if format == "text" {
			continue
		}
		var record map[string]any
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if record["took"] != "736ms" {
			t.Errorf("a duration is %v", record["took"])
		}
		if want := strings.ReplaceAll(hostile, "\xff", "\ufffd"); record["value"] != want {
			t.Errorf("got %q, want %q", record["value"], want)
		}
	}
}

func TestLogLevelAndForm(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		flags  Log
		begins string
		shown  int
	}{
		{Log{LogFormat: "text", LogLevel: "debug"}, "time=", 4},
		{Log{LogFormat: "text", LogLevel: "warn"}, "time=", 2},
		{Log{LogFormat: "json", LogLevel: "error"}, `{"time":`, 1},
		{Log{LogLevel: "info"}, `{"time":`, 3}, // a buffer is not a terminal
	} {
		var out bytes.Buffer
		log := tt.flags.Logger(&out)
		for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
			log.Log(t.Context(), level, "said")
		}
		if n := strings.Count(out.String(), "\n"); n != tt.shown || !strings.HasPrefix(out.String(), tt.begins) {
			t.Errorf("%+v: %d lines, want %d:\n%s", tt.flags, n, tt.shown, out.String())
		}
	}
}

// An error names the missing part of a command line without the parser's own words.
func TestMissingValue(t *testing.T) {
	t.Parallel()
	var grammar struct {
		Run struct {
			To   string `help:"Where."`
			File string `arg:"" help:"What."`
		} `cmd:"" help:"Run."`
		Common
	}
	p := Program{Name: "prog"}
	for want, args := range map[string][]string{
		"--to needs a value": {"run", "f", "--to"},
		"<file> is missing":  {"run"},
		"<shell> is missing": {"completion"},
	} {
		_, err := p.Parse(&grammar, args, Stdio{Out: io.Discard, Err: io.Discard})
		if err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", args, err, want)
		}
	}
}

func TestEnd(t *testing.T) {
	t.Parallel()
	p := Program{Name: "prog"}
	for _, tt := range []struct {
		err  error
		code int
		want string
	}{
		{nil, 0, ""},
		{Exit(7), 7, ""},
		{errors.New("no \x1b[2J such file"), 1, "prog: error: no \\x1b[2J such file\n"},
		{errors.New("rule a: wrong\nrule b: wrong"), 1, "prog: error: rule a: wrong\n  rule b: wrong\n"},
		{fmt.Errorf("open: %w", WithHint(errors.New("no store"), "make one")), 1, "prog: error: open: no store\nprog: hint: make one\n"},
		{Usagef("--a or --b"), 2, "prog: error: --a or --b\nprog: hint: `prog --help` shows how to call it\n"},
		{&UsageError{What: "odd", Hint: "be even"}, 2, "prog: error: odd\nprog: hint: be even\n"},
	} {
		var out bytes.Buffer
		if code := p.End(&out, Log{}, tt.err); code != tt.code || out.String() != tt.want {
			t.Errorf("%v: %d %q, want %d %q", tt.err, code, out.String(), tt.code, tt.want)
		}
	}
}

// With --log-format json, the final error is a log record.
func TestEndAsJSON(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	var record struct {
		Level, Msg string
		Hints      []string
		ExitCode   int `json:"exit_code"`
	}
	code := Program{Name: "prog"}.End(&out, Log{LogFormat: "json"}, WithHint(errors.New("no store"), "make one"))
	if err := json.Unmarshal(out.Bytes(), &record); err != nil || code != 1 || record.ExitCode != 1 || record.Level != "ERROR" || record.Msg != "no store" || !slices.Equal(record.Hints, []string{"make one"}) {
		t.Errorf("%d %v %s", code, err, out.String())
	}
}

// A required value must not be empty, as from a variable that is not set.
func TestNeededIsNotEmpty(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args []string
		want string // part of the error; empty: accepted
	}{
		{[]string{"need", "--out", "a", "--names", "b", "c"}, ""},
		{[]string{"need", "--out", "", "--names", "b", "c"}, "--out is empty"},
		{[]string{"need", "--out=", "--names", "b", "c"}, "--out is empty"},
		{[]string{"need", "--out", "a", "--names", "", "c"}, "--names is empty"},
		{[]string{"need", "--out", "a", "--names", "b", ""}, "<what> is empty"},
		{[]string{"need", "--names", "b", "c"}, "--out"},
		{[]string{"--file", "", "ring", "bell"}, ""},
	} {
		var g grammar
		_, err := prog.Parse(&g, tt.args, Stdio{Out: io.Discard, Err: io.Discard})
		if got := fmt.Sprint(err); (err == nil) != (tt.want == "") || err != nil && !strings.Contains(got, tt.want) {
			t.Errorf("%q: %v, want %q", tt.args, err, tt.want)
		}
	}
}

// An empty path stays empty and does not become the working folder.
func TestPaths(t *testing.T) {
	t.Parallel()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for given, want := range map[string]string{"": "", "-": "-", "a": filepath.Join(here, "a"), "/b": "/b"} {
		var g grammar
		if _, err := prog.Parse(&g, []string{"--file", given, "ring", "bell"}, Stdio{}); err != nil || g.File != want {
			t.Errorf("%q: %q %v, want %q", given, g.File, err, want)
		}
	}
}
