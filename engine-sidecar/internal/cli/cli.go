// Package cli is the command line of mayfly-sidecar: it reads the
// configuration, prepares the process and runs package sidecar.
//
// Only this package of the sidecar handles os.Args, signals and exit codes.
package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/mayfly-ca/mayfly/client/command"
	sidecar "github.com/mayfly-ca/mayfly/engine-sidecar"
	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/supervise"
)

// Stdio holds the input and output of a run. The engine's output goes to Out
// and Err, the log to Err.
type Stdio = command.Stdio

// commands is the grammar of the command line.
type commands struct {
	Run   runCommand   `cmd:"" help:"Run an engine behind mTLS, until it is stopped." group:"engine"`
	Check checkCommand `cmd:"" help:"Read the configuration and say what is wrong with it." group:"engine"`

	command.Common
	Version command.Version `cmd:"" help:"Print which mayfly-sidecar this is." group:"about"`
}

// program is the description of mayfly-sidecar in its help.
var program = command.Program{
	Name:    "mayfly-sidecar",
	Summary: "admit clients with certificates to a build engine",
	Description: `mayfly-sidecar stands in front of a build engine and admits the clients whose certificates are for it.

	mayfly-sidecar run --config sidecar.yaml -- buildkitd --addr unix:///run/engine.sock`,
	Epilog: `
Each key of the configuration can also be set as MAYFLY_SIDECAR_<KEY>; without a
file the variables are all there is.
`,
	Groups: []kong.Group{{Key: "engine", Title: "On the engine's machine:"}},
}

// Run runs one command and returns its exit code.
func Run(ctx context.Context, args []string, stdio Stdio) int {
	if supervise.IsChild(args) {
		return supervise.Child(args)
	}
	var c commands
	k, err := program.Parse(&c, args, stdio)
	if err == nil && k != nil {
		k.BindTo(ctx, (*context.Context)(nil))
		err = k.Run(stdio, c.Log)
	}
	return program.End(stdio.Err, c.Log, err)
}

// configFlag is the flag for the configuration file.
type configFlag struct {
	Config string `help:"The configuration file, sidecar.yaml. Default: the environment alone." placeholder:"FILE"`
}

// load reads the configuration from the file and the environment.
func (f configFlag) load() (sidecar.Config, error) {
	return sidecar.LoadConfig(f.Config, os.Environ())
}

type checkCommand struct{ configFlag }

// Run reads the configuration and reports the errors in it.
func (c *checkCommand) Run(stdio Stdio) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdio.Out, `ok

Variables of the sidecar that the engine
gets:             %s
gets when named:  %s
never gets:       %s
engine_env names: %s
`, strings.Join(supervise.Rules.Default, " "), strings.Join(supervise.Rules.Named, " "),
		strings.Join(supervise.Rules.Never, " "), strings.Join(names(cfg.EngineEnv), " "))
	return err
}

// names returns the entries of engine_env without their values.
func names(entries []string) []string {
	out := make([]string, len(entries))
	for i, entry := range entries {
		out[i], _, _ = strings.Cut(entry, "=")
	}
	return out
}

type runCommand struct {
	configFlag
	Engine []string `arg:"" optional:"" passthrough:"" help:"The engine's program and its arguments."`
}

func (runCommand) Help() string {
	return `Gets a server certificate, starts ENGINE on engine_socket (without ENGINE: uses what something else runs there) and relays until it is stopped. Ends with 0 after a stop or when idle, and with the engine's own code when the engine ends by itself.`
}

// Run runs the sidecar.
func (c *runCommand) Run(ctx context.Context, stdio Stdio, flags command.Log) error {
	if len(c.Engine) > 0 && c.Engine[0] != "--" {
		return command.Usagef("unexpected %q: the engine's command goes after --", c.Engine[0])
	}
	engine := c.Engine[min(1, len(c.Engine)):]
	cfg, err := c.load()
	if err != nil {
		return err
	}
	log := flags.Logger(stdio.Err)
	if err := supervise.Harden(); err != nil {
		// Without this, another process of the same user could read the key.
		return fmt.Errorf("keep other processes of this user from the key: %w", err)
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	var keepers sync.WaitGroup
	keepers.Go(func() { supervise.ReapOrphans(life) })
	keepers.Go(func() { returnIdleMemory(life) })
	defer keepers.Wait()
	defer end()
	others := make(chan os.Signal, 8)
	signal.Notify(others, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGQUIT)
	defer signal.Stop(others)
	cfg.Program = sidecar.Program{
		Command: engine, EngineOut: stdio.Out, EngineErr: stdio.Err, Logger: log, Signals: others, Version: command.ReadBuild().Short(),
	}
	exit, err := sidecar.Run(ctx, cfg)
	if err != nil {
		log.Error("ended", append(sidecar.ErrorAttrs(err), "exit_code", exit)...)
	} else {
		log.Info("ended", "exit_code", exit)
	}
	return command.Exit(exit)
}
