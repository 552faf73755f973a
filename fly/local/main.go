// Command local runs all of mayfly on one machine: identity providers, issuer, a
// machine that starts on connect, sidecar and a real build engine. It then acts as
// a CI job: a token, a certificate, a build through the tunnel, and a second build
// that is cut when its certificate is revoked.
//
// It runs the real programs and owns everything that it starts. When it ends, no
// process, mount, control group or file is left, except in the Go caches.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

const usage = `usage: go run ./fly/local [flags] [-- CMD [ARG...]]

Runs the whole system on this machine and shows a build through a tunnel whose
certificate did not exist a second before, and how it dies when that certificate
is revoked. Needs Linux, root, Go, gcc and git; the first run builds BuildKit
(two to five minutes), later ones find it in the Go build cache.

  -- CMD           run CMD inside the tunnel in place of the builds; its exit
                   code is passed on
  --json           one JSON line on standard output: {ok, steps, serial, rule,
                   revoke_cut_ms}
  --keep           stay up until interrupted; without CMD, run no demonstration
  --dir DIR        with --keep: the folder for state and for DIR/env, which is
                   written last, when all answer; made with mode 0700
  --engine KIND    buildkit (default), dagger or cmd
  --engine-cmd CMD a command that serves an engine (implies --engine cmd); split
                   at spaces, no shell
  --engine-socket PATH
                   the unix socket that CMD serves
  --config DIR     start from DIR/issuer.yaml and DIR/policy.yaml; listen
                   addresses, public_url, tls, key paths, engine endpoints and
                   the providers' issuer URLs are replaced by local ones

Exit codes: 0; 1 a step failed; 2 usage, or this machine cannot run it; with
CMD, CMD's own.
`

// options are the checked command line.
type options struct {
	json, keep                     bool
	dir, engine, engineCmd, socket string
	config                         string
	command                        []string
}

func main() {
	if filepath.Base(os.Args[0]) == runcShimName {
		err := runcShim(os.Args)
		fmt.Fprintln(os.Stderr, runcShimName+":", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	parent, watched := startedByGoRun(), make(chan struct{})
	go func() {
		defer close(watched)
		parent.watch(ctx, stop)
	}()
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	<-watched
	os.Exit(code)
}

// run runs the program and returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	opts, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "local: %v\nSee: go run ./fly/local --help\n", err)
		return 2
	}
	if err := able(); err != nil {
		fmt.Fprintf(stderr, "local: %v\n", err)
		if opts.json {
			_ = (&report{}).json(stdout)
		}
		return 2
	}
	r := &report{progress: stderr}
	code, err := demonstrate(ctx, opts, r, stdout)
	if err != nil {
		fmt.Fprintf(stderr, "\nlocal: %v\n", err)
		hint := &stepError{remedy: "the lines above name the cause; --keep --dir DIR leaves everything up, with its logs in DIR/state"}
		errors.As(err, &hint)
		fmt.Fprintf(stderr, "What to do: %s\n", hint.remedy)
		if code == 0 {
			code = 1
		}
	}
	r.OK = code == 0
	if opts.json {
		if err := r.json(stdout); err != nil {
			fmt.Fprintf(stderr, "local: %v\n", err)
			return 1
		}
	}
	return code
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("local", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.BoolVar(&o.json, "json", false, "")
	flags.BoolVar(&o.keep, "keep", false, "")
	flags.StringVar(&o.dir, "dir", "", "")
	flags.StringVar(&o.engine, "engine", "", "")
	flags.StringVar(&o.engineCmd, "engine-cmd", "", "")
	flags.StringVar(&o.socket, "engine-socket", "", "")
	flags.StringVar(&o.config, "config", "", "")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(stderr, usage)
		}
		return o, err
	}
	o.command = flags.Args()
	if o.engine == "" {
		o.engine = "buildkit"
		if o.engineCmd != "" {
			o.engine = "cmd"
		}
	}
	return o, o.check()
}

func (o options) check() error {
	switch o.engine {
	case "buildkit", "dagger":
		if o.engineCmd != "" || o.socket != "" {
			return fmt.Errorf("--engine-cmd and --engine-socket go with --engine cmd, not %s", o.engine)
		}
	case "cmd":
		if strings.TrimSpace(o.engineCmd) == "" || o.socket == "" {
			return errors.New("--engine cmd wants --engine-cmd CMD and --engine-socket PATH")
		}
		if !filepath.IsAbs(o.socket) {
			return fmt.Errorf("--engine-socket %s is not an absolute path", o.socket)
		}
	default:
		return fmt.Errorf("--engine %q is none of buildkit, dagger, cmd", o.engine)
	}
	if o.engine != "buildkit" && !o.keep && len(o.command) == 0 {
		return fmt.Errorf("the demonstration's builds speak to BuildKit: with --engine %s say what to run, -- CMD, or --keep", o.engine)
	}
	if o.dir != "" && !o.keep {
		return errors.New("--dir goes with --keep")
	}
	if o.keep && o.dir == "" {
		return errors.New("--keep wants --dir DIR, where DIR/env tells how to reach what runs")
	}
	return nil
}

// able returns an error that says why this machine cannot run an engine, and what
// to do.
func able() error {
	const docker = `docker run --rm --privileged -v "$PWD":/src -w /src golang:1.26 go run ./fly/local`
	if runtime.GOOS != "linux" {
		return fmt.Errorf("build engines run on Linux, this is %s; with Docker: %s", runtime.GOOS, docker)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("an engine mounts and makes namespaces, which wants root: sudo env \"PATH=$PATH\" go run ./fly/local; or with Docker: %s", docker)
	}
	return nil
}
