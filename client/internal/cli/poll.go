package cli

import (
	"context"
	"time"
)

// poll calls look until the person ends ctx, which is no error: at once while
// look says that there is more already, else once in every. An error that may be
// gone at the next look is told and waited out; any other is returned.
func (p *program) poll(ctx context.Context, every time.Duration, look func() (more bool, err error)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		more, err := look()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !isTransient(err):
			return err
		case err != nil:
			p.note("%v; asking again", err)
		case more:
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// isTransient reports whether an error may be gone at the next look.
func isTransient(err error) bool { return explain(err).code == exitIssuer }
