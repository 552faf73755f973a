package main

import (
	"errors"
	"fmt"
	"strings"

	"dagger.io/dagger"
)

// tailLines is how much of a failed command's output is repeated at the end,
// where a person looks.
const tailLines = 6

// explain gives a failure's cause in few lines: a command's own last words
// rather than the query that asked for it.
func explain(err error) string {
	var exec *dagger.ExecError
	if !errors.As(err, &exec) {
		return err.Error()
	}
	said := exec.Stderr
	if strings.TrimSpace(said) == "" {
		said = exec.Stdout
	}
	lines := strings.Split(strings.TrimSpace(said), "\n")
	if len(lines) > tailLines {
		lines = lines[len(lines)-tailLines:]
	}
	before, _, _ := strings.Cut(err.Error(), ": ")
	return fmt.Sprintf("%s: %s ended with exit code %d\n  %s", before, strings.Join(exec.Cmd, " "), exec.ExitCode, strings.Join(lines, "\n  "))
}
