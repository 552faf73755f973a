package cli

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// A signal that arrives before the command starts is not lost: the command does not
// start.
func TestSignalBeforeTheCommand(t *testing.T) {
	t.Parallel()
	touch, err := exec.LookPath("touch")
	if err != nil {
		t.Fatal(err)
	}
	for _, before := range []error{nil, context.Canceled} {
		made := filepath.Join(t.TempDir(), "made")
		p := &program{terminal: newTerminal(Stdio{})}
		c := (&execCommand{}).command(p, touch, []string{"touch", made}, "unix:///nowhere")
		err := c.run(t.Context(), &tunnel{p: p}, func() error { return before })
		_, missing := os.Stat(made)
		if started := missing == nil; started == (before != nil) {
			t.Errorf("after %v: the command was started: %v, %v", before, started, err)
		}
		if before != nil && explain(err).what != "stopped by a signal before it was done" {
			t.Errorf("%v", err)
		}
	}
}
