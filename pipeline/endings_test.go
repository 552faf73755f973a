package main

import (
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func (e *testEngine) testWrongPassword(t *testing.T) {
	r := startRegistry(t)
	t.Setenv("TEST_REGISTRY_PASSWORD", "wrong-battery-1042")
	got := e.publishSmall(t, r.host+"/team/mayfly")
	got.mustFail(t, "publish: push "+r.host+"/team/mayfly:", "401", "refuses robot")
	if strings.Contains(got.stdout+got.stderr, "wrong-battery-1042") {
		t.Error("the password is in the output")
	}
	if r.writes != 0 {
		t.Errorf("%d writes were let in", r.writes)
	}
	t.Setenv("TEST_REGISTRY_PASSWORD", registryPassword) // the accepted twin
	e.publishSmall(t, r.host+"/team/mayfly").mustPass(t)
}

func (e *testEngine) testUnreachableRegistry(t *testing.T) {
	closed := httptest.NewServer(nil)
	host := strings.TrimPrefix(closed.URL, "http://")
	closed.Close()
	t.Setenv("TEST_REGISTRY_PASSWORD", registryPassword)
	e.publishSmall(t, host+"/team/mayfly").mustFail(t, "publish: push "+host+"/team/mayfly:", "connection refused")
}

const failingTest = `package small

import "testing"

func TestArithmetic(t *testing.T) { t.Fatalf("two and two are %d", 5) }
`

func (e *testEngine) testFailingTest(t *testing.T) {
	dir := small(t, map[string]string{"small_test.go": failingTest})
	e.pipeline(t, dir, "test").mustFail(t, "test: unit tests", "two and two are 5", "FAIL")
}

// testCacheOutlivesStop stops the machine as Fly does, and builds again. The engine
// starts on the connection and compiles nothing.
func (e *testEngine) testCacheOutlivesStop(t *testing.T) {
	e.pipeline(t, e.root, "build", "--out", t.TempDir()).mustPass(t)
	e.stopMachine(t, syscall.SIGTERM)
	e.waitStopped(t)
	out := t.TempDir()
	got := e.pipeline(t, e.root, "build", "--out", out)
	got.mustPass(t)
	e.checkBuild(t, out)
	// Dagger marks each cached step.
	if !strings.Contains(got.stderr, "CACHED") {
		t.Errorf("nothing came from the cache:\n%s", got.stderr)
	}
}

func (e *testEngine) stopMachine(t *testing.T, signal syscall.Signal) {
	t.Helper()
	pid, err := strconv.Atoi(e.env(t, "SIDECAR_PID"))
	if err != nil {
		t.Fatalf("the machine does not run: %v", err)
	}
	if err := syscall.Kill(pid, signal); err != nil {
		t.Fatal(err)
	}
}

func (e *testEngine) waitStopped(t *testing.T) {
	t.Helper()
	deadline := time.After(5 * time.Minute)
	for e.env(t, "SIDECAR_PID") != "" {
		select {
		case <-deadline:
			t.Fatal("the machine does not stop")
		case <-time.After(100 * time.Millisecond):
		}
	}
}

const endlessTest = `package small

import (
	"testing"
	"time"
)

func TestEndless(t *testing.T) {
	println("the endless test runs")
	time.Sleep(time.Hour)
}
`

// testEnds ends the machine while a step runs. The run ends soon and prints the
// cause.
func (e *testEngine) testEnds(t *testing.T, signal syscall.Signal, cause string) {
	dir := small(t, map[string]string{"small_test.go": endlessTest})
	var once sync.Once
	got := e.watch(t, dir, func(progress string) {
		if strings.Contains(progress, "the endless test runs") {
			once.Do(func() { e.stopMachine(t, signal) })
		}
	}, "test", "--test-packages", "-v .") // with -v and one package, go test prints output immediately
	got.mustFail(t, "pipeline: failed: test: unit tests: ", cause)
	e.waitStopped(t)
}
