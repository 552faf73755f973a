package cli

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// waitFor waits until a file holds a text: waitfor FILE TEXT.
func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: waitfor FILE TEXT")
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	path := ts.MkAbs(args[0])
	for range 1000 {
		if data, err := os.ReadFile(path); err == nil && strings.Contains(string(data), args[1]) {
			return
		}
		<-tick.C
	}
	data, _ := os.ReadFile(path)
	ts.Fatalf("%s never held %q:\n%s", args[0], args[1], data)
}

// signalJob sends a signal to the process whose id a file holds: signal HUP FILE.
func signalJob(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: signal NAME FILE")
	}
	s, ok := map[string]syscall.Signal{"HUP": syscall.SIGHUP, "TERM": syscall.SIGTERM}[args[0]]
	if !ok {
		ts.Fatalf("no signal %s", args[0])
	}
	data, err := os.ReadFile(ts.MkAbs(args[1]))
	ts.Check(err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	ts.Check(err)
	ts.Check(syscall.Kill(pid, s))
}

// checkMode compares a file's permissions: mode 0600 FILE.
func checkMode(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: mode MODE FILE")
	}
	fi, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", fi.Mode().Perm()); (got == args[0]) == neg {
		ts.Fatalf("%s has mode %s", args[1], got)
	}
}

// getPath requests a path from the issuer whose output is in a file, and prints the
// response: get FILE PATH.
func getPath(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: get FILE PATH")
	}
	said, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	m := regexp.MustCompile(`127\.0\.0\.1:\d{2,}`).Find(said)
	if m == nil {
		ts.Fatalf("%s names no address:\n%s", args[0], said)
	}
	resp, err := http.Get("http://" + string(m) + args[1])
	ts.Check(err)
	defer resp.Body.Close()
	_, err = io.Copy(ts.Stdout(), resp.Body)
	ts.Check(err)
}
