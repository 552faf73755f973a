package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestEnforce runs the three measures as programs without the race detector,
// which would distort them. When all tests are required, it runs 200
// revocations and holds 5,000 relays, none of which may drop.
func TestEnforce(t *testing.T) {
	t.Parallel()
	cuts, relays := "10", "250"
	if os.Getenv("MAYFLY_TEST_REQUIRE") == "all" {
		cuts, relays = "200", "5000"
	}
	bin := t.TempDir()
	program := filepath.Join(bin, "enforce")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if err := buildPrograms(t.Context(), bin); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"cut", "-n", cuts}, "a new handshake is refused"},
		{[]string{"hold", "-n", relays}, relays},
		{[]string{"boot", "-n", "2"}, "the sidecar's own part"},
	} {
		t.Run(c.args[0], func(t *testing.T) {
			t.Parallel()
			var out, progress bytes.Buffer
			cmd := exec.CommandContext(t.Context(), program, c.args...)
			cmd.Env = append(os.Environ(), programsVariable+"="+bin)
			cmd.Stdout, cmd.Stderr = &out, &progress
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v\n%s%s", err, out.String(), progress.String())
			}
			if !strings.Contains(out.String(), c.want) {
				t.Errorf("no %q in\n%s", c.want, out.String())
			}
			t.Logf("\n%s", out.String())
		})
	}
	if code := run(t.Context(), []string{"nonsense"}, &bytes.Buffer{}, &bytes.Buffer{}); code != 2 {
		t.Errorf("an unknown measure ended with %d", code)
	}
}
