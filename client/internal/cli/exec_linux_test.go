package cli_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pseudoTerminal returns a terminal of 80 columns and the person's end of it.
func pseudoTerminal(t *testing.T) (person, terminal *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	fd := int(person.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return person, terminal
}

// TestExecOnATerminal checks that the command has the terminal, and gets the person's
// input exactly once: text, end of input, and Ctrl-C.
func TestExecOnATerminal(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, key string
		code      int
	}{{"end of input", "\x04", 0}, {"interrupt", "\x03", 7}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newStand(t)
			person, terminal := pseudoTerminal(t)
			out := &syncBuffer{want: []byte("got hello"), seen: make(chan struct{})}
			go io.Copy(out, person) // ends when the terminal closes
			script := `n=0; trap 'n=$((n+1)); echo interrupt $n; exit 7' INT; test -t 0 || exit 3; while read line; do echo got $line; done`
			cmd := exec.Command("mayfly", "exec", "--", "sh", "-c", script)
			cmd.Env = append(s.env, "TERM=xterm")
			cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { cmd.Process.Kill() })
			if _, err := person.WriteString("hello\n"); err != nil {
				t.Fatal(err)
			}
			select {
			case <-out.seen:
			case <-time.After(time.Minute):
				t.Fatalf("the command did not hear the person:\n%s", out)
			}
			if _, err := person.WriteString(tt.key); err != nil {
				t.Fatal(err)
			}
			cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != tt.code || strings.Contains(out.String(), "interrupt 2") {
				t.Errorf("code %d, want %d\n%s", code, tt.code, out)
			}
		})
	}
}
