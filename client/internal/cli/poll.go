package cli

import (
	"context"
	"time"
)

// poll calls look until the user ends ctx, and then returns nil. It calls look
// again at once if look reports more items, otherwise once in every. It prints a
// transient error and continues; it returns any other error.
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

// isTransient reports whether the next look may succeed after err.
func isTransient(err error) bool { return explain(err).code == exitIssuer }
