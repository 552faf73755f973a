// Command demo is the program that the local demonstration builds: a static program
// that is its own compiler. In a RUN step it writes a copy of itself with a stamp
// of that step at the end. The copy, when run, reads its stamp.
package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// mark comes before the stamp. The program makes it at run time, so that it does
// not find the mark in its own data.
var mark = []byte("\n--" + strings.ToUpper("stamp") + "--\n")

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "build":
		return build(args[1])
	case len(args) == 1 && args[0] == "tick":
		return tick()
	case len(args) == 0:
		return show()
	}
	return fmt.Errorf("usage: demo [build FILE | tick]")
}

// build is the short RUN step.
func build(out string) error {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	stamp := fmt.Sprintf("built in container %s as pid %d, %s/%s, %s, %s", host, os.Getpid(),
		runtime.GOOS, runtime.GOARCH, time.Now().UTC().Format(time.RFC3339), machineAPI())
	fmt.Println(stamp)
	return os.WriteFile(out, append(append(self, mark...), stamp...), 0o755)
}

// machineAPI reports whether a build step can reach the machine's identity.
func machineAPI() string {
	for _, path := range []string{"/.fly/api", "/proc/1/root/.fly/api"} {
		if _, err := os.Stat(path); err == nil {
			return path + " IS REACHABLE"
		}
	}
	return "no /.fly/api in reach"
}

// tick is the long RUN step, which does not end in time without a cut.
func tick() error {
	for second := range 600 {
		fmt.Printf("tick %d\n", second)
		time.Sleep(time.Second)
	}
	return nil
}

// show runs as the built artifact.
func show() error {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	i := bytes.LastIndex(self, mark)
	if i < 0 {
		return fmt.Errorf("not built yet")
	}
	fmt.Printf("hello from mayfly: %s\n", self[i+len(mark):])
	return nil
}
