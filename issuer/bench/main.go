package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() { os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)) }

// options holds the command line.
type options struct {
	servers  []string
	clients  []int
	rounds   int
	duration time.Duration // of one server's turn
	cold     int           // cold starts per server; 0 skips them
	format   string
	issuer   string // a built mayfly-issuer; "" builds one
}

// run measures and prints. It returns 0 when everything was measured, whatever the
// figures, 1 when something failed, and 2 for a wrong command line.
func run(ctx context.Context, args []string, out, progress io.Writer) int {
	o, err := parse(args, progress)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(progress, "bench: %v\n", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := measure(ctx, o, progress)
	if err == nil {
		err = r.write(out, o.format)
	}
	if err != nil {
		fmt.Fprintf(progress, "bench: %v\n", err)
		return 1
	}
	return 0
}

func parse(args []string, usage io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(usage)
	servers := fs.String("servers", strings.Join(names(), ","), "which servers, in the order of the table")
	clients := fs.String("clients", "1,8,64", "numbers of clients at once, each on a connection of its own")
	fs.IntVar(&o.rounds, "rounds", 5, "rounds; in each every server has its turn, in another order")
	fs.DurationVar(&o.duration, "duration", 2*time.Second, "length of one turn")
	fs.IntVar(&o.cold, "cold", 15, "starts per server, from exec to the first certificate; 0 for none")
	fs.StringVar(&o.issuer, "issuer", "", "path of a mayfly-issuer to measure; default: one is built as releases are")
	asJSON := fs.Bool("json", false, "print JSON")
	asMarkdown := fs.Bool("markdown", false, "print the tables of README.md")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	switch {
	case fs.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	case *asJSON && *asMarkdown:
		return o, errors.New("-json or -markdown, not both")
	case *asJSON:
		o.format = "json"
	case *asMarkdown:
		o.format = "markdown"
	}
	for name := range strings.SplitSeq(*servers, ",") {
		if !slices.Contains(names(), name) || slices.Contains(o.servers, name) {
			return o, fmt.Errorf("-servers: %q is unknown or twice there; there are %s", name, strings.Join(names(), ", "))
		}
		o.servers = append(o.servers, name)
	}
	for text := range strings.SplitSeq(*clients, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxClients || slices.Contains(o.clients, n) {
			return o, fmt.Errorf("-clients: %q is not a number from 1 to %d, or twice there", text, maxClients)
		}
		o.clients = append(o.clients, n)
	}
	if o.rounds < 1 || o.cold < 0 || o.duration < 10*time.Millisecond || o.duration > maxTurn {
		return o, fmt.Errorf("want at least one round, and turns of 10ms to %v", maxTurn)
	}
	return o, nil
}

const (
	maxClients = 512
	// maxTurn keeps tokens, which live for 5 minutes, valid for all servers.
	maxTurn = 10 * time.Second
)
