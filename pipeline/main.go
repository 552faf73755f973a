// Command pipeline is mayfly's own CI/CD, written on the Dagger SDK, and the
// example to copy: it builds, tests, publishes and deploys on a build engine
// that it reaches with credentials minted for this run.
//
//	go run ./pipeline [flags] [build|test|publish|deploy|all]
//
// How it finds its engine is in engine.go, and is the only part of it that
// knows of mayfly: everything else is an ordinary Dagger pipeline.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the program: 0 done, 1 a step failed, 2 usage. The cause of a failure
// is the last thing that it prints, below all progress.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, os.Getenv)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "pipeline: %v\nSee: go run ./pipeline --help\n", err)
		return 2
	}
	plan := planFor(o)
	if o.dryRun {
		plan.print(stdout)
		return 0
	}
	if err := plan.allowed(); err != nil {
		fmt.Fprintf(stderr, "pipeline: %v\n", err)
		return 1
	}
	if err := execute(ctx, o, plan, stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "\npipeline: failed: %s\n", explain(err))
		return 1
	}
	return 0
}

// execute connects to the engine and does the plan's steps in order. Nothing
// after a failed step runs.
func execute(ctx context.Context, o options, p plan, stdout, stderr io.Writer) error {
	s, err := connect(ctx, o, stderr)
	if err != nil {
		return err
	}
	defer s.close()
	run := &pipeline{options: o, revision: p.revision, dag: s.dag, stdout: stdout}
	for _, step := range p.steps {
		begin := time.Now()
		fmt.Fprintf(stderr, "==> %s\n", step.name)
		if err := step.do(run, s.ctx); err != nil {
			// A tunnel that the engine refused is the cause, not what broke by it.
			if cause := context.Cause(s.ctx); cause != nil && ctx.Err() == nil {
				err = cause
			}
			return fmt.Errorf("%s: %w", step.name, err)
		}
		fmt.Fprintf(stderr, "==> %s done in %s\n", step.name, time.Since(begin).Round(time.Millisecond*100))
	}
	return nil
}
