package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

// goRun is the process id of the `go run` that started this program, or 0. `go run`
// forwards an interrupt, but the signal of kill ends it at once. Without watch, all
// processes would then keep running.
type goRun int

func startedByGoRun() goRun {
	parent := os.Getppid()
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", parent))
	if err != nil || strings.TrimSpace(string(name)) != "go" {
		return 0
	}
	return goRun(parent)
}

// watch calls end when g has ended, and returns then or when ctx ends. It returns
// at once if g is 0.
func (g goRun) watch(ctx context.Context, end func()) {
	if g == 0 {
		return
	}
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			if goRun(os.Getppid()) != g {
				end()
				return
			}
		}
	}
}
