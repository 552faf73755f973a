package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/client/command"
	"github.com/mayfly-ca/mayfly/issuer"
)

type storeCommands struct {
	Create storeCreateCommand `cmd:"" help:"Make the store that the config names."`
}

type storeCreateCommand struct{ configFlag }

// Run makes the store.
func (c *storeCreateCommand) Run(ctx context.Context, i *invocation) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	if err := issuer.CreateStore(ctx, cfg); err != nil {
		if errors.Is(err, store.ErrExists) {
			return command.WithHint(err, "nothing was changed: a store is made once")
		}
		return err
	}
	_, err = fmt.Fprintf(i.Out, "made an empty store for the root of %s\n", cfg.CA.Root)
	return err
}

type backupCommand struct {
	configFlag
	Out string `help:"File to write, which must not exist; - writes to the output." required:"" placeholder:"FILE"`
}

// Run copies the store while it is in use. The copy holds no key, but every recorded
// claim.
func (c *backupCommand) Run(ctx context.Context, i *invocation) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	st, err := issuer.OpenStore(ctx, cfg)
	if err != nil {
		return err
	}
	defer st.Close()
	if c.Out == "-" {
		return st.Backup(ctx, i.Out)
	}
	if err := backupTo(ctx, st, c.Out); err != nil {
		return err
	}
	_, err = fmt.Fprintf(i.Out, "wrote %s\n", c.Out)
	return err
}

// backupTo writes a whole copy, durably, or no file.
func backupTo(ctx context.Context, st store.Store, path string) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			_ = os.Remove(path)
		}
	}()
	if err := st.Backup(ctx, f); err != nil {
		return err
	}
	return f.Sync()
}

type restoreCommand struct {
	configFlag
	From    string `help:"The backup; - reads it from the input." placeholder:"FILE"`
	InPlace bool   `help:"The database was restored by its own means: only revoke what was issued before now."`
}

// Run restores a backup where there is no store, or accepts a store that PostgreSQL
// has restored itself. It also raises the floor: what was issued or revoked after the
// backup is unknown, so all of it is refused.
func (c *restoreCommand) Run(ctx context.Context, i *invocation) error {
	if (c.From == "") == !c.InPlace {
		return command.Usagef("give --from FILE or --in-place")
	}
	cfg, err := c.load()
	if err != nil {
		return err
	}
	by := "host/" + hostUser()
	var floor time.Time
	if c.InPlace {
		floor, err = restoreInPlace(ctx, cfg, by)
	} else {
		floor, err = restoreFrom(ctx, i, cfg, c.From, by)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(i.Out, "restored; every certificate issued before %s is refused everywhere, and engines fetch new ones by themselves\n", floor.UTC().Format(time.RFC3339))
	return err
}

func restoreInPlace(ctx context.Context, cfg issuer.Config, by string) (time.Time, error) {
	st, err := issuer.OpenStore(ctx, cfg)
	if err != nil {
		return time.Time{}, err
	}
	defer st.Close()
	floor, err := ca.RestoreInPlace(ctx, st, by)
	if err != nil {
		return time.Time{}, command.WithHint(fmt.Errorf("revoke what was issued before the restore: %w", err), "do not serve this store: run restore --in-place until it succeeds")
	}
	return floor, nil
}

func restoreFrom(ctx context.Context, i *invocation, cfg issuer.Config, from, by string) (time.Time, error) {
	dsn, err := cfg.StoreDSN()
	if err != nil {
		return time.Time{}, err
	}
	root, err := cfg.RootCertificate()
	if err != nil {
		return time.Time{}, err
	}
	in := i.In
	if from != "-" {
		f, err := os.Open(from)
		if err != nil {
			return time.Time{}, err
		}
		defer f.Close()
		in = f
	}
	floor, err := ca.RestoreStore(ctx, dsn, in, root, by)
	if errors.Is(err, store.ErrExists) {
		return floor, command.WithHint(err, "nothing was changed: stop the issuer and move the old store away first, its -wal file too")
	}
	return floor, err
}
