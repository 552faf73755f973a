package main

import (
	"context"
	"encoding/json"
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

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// options are the options of a run.
type options struct {
	rounds     int
	bytes      int64         // per transfer, over all its streams
	pings      int           // round trips per turn
	handshakes int           // per turn, by 16 clients; a quarter of that by one
	idle       []int         // numbers of idle relays
	settle     time.Duration // from the last byte to the reading of the memory
	losses     int           // repetitions of each way to end
	servers    []string
	speed      []string // kinds of tasks to run
	check      bool
}

// run returns 0, 1 when something failed or, with --check, a bound does not
// hold, and 2 for an invalid command line.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == bareCommand {
		return bare(args[1:], stderr)
	}
	var o options
	var idle, servers, speed, jsonFile string
	var markdown bool
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.IntVar(&o.rounds, "rounds", 5, "rounds, in each of which every server has its turn at everything")
	fs.Int64Var(&o.bytes, "bytes", 768<<20, "bytes of a transfer")
	fs.IntVar(&o.pings, "pings", 4000, "round trips of 64 bytes in a turn")
	fs.IntVar(&o.handshakes, "handshakes", 1000, "handshakes in a turn of 16 clients")
	fs.StringVar(&idle, "idle", "2000,10000", "numbers of idle relays; empty to leave memory out")
	fs.DurationVar(&o.settle, "settle", 11*time.Second, "time from the last byte to the reading of memory")
	fs.IntVar(&o.losses, "losses", 80, "repetitions of each way to end a connection; 0 to leave them out")
	fs.StringVar(&servers, "servers", strings.Join(allServers, ","), "servers to measure")
	fs.StringVar(&speed, "speed", strings.Join(allKinds, ","), "what takes turns; empty to leave it out")
	fs.StringVar(&jsonFile, "json", "", "also write everything, each sample too, to this file; - for standard output in place of the table")
	fs.BoolVar(&markdown, "markdown", false, "print the table in markdown")
	fs.BoolVar(&o.check, "check", false, "exit 1 when a bound does not hold")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	o.servers, o.speed = split(servers), split(speed)
	for _, kind := range o.speed {
		if !slices.Contains(allKinds, kind) {
			fmt.Fprintf(stderr, "bench: --speed: %q is none of %s\n", kind, strings.Join(allKinds, ", "))
			return 2
		}
	}
	for _, n := range split(idle) {
		count, err := strconv.Atoi(n)
		if err != nil || count < 1 {
			fmt.Fprintf(stderr, "bench: --idle %q is no list of numbers\n", idle)
			return 2
		}
		o.idle = append(o.idle, count)
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	r, err := measure(ctx, o, func(format string, a ...any) { fmt.Fprintf(stderr, format+"\n", a...) })
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	if err := write(r, stdout, jsonFile, markdown); err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	if o.check && !r.hold() {
		return 1
	}
	return 0
}

func split(list string) []string {
	return strings.FieldsFunc(list, func(c rune) bool { return c == ',' || c == ' ' })
}

func write(r *report, stdout io.Writer, jsonFile string, markdown bool) error {
	if jsonFile != "" {
		data, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		if jsonFile == "-" {
			_, err := fmt.Fprintf(stdout, "%s\n", data)
			return err
		}
		if err := os.WriteFile(jsonFile, append(data, '\n'), 0o644); err != nil {
			return err
		}
	}
	if markdown {
		return r.markdown(stdout)
	}
	return r.text(stdout)
}

// measure runs all measurements and returns the report.
func measure(ctx context.Context, o options, say func(format string, a ...any)) (*report, error) {
	w, err := newWorld(ctx, o, say)
	if err != nil {
		return nil, err
	}
	defer w.close()
	r := newReport(o)
	if err := w.speed(ctx, o, r); err != nil {
		return nil, w.withLogs(err)
	}
	for _, n := range o.idle {
		if n > w.most {
			say("open files are limited: %d idle relays in place of %d (ulimit -n %d for all)", w.most, n, descriptors)
			n = w.most
		}
		if err := w.memory(ctx, o, n, r); err != nil {
			return nil, w.withLogs(err)
		}
	}
	if o.losses > 0 {
		if err := w.endings(ctx, o, r); err != nil {
			return nil, w.withLogs(err)
		}
	}
	r.judge(o)
	return r, nil
}
