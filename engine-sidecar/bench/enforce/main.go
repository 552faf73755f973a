// Command enforce measures what the sidecar does to connections, against a real
// issuer, with the programs as they are released:
//
//	enforce cut    how long a revoked certificate's relay lives, and how soon it
//	               opens no other
//	enforce hold   whether thousands of relays live through an issuer's restart
//	               and a change of the sidecar's certificate
//	enforce boot   what the sidecar adds to an engine's start
//
// Each prints a table for the README beside this file, and ends with 1 when
// something that must not happen has happened: a relay that was dropped, a
// certificate that got in. Times are printed, not judged.
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

// options are the flags of all three.
type options struct {
	count   int
	engine  string // boot: a BuildKit to start beside the stand-in
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
