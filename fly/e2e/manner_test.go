package e2e

import (
	"encoding/json"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// names are the names of the three programs.
var names = []string{"mayfly", "mayfly-issuer", "mayfly-sidecar"}

// The three programs have the same flags and commands about themselves. They refuse
// the same mistakes in the same way, and share the meaning of exit codes.
func TestOneManner(t *testing.T) {
	t.Parallel()
	topics := map[string]bool{}
	keys := map[string]bool{}
	for _, name := range names {
		call := func(code int, args ...string) (string, string) {
			t.Helper()
			got, out, errs := output(t, name, args...)
			if got != code {
				t.Errorf("%s %q: exit code %d, want %d\n%s%s", name, args, got, code, out, errs)
			}
			return out, errs
		}
		version, _ := call(0, "--version")
		if long, _ := call(0, "version"); !strings.HasPrefix(version, name+" ") || !strings.HasPrefix(long, version) {
			t.Errorf("%s --version: %q, version: %q", name, version, long)
		}
		var build map[string]any
		text, _ := call(0, "version", "--json")
		if err := json.Unmarshal([]byte(text), &build); err != nil || strings.Count(text, "\n") != 1 {
			t.Errorf("%s version --json: %v\n%s", name, err, text)
		}
		keys[strings.Join(slices.Sorted(maps.Keys(build)), " ")] = true

		help, _ := call(0, "--help")
		short, _ := call(0, "-h")
		word, _ := call(0, "help")
		if help != short || help != word {
			t.Errorf("%s: --help, -h and help differ", name)
		}
		for _, want := range []string{"Exit codes:", "  exit-codes ", "--log-format=FORMAT", "--log-level=LEVEL", "--version", "-h, --help"} {
			if !strings.Contains(help, want) {
				t.Errorf("%s --help lacks %q:\n%s", name, want, help)
			}
		}
		topic, _ := call(0, "help", "exit-codes")
		topics[topic] = true
		if one, _ := call(0, "help", "version"); !strings.HasPrefix(one, "Usage: "+name+" version") {
			t.Errorf("%s help version: %s", name, one)
		}
		for _, wrong := range [][]string{
			{}, {"--nonsense"}, {"nonsense"}, {"version", "--nonsense"}, {"version", "nonsense"}, {"help", "nonsense"},
			{"version", "--log-format", "xml"}, {"version", "--log-level", "loud"},
		} {
			_, said := call(2, wrong...)
			if !strings.Contains(said, name+": error: ") || !strings.Contains(said, name+": hint: ") {
				t.Errorf("%s %q says\n%s", name, wrong, said)
			}
		}
		for _, right := range []string{"text", "json"} {
			call(0, "version", "--log-format", right, "--log-level", "debug")
		}
		for _, shell := range []string{"bash", "zsh", "fish"} {
			if script, _ := call(0, "completion", shell); !strings.Contains(script, name+" __complete "+shell) {
				t.Errorf("%s completion %s:\n%s", name, shell, script)
			}
		}
		call(2, "completion", "tcsh")
	}
	if len(topics) != 1 || len(keys) != 1 {
		t.Errorf("help exit-codes has %d texts, version --json %d sets of keys", len(topics), len(keys))
	}
}

// man displays the manual pages without warnings.
func TestManuals(t *testing.T) {
	t.Parallel()
	_, err := exec.LookPath("mandoc")
	need(t, err == nil, "install mandoc, which reads the manual pages")
	for _, name := range names {
		code, page, errs := output(t, name, "man")
		if code != 0 {
			t.Fatalf("%s man: exit code %d\n%s%s", name, code, page, errs)
		}
		for _, want := range []string{`.TH "` + strings.ReplaceAll(strings.ToUpper(name), "-", `\-`) + `" "1"`, "EXIT STATUS", `\fB\-\-log\-format=FORMAT\fR`} {
			if !strings.Contains(page, want) {
				t.Errorf("the manual page of %s lacks %s", name, want)
			}
		}
		lint := exec.Command("mandoc", "-T", "lint", "-W", "warning")
		lint.Stdin = strings.NewReader(page)
		out, _ := lint.CombinedOutput() // the code depends on the worst message
		for line := range strings.Lines(string(out)) {
			if !strings.Contains(line, "missing date") { // a page has the same bytes on any day
				t.Errorf("%s: %s", name, line)
			}
		}
	}
}
