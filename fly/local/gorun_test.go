package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// watchedName is the test binary's name as a program that go run started.
const watchedName = "watched-by-go-run"

// A run ends with the go run that started it, whatever ended that.
func TestEndsWithGoRun(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells a program its parent's name, and runs an engine")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	program, parent := filepath.Join(dir, watchedName), filepath.Join(dir, "go")
	if err := os.Symlink(self, program); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(parent, []byte("#!/bin/sh\n\"$1\"\nexit\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), parent, program)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewScanner(out)
	if !said.Scan() || said.Text() != "up" {
		t.Fatalf("the program said %q", said.Text())
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if !said.Scan() || said.Text() != "context canceled" { // the pipe closes when the program ends
		t.Errorf("the program said %q", said.Text())
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the parent was not killed")
	}
}
