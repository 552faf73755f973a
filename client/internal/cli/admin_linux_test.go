package cli_test

import (
	"io"
	"os/exec"
	"strings"
	"testing"
)

// mayfly says what a revocation does before it revokes, and revokes only after a full
// yes. For an engine's own certificate it says until when the engine is blocked.
func TestRevokeAsks(t *testing.T) {
	t.Parallel()
	a := newAdmins(t)
	job := a.issueFor(t, map[string]any{"run_id": "1001"})
	engine, err := a.Issue(a.FlyToken(nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		serial, answer string
		code           int
		asks           []string
	}{
		{engine.Serial, "y", 1, []string{"Engines lose their own certificates and admit no build until", "/engine/default/", "Type yes to go on"}},
		{job, "yes", 0, []string{"Revoke 1 certificate of ", "run 1001", "refuse new ones for 24h?"}},
		{engine.Serial, "yes", 0, []string{"admit no build until"}},
	} {
		person, terminal := pseudoTerminal(t)
		out := &syncBuffer{want: []byte("Type yes to go on: "), seen: make(chan struct{})}
		go io.Copy(out, person) // ends when the terminal closes
		cmd := exec.Command("mayfly", "certs", "revoke", tt.serial, "--reason", "a test")
		cmd.Env = append(a.s.env, "TERM=xterm")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-out.seen
		if _, err := io.WriteString(person, tt.answer+"\n"); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // the exit code is checked below
		if code := cmd.ProcessState.ExitCode(); code != tt.code {
			t.Errorf("%s: exit code %d, want %d\n%s", tt.answer, code, tt.code, out)
		}
		for _, want := range tt.asks {
			if !strings.Contains(out.String(), want) {
				t.Errorf("the question lacks %q:\n%s", want, out)
			}
		}
	}
	if _, err := a.Issue(a.FlyToken(nil)); err == nil {
		t.Error("the blocked engine got another certificate")
	}
}
