package cli

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/mayfly-ca/mayfly/issuer"
)

// runServe serves until SIGTERM or SIGINT; SIGHUP has the policy read again.
func runServe(ctx context.Context, i *invocation) error {
	fs := i.flags()
	path := fs.String("config", "", "issuer.yaml")
	verbose := fs.Bool("verbose", false, "log health checks and broken connections too")
	if _, err := i.parse(fs, 0, 0); err != nil {
		return err
	}
	cfg, err := i.config(*path)
	if err != nil {
		return err
	}
	level := slog.LevelInfo
	if *verbose {
		level = slog.LevelDebug
	}
	// The text handler quotes what is not printable: a claim cannot move the
	// cursor, begin a line or turn its direction.
	cfg.Logger = slog.New(slog.NewTextHandler(i.Err, &slog.HandlerOptions{Level: level}))
	cfg.Out = i.Out

	collectLess()
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
