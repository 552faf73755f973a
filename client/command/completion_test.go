package command

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
)

// grammar is the grammar of a program with one command of each kind.
type grammar struct {
	File string `help:"A file." type:"path" placeholder:"FILE"`
	Ring struct {
		Bell struct {
			Tone string `help:"High: or low." enum:"high,low" default:"low"`
			Loud bool   `help:"Loud."`
			Deep string `hidden:""`
		} `cmd:"" help:"Ring a bell. Once."`
		Book struct {
			Size string `arg:"" enum:"small,large"`
		} `cmd:"" help:"Ring a book."`
		Spare struct{} `cmd:"" hidden:""`
	} `cmd:"" help:"Ring it: now."`
	Need struct {
		Out   string   `required:""`
		Names []string `required:""`
		What  string   `arg:""`
	} `cmd:"" hidden:""`
	Run struct {
		Args []string `arg:"" optional:"" passthrough:""`
	} `cmd:"" help:"Run it."`
	Common
	Version Version `cmd:"" help:"Print the version."`
}

var prog = Program{Name: "a-prog", Summary: "a program", Description: "a-prog does nothing.\n\n\ta-prog run -- it",
	Topics: []Topic{{"bells", "what rings", "Bells ring.\n"}}}

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"a-prog": func() {
		var g grammar
		k, err := prog.Parse(&g, os.Args[1:], Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
		if err == nil && k != nil {
			err = k.Run()
		}
		os.Exit(prog.End(os.Stderr, g.Log, err))
	}})
}

// completions are the possible words after a line. A space at the end of the line
// begins the next word.
var completions = map[string]string{
	"":                         "ring run help completion man version",
	"r":                        "ring run",
	"ring ":                    "bell book",
	"ring b":                   "bell book",
	"ring bell --":             "--help --file --log-format --log-level --version --tone --loud",
	"ring bell --lo":           "--log-format --log-level --loud",
	"ring bell --tone ":        "high low",
	"ring bell --tone h":       "high",
	"ring bell --loud --tone ": "high low",
	"ring book ":               "small large",
	"ring book small ":         "",
	"--file x ring b":          "bell book",
	"--file ring ":             "ring run help completion man version",
	"--log-format ":            "text json",
	"--file ":                  "",
	"help ":                    "exit-codes bells ring run help completion man version",
	"help exit":                "exit-codes",
	"completion ":              "bash zsh fish",
	"run -- ":                  "",
	"nothing ":                 "ring run help completion man version",
}

func TestCompletions(t *testing.T) {
	t.Parallel()
	k, err := prog.parser(&grammar{}, Stdio{Out: io.Discard, Err: io.Discard}, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	check := func(words []string, want string) {
		t.Helper()
		var got []string
		for _, c := range prog.completions(k.Model.Node, words) {
			got = append(got, c.word)
		}
		if diff := cmp.Diff(want, strings.Join(got, " ")); diff != "" {
			t.Errorf("%q: %s", words, diff)
		}
	}
	for line, want := range completions {
		check(strings.Split(line, " "), want)
	}
	check([]string{"ring", "bell", "--tone=h"}, "--tone=high")
	check([]string{"ring", "bell", "--tone", "=", "h"}, "high") // as bash passes it
	check([]string{"ring", "bell", "--tone", "="}, "high low")  //
	check([]string{"ring", "bell", "--none", ""}, "")           // an unknown flag
	check([]string{"ring", "bell", "--none", "=", "x", "--lou"}, "--loud")
}

// Each shell offers these words, with the script that the program prints.
func TestShells(t *testing.T) {
	t.Parallel()
	for shell, script := range map[string]string{
		// readline sets COMP_WORDS and COMP_CWORD.
		"bash": `source <(a-prog completion bash)
complete -p a-prog >/dev/null || exit 1
COMP_WORDS=(a-prog "$@"); COMP_CWORD=$#; _a_prog
printf '%s\n' "${COMPREPLY[@]}"`,
		"zsh": `_describe() { print -rl -- "${(@P)2}" | sed 's/\([^\\]\):.*/\1/' }
_files() { : }
compdef() { : }
source <(a-prog completion zsh)
words=(a-prog "$@"); CURRENT=$#words; _a_prog`,
		"fish": `a-prog completion fish | source
complete -C "a-prog $argv" | string replace -r '\t.*' ''; true`,
	} {
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			path, err := exec.LookPath(shell)
			if errors.Is(err, exec.ErrNotFound) {
				if os.Getenv("MAYFLY_TEST_REQUIRE") == "all" {
					t.Fatalf("install %s", shell)
				}
				t.Skipf("install %s to try the completion in it", shell)
			}
			for _, line := range []string{"r", "ring ", "ring bell --lo", "ring bell --tone h", "help exit", "completion ", "ring book "} {
				args := []string{"-c", script, "-"}
				if shell == "zsh" {
					args = append([]string{"-f"}, args...)
				}
				if shell == "fish" {
					args = []string{"--no-config", "-c", script, line}
				} else {
					args = append(args, strings.Split(line, " ")...)
				}
				cmd := exec.Command(path, args...)
				cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
				out, err := cmd.CombinedOutput()
				got := map[string]bool{}
				for word := range strings.FieldsSeq(string(out)) {
					got[word] = true
				}
				want := map[string]bool{}
				for word := range strings.FieldsSeq(completions[line]) {
					want[word] = true
				}
				if diff := cmp.Diff(want, got); diff != "" || err != nil {
					t.Errorf("%q: %v %s\n%s", line, err, diff, out)
				}
			}
		})
	}
}
