package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"dagger.io/dagger"
)

// closeWithin bounds the end of a session. If the engine is gone, the Dagger CLI
// sends it telemetry for five more minutes.
const closeWithin = 15 * time.Second

// dial is dagger.Connect that ends with ctx. The SDK waits for its CLI for five
// minutes, and the CLI waits for an engine for ten.
func dial(ctx context.Context, opts ...dagger.ClientOpt) (*dagger.Client, error) {
	type answer struct {
		dag *dagger.Client
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		dag, err := dagger.Connect(ctx, opts...)
		answers <- answer{dag, err}
	}()
	select {
	case a := <-answers:
		return a.dag, a.err
	case <-ctx.Done():
	}
	endCLI()
	select {
	case a := <-answers:
		if a.dag != nil {
			hangUp(a.dag)
		}
	case <-time.After(closeWithin):
	}
	return nil, context.Cause(ctx)
}

// hangUp closes a session and leaves no CLI process behind.
func hangUp(dag *dagger.Client) {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		dag.Close() // the error only says how the CLI ended
	}()
	select {
	case <-closed:
		return
	case <-time.After(closeWithin):
	}
	endCLI()
	select {
	case <-closed:
	case <-time.After(closeWithin):
	}
}

// endCLI kills this process's `dagger session`, to which the SDK gives no access.
// Without /proc the session ends itself when its standard input closes.
func endCLI() {
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		children, _ := os.ReadFile(list) // a thread may have ended
		for _, field := range bytes.Fields(children) {
			pid, err := strconv.Atoi(string(field))
			if err != nil {
				continue
			}
			argv, _ := os.ReadFile(filepath.Join("/proc", string(field), "cmdline"))
			if args := bytes.Split(argv, []byte{0}); len(args) > 1 && string(args[1]) == "session" {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended meanwhile
			}
		}
	}
}
