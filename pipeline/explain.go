package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"dagger.io/dagger"
)

// tailLines is how many lines of a failed command's output are repeated at the end,
// where a person looks.
const tailLines = 8

// explain returns a failure's cause in few lines: a command's own last lines,
// rather than the query that ran the command.
func explain(err error) string {
	var exec *dagger.ExecError
	if !errors.As(err, &exec) {
		return err.Error() + lost(err)
	}
	lines := lastWords(exec.Stdout, exec.Stderr)
	where := strings.TrimSuffix(strings.TrimSuffix(err.Error(), exec.Error()), ": ")
	return fmt.Sprintf("%s: %s ended with exit code %d\n  %s", where, strings.Join(exec.Cmd, " "), exec.ExitCode, strings.Join(lines, "\n  "))
}

// lost explains an error in which the CLI's calls to its engine break off. A
// stopping engine reports that itself.
func lost(err error) string {
	if !strings.Contains(err.Error(), `\"http://dagger/query`) {
		return ""
	}
	return "\n  The engine, or the way to it, was lost in the middle of this step, which is not done."
}

// passing matches the lines of go test that report success, or only that something
// failed.
var passing = regexp.MustCompile(`^(go: downloading |ok  |\?   |PASS$|FAIL$|=== |--- PASS|    --- PASS|\s*$)`)

// lastWords returns the last lines of a command's two outputs. Lines of stderr come
// last and leave room for the others.
func lastWords(stdout, stderr string) []string {
	said, errors := tellingLines(stdout), tellingLines(stderr)
	if len(said) > 0 {
		errors = last(errors, tailLines/2)
	}
	errors = last(errors, tailLines)
	return append(last(said, tailLines-len(errors)), errors...)
}

func tellingLines(said string) []string {
	var lines []string
	for line := range strings.Lines(said) {
		if line = strings.TrimRight(line, "\r\n"); !passing.MatchString(line) {
			lines = append(lines, line)
		}
	}
	return lines
}

func last(lines []string, n int) []string { return lines[max(0, len(lines)-n):] }
