// Command pipeline is mayfly's own CI/CD, written with the Dagger SDK, and an
// example to copy. It builds, tests, publishes and deploys on a build engine, with
// credentials minted for this run.
//
//	go run ./pipeline [flags] [build|test|publish|deploy|all]
//
// engine.go finds the engine. It is the only part that uses mayfly; the rest is an
// ordinary Dagger pipeline.
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

// run runs the program. It returns 0 for success, 1 for a failed step, and 2 for
// wrong usage. It prints the cause of a failure last, below all progress.
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

// execute connects to the engine and runs the plan's steps in order. It stops after
// a failed step.
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
			// If the engine refused the tunnel, report that cause, not the errors
			// that followed from it.
			if cause := context.Cause(s.ctx); cause != nil && ctx.Err() == nil {
				err = cause
			}
			return fmt.Errorf("%s: %w", step.name, err)
		}
		fmt.Fprintf(stderr, "==> %s done in %s\n", step.name, time.Since(begin).Round(time.Millisecond*100))
	}
	return nil
}
