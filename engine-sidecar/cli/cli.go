// Package cli is the command line of mayfly-sidecar: it reads the
// configuration, prepares the process and runs package sidecar.
//
// It is the only place of the sidecar that knows of os.Args, signals and exit
// codes.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"

	sidecar "github.com/mayfly-ca/mayfly/engine-sidecar"
	"github.com/mayfly-ca/mayfly/engine-sidecar/supervise"
)

// Exit codes. Any other is the engine's own.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// maxConfig bounds a configuration file.
const maxConfig = 1 << 20

// Stdio is where a run reads and writes. The engine's output goes to Out and
// Err, the log to Err.
type Stdio struct {
	In       io.Reader
	Out, Err io.Writer
}

const usage = `mayfly-sidecar stands in front of a build engine and admits the clients whose
certificates are for it.

  mayfly-sidecar run [--config FILE] [--log text|json] [--log-level LEVEL] [-- ENGINE ARGS...]
  mayfly-sidecar check [--config FILE]
  mayfly-sidecar version

run    gets a server certificate, starts ENGINE on engine_socket (without ENGINE:
       uses what something else runs there) and relays until it is stopped.
check  reads the configuration and says what is wrong with it.

Each key of the file can also be set as MAYFLY_SIDECAR_<KEY>; without a file the
variables are all there is.

Exit codes: 0 after a stop or when idle, 1 failed, 2 usage; when the engine ends
by itself, its own.
`

// Run runs one command and returns its exit code.
func Run(ctx context.Context, args []string, stdio Stdio) int {
	if supervise.IsChild(args) {
		return supervise.Child(args)
	}
	if len(args) == 0 {
		fmt.Fprint(stdio.Err, usage)
		return exitUsage
	}
	switch args[0] {
	case "run":
		return run(ctx, args[1:], stdio)
	case "check":
		return check(args[1:], stdio)
	case "version":
		fmt.Fprintln(stdio.Out, version())
		return exitOK
	case "help", "-h", "-help", "--help":
		fmt.Fprint(stdio.Out, usage)
		return exitOK
	}
	fmt.Fprintf(stdio.Err, "mayfly-sidecar: unknown command %q\n\n%s", args[0], usage)
	return exitUsage
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "mayfly-sidecar (devel)"
	}
	return "mayfly-sidecar " + info.Main.Version
}

// options are the flags of run and check.
type options struct {
	config string
	format string
	level  slog.Level
	engine []string
}

func parse(name string, args []string, stdio Stdio) (options, int) {
	var o options
	var flags, engine = args, []string(nil)
	for i, a := range args {
		if a == "--" {
			flags, engine = args[:i], args[i+1:]
			break
		}
	}
	fs := flag.NewFlagSet("mayfly-sidecar "+name, flag.ContinueOnError)
	fs.SetOutput(stdio.Err)
	fs.Usage = func() { fmt.Fprint(stdio.Err, usage) }
	fs.StringVar(&o.config, "config", "", "configuration file")
	fs.StringVar(&o.format, "log", "json", "log as text or json")
	fs.TextVar(&o.level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	switch err := fs.Parse(flags); {
	case errors.Is(err, flag.ErrHelp):
		return o, exitOK
	case err != nil:
		return o, exitUsage
	case fs.NArg() > 0:
		fmt.Fprintf(stdio.Err, "mayfly-sidecar %s: unexpected %q: the engine's command goes behind --\n", name, fs.Arg(0))
		return o, exitUsage
	case o.format != "text" && o.format != "json":
		fmt.Fprintf(stdio.Err, "mayfly-sidecar %s: --log %q is neither text nor json\n", name, o.format)
		return o, exitUsage
	}
	o.engine = engine
	return o, -1
}

// load reads the configuration of o and of the environment.
func (o options) load() (sidecar.Config, error) {
	var data []byte
	if o.config != "" {
		f, err := os.Open(o.config)
		if err != nil {
			return sidecar.Config{}, fmt.Errorf("configuration: %w", err)
		}
		defer f.Close()
		if data, err = io.ReadAll(io.LimitReader(f, maxConfig+1)); err != nil {
			return sidecar.Config{}, fmt.Errorf("configuration: %w", err)
		}
		if len(data) > maxConfig {
			return sidecar.Config{}, fmt.Errorf("configuration: %s is larger than %d bytes", o.config, maxConfig)
		}
	}
	return sidecar.ParseConfig(data, os.Environ())
}

func check(args []string, stdio Stdio) int {
	o, code := parse("check", args, stdio)
	if code >= 0 {
		return code
	}
	if _, err := o.load(); err != nil {
		fmt.Fprintln(stdio.Err, "mayfly-sidecar:", err)
		return exitFailed
	}
	fmt.Fprintln(stdio.Out, "ok")
	return exitOK
}

func run(ctx context.Context, args []string, stdio Stdio) int {
	o, code := parse("run", args, stdio)
	if code >= 0 {
		return code
	}
	cfg, err := o.load()
	if err != nil {
		fmt.Fprintln(stdio.Err, "mayfly-sidecar:", err)
		return exitFailed
	}
	log := o.logger(stdio.Err)
	if err := supervise.Harden(); err != nil {
		// Without it another process of the same user could read the key.
		log.Error("process is not hardened", "error", err)
		return exitFailed
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	var keepers sync.WaitGroup
	keepers.Go(func() { supervise.ReapOrphans(life) })
	keepers.Go(func() { keepMemory(life) })
	defer keepers.Wait()
	defer end()
	others := make(chan os.Signal, 8)
	signal.Notify(others, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGQUIT)
	defer signal.Stop(others)
	cfg.Program = sidecar.Program{
		Command: o.engine, EngineOut: stdio.Out, EngineErr: stdio.Err, Logger: log, Signals: others,
	}
	exit, err := sidecar.Run(ctx, cfg)
	if err != nil {
		log.Error("ended", "error", err, "exit_code", exit)
	} else {
		log.Info("ended", "exit_code", exit)
	}
	return exit
}

func (o options) logger(w io.Writer) *slog.Logger {
	h := &slog.HandlerOptions{Level: o.level}
	if o.format == "text" {
		return slog.New(slog.NewTextHandler(w, h))
	}
	return slog.New(slog.NewJSONHandler(w, h))
}
