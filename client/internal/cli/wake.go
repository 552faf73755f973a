package cli

import (
	"context"
	"time"
)

type wakeCommand struct {
	tunnelFlags
}

func (wakeCommand) Help() string {
	return `Gets a certificate with the job's own ID token and waits until the engine admits it. A machine that is asleep needs 40 s or more to start its engine, and buildctl gives up after 20 s by itself.

An engine that nothing uses sleeps again: run this right before the build. mayfly exec does it by itself, and mayfly proxy --wake before it says where the tunnel begins.

With --json it prints one line: engine, endpoint, serial, wake_ms.`
}

// woken is the output of mayfly wake --json.
type woken struct {
	Engine   string `json:"engine"`
	Endpoint string `json:"endpoint"`
	Serial   string `json:"serial"`
	WakeMS   int64  `json:"wake_ms"`
}

// Run wakes the engine.
func (c *wakeCommand) Run(ctx context.Context, p *program) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	t, err := p.open(ctx, c.tunnelFlags)
	if err != nil {
		return err
	}
	defer t.client.Close()
	took, err := t.wake(ctx)
	if err != nil {
		return err
	}
	if p.JSON {
		e := t.engine()
		p.json(woken{Engine: e.Name, Endpoint: e.Endpoint, Serial: t.client.Info().Serial, WakeMS: took.Milliseconds()})
	}
	return nil
}

// wake waits until the engine admits the certificate and returns how long that
// took. It prints a note at the start.
func (t *tunnel) wake(ctx context.Context) (time.Duration, error) {
	e := t.engine()
	t.p.note("waking engine %s at %s", e.Name, e.Endpoint)
	t.mu.Lock()
	t.waking[e.Name] = true // so the client's own events print no second note
	t.mu.Unlock()
	return t.client.Wake(ctx)
}
