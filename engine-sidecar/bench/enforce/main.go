// Command enforce measures how the sidecar cuts and keeps connections, with a
// real issuer and the programs as they are released:
//
//	enforce cut    how long a relay outlives the revocation of its certificate,
//	               and how soon no other can be opened
//	enforce hold   whether thousands of relays survive an issuer's restart
//	               and a change of the sidecar's certificate
//	enforce boot   what the sidecar adds to an engine's start
//
// Each prints a table for the README in this folder. The exit code is 1 when a
// relay was dropped or a revoked certificate was admitted. Times are printed,
// not judged.
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
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == engineCommand {
		os.Exit(serveEngine(os.Args[2]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// options are the flags of all three measures.
type options struct {
	count   int
	engine  string // boot: path of a BuildKit to start as well
	verbose io.Writer
}

func run(ctx context.Context, args []string, out, progress io.Writer) int {
	measures := map[string]struct {
		count int
		what  string
		f     func(context.Context, options, io.Writer) error
	}{
		"cut":  {200, "certificates to revoke", cut},
		"hold": {5000, "relays to hold", hold},
		"boot": {20, "starts", boot},
	}
	if len(args) == 0 || measures[args[0]].f == nil {
		fmt.Fprintln(progress, "usage: enforce cut|hold|boot [-n COUNT] [-buildkitd PATH] [-v]")
		return 2
	}
	m := measures[args[0]]
	var o options
	fs := flag.NewFlagSet("enforce "+args[0], flag.ContinueOnError)
	fs.SetOutput(progress)
	fs.IntVar(&o.count, "n", m.count, m.what)
	fs.StringVar(&o.engine, "buildkitd", "", "boot: start this BuildKit too, as root")
	verbose := fs.Bool("v", false, "show what the programs say")
	if err := fs.Parse(args[1:]); err != nil || o.count < 1 || fs.NArg() > 0 {
		return 2
	}
	o.verbose = io.Discard
	if *verbose {
		o.verbose = progress
	}
	if err := m.f(ctx, o, out); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(progress, "enforce:", err)
		return 1
	}
	return 0
}
