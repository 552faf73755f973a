package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"github.com/mayfly-ca/mayfly/client/command"
)

func TestVisible(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ in, want string }{
		{"acme/app", "acme/app"},
		{"größe 世界", "größe 世界"},
		{"a\x1b[31mb", `a\x1b[31mb`},
		{"a\r\nb\tc", `a\r\nb\tc`},
		{"a\u202eb\u2066c\u200bd", `a\u202eb\u2066c\u200bd`},
		{"a\u0085\u009bb", `a\u0085\u009bb`},
		{"a\xffb\u2028", `a\xffb\u2028`},
		{"::set-output name=x::y", `\x3a:set-output name=x::y`},
		{"  ::stop", `  \x3a:stop`},
		{"spiffe://a::b", "spiffe://a::b"},
		{"x ##[group]y", `x \x23#[group]y`},
		{"# heading", "# heading"},
	} {
		if got := escapeText(tt.in); got != tt.want {
			t.Errorf("visible(%q) = %s, want %s", tt.in, got, tt.want)
		}
	}
}

// FuzzVisible checks that no active character is left, and that plain text is unchanged.
func FuzzVisible(f *testing.F) {
	f.Add("a\x1b[31m\r\n\u202e##[x]::y")
	f.Add("acme/app")
	f.Fuzz(func(t *testing.T, s string) {
		got := escapeText(s)
		for _, r := range got {
			if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || unicode.Is(unicode.Cf, r) || r == unicode.ReplacementChar && !strings.ContainsRune(s, r) {
				t.Fatalf("visible(%q) has %U", s, r)
			}
		}
		if strings.Contains(got, "##[") || strings.HasPrefix(strings.TrimSpace(got), "::") {
			t.Fatalf("visible(%q) = %q is a runner's command", s, got)
		}
		for line := range strings.Lines(command.Inert(s)) {
			if strings.Contains(line, "##[") || strings.HasPrefix(strings.TrimSpace(line), "::") {
				t.Fatalf("command.Inert(%q) has %q, a runner's command", s, line)
			}
		}
		if again := escapeText(got); again != got {
			t.Fatalf("visible is not settled: %q, %q", got, again)
		}
		for n := 1; n < 12; n += 5 {
			if w := width(cut(got, n)); w > n {
				t.Fatalf("cut(%q, %d) is %d wide", got, n, w)
			}
		}
	})
}

func TestInert(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ in, want string }{
		{"export A='x'\n", "export A='x'\n"},
		{"a::b # c\n", "a::b # c\n"},
		{"a\n ::stop\n\n::b", "a\n \\x3a:stop\n\n\\x3a:b"},
		{"x ###[group]y\n:::z", "x #\\x23#[group]y\n\\x3a::z"},
		{"\x1b[31m größe\n", "\x1b[31m größe\n"},
	} {
		if got := command.Inert(tt.in); got != tt.want {
			t.Errorf("command.Inert(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func testTerminal(width int, color bool) (*terminal, *bytes.Buffer) {
	var out bytes.Buffer
	t := newTerminal(Stdio{Out: &out, Err: &out})
	t.outWidth, t.outColor = width, color
	t.now = func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }
	return t, &out
}

func TestTableFits(t *testing.T) {
	t.Parallel()
	cols := []column{{Head: "SERIAL", Min: 10, Early: true}, {Head: "STATUS"}, {Head: "REPOSITORY", Min: 10}}
	rows := func() [][]cell {
		return [][]cell{
			{plain(strings.Repeat("5f", 16)), {Text: "valid", Style: &styleGood}, plain("acme/" + strings.Repeat("app", 20))},
			{plain("00"), {Text: "revoked", Style: &styleBad}, plain("界/\x1b[2J")},
		}
	}
	for _, w := range []int{40, 60, 80, 200} {
		term, out := testTerminal(w, false)
		term.table(cols, rows())
		for line := range strings.Lines(out.String()) {
			if got := width(strings.TrimRight(line, "\n")); got > w {
				t.Errorf("at %d columns a line has %d: %s", w, got, line)
			}
		}
	}
	term, out := testTerminal(0, false) // no terminal: nothing is cut
	term.table(cols, rows())
	if !strings.Contains(out.String(), strings.Repeat("app", 20)) || strings.Contains(out.String(), "…") {
		t.Errorf("cut without a terminal:\n%s", out)
	}
	for _, color := range []bool{true, false} {
		term, out := testTerminal(100, color)
		term.table(cols, rows())
		if got := strings.Contains(out.String(), "\x1b[3"); got != color {
			t.Errorf("colours %v, want %v:\n%q", got, color, out)
		}
		if strings.Contains(out.String(), "\x1b[2J") {
			t.Error("a value acts")
		}
	}
}

// TestListsFitATerminal checks that in the widest lists no state, time, run or
// sentence is cut.
func TestListsFitATerminal(t *testing.T) {
	t.Parallel()
	long, serial := "acme/"+strings.Repeat("long-name-", 6), strings.Repeat("5f", 16)
	for name, tt := range map[string]struct {
		cols []column
		row  []string
		kept []string
	}{
		"certs":    {certColumns, []string{serial, "expired", long, "32291736541", long, long, long, "23h59m ago"}, []string{"expired", "32291736541", "23h59m ago"}},
		"sessions": {sessionColumns, []string{"closed", long, long, "32291736541", serial, "23h59m ago", "999.9 MB", "999.9 MB", long}, []string{"closed", "32291736541", "23h59m ago"}},
		"blocks":   {blockColumns, []string{serial, "in 23h59m", long, long, "repository_id 1339936803, run_id 32291736541, token issuer https://token.actions.githubusercontent.com"}, []string{serial, "in 23h59m", "32291736541"}},
		"events":   {eventColumns, []string{"5000000", "23h59m ago", "policy_loaded", serial, strings.Repeat("words and ", 30) + "end"}, []string{"5000000", "policy_loaded", "end"}},
	} {
		for _, columns := range []int{80, 81, 100, 120, 200} {
			term, out := testTerminal(columns, false)
			var row []cell
			for _, text := range tt.row {
				row = append(row, plain(text))
			}
			term.table(tt.cols, [][]cell{row})
			for line := range strings.Lines(out.String()) {
				if got := width(strings.TrimRight(line, "\n")); got > columns {
					t.Errorf("%s at %d columns: a line has %d: %s", name, columns, got, line)
				}
			}
			for _, want := range tt.kept {
				if !strings.Contains(out.String(), want) {
					t.Errorf("%s at %d columns lacks %q:\n%s", name, columns, want, out)
				}
			}
		}
	}
}

func TestTimes(t *testing.T) {
	t.Parallel()
	tty, _ := testTerminal(80, false)
	ci, _ := testTerminal(0, false)
	at := tty.now().Add(41*time.Minute + 30*time.Second)
	got := []string{tty.moment(at), ci.moment(at), tty.moment(tty.now().Add(-5 * time.Second)), ci.moment(time.Time{}), shortDuration(25 * time.Hour), shortDuration(72 * time.Hour)}
	want := []string{"in 41m", "2026-01-02T03:45:35Z", "5s ago", "-", "25h00m", "3d"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestReadLineLeavesTheRest(t *testing.T) {
	t.Parallel()
	r := strings.NewReader("yes\r\nrest")
	if got := command.ReadLine(r, 16); got != "yes" || r.Len() != len("rest") {
		t.Errorf("%q, %d bytes left", got, r.Len())
	}
	if got := command.ReadLine(strings.NewReader(strings.Repeat("y", 1000)), 16); len(got) > 17 {
		t.Errorf("read %d bytes", len(got))
	}
}
