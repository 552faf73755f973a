package main

import (
	"fmt"
	"strings"

	"dagger.io/dagger"
)

// source names where a secret is: env:NAME, file:PATH or cmd:COMMAND. Dagger reads
// its value on this machine and removes it from all output. The value is never in
// this process.
type source string

func parseSource(flag, s string) (source, error) {
	if s == "" {
		return "", nil
	}
	kind, rest, ok := strings.Cut(s, ":")
	if !ok || rest == "" || kind != "env" && kind != "file" && kind != "cmd" {
		return "", fmt.Errorf("%s is none of env:NAME, file:PATH, cmd:COMMAND (a secret itself has no place on a command line)", flag)
	}
	return source(kind + "://" + rest), nil
}

func (s source) set() bool { return s != "" }

func (s source) secret(dag *dagger.Client) *dagger.Secret { return dag.Secret(string(s)) }
