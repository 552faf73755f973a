package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/mayfly-ca/mayfly/client/command"
	"github.com/mayfly-ca/mayfly/issuer"
)

type serveCommand struct {
	configFlag
	Verbose bool `hidden:"" help:"The same as --log-level debug."`
}

func (serveCommand) Help() string {
	return `Serves until SIGTERM or SIGINT. SIGHUP has the policy read again. With --log-level debug the log also has health checks and broken connections.`
}

// serves returns an error for a system that an issuer does not run on.
func serves(system string) error {
	if system == "linux" {
		return nil
	}
	return command.WithHint(errors.New("serve needs Linux"), "init, policy, rotate and verify work here: bring the issuer folder to a Linux host, and serve there")
}

// Run serves until SIGTERM or SIGINT. On SIGHUP it reads the policy again.
func (c *serveCommand) Run(ctx context.Context, i *invocation) error {
	if err := serves(runtime.GOOS); err != nil {
		return err
	}
	cfg, err := c.load()
	if err != nil {
		return err
	}
	if c.Verbose {
		i.log.LogLevel = "debug"
	}
	cfg.Logger = i.log.Logger(i.Err)
	cfg.Out = i.Out

	tuneGC()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	reload := make(chan struct{}, 1)
	cfg.Reload = reload
	done := make(chan struct{})
	defer func() { <-done }()
	defer stop()
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hup:
				select {
				case reload <- struct{}{}:
				default:
				}
			}
		}
	}()
	return issuer.Run(ctx, cfg)
}
