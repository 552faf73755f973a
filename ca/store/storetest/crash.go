package storetest

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// crashEnv names the variable that holds the database of the process to kill.
const crashEnv = "MAYFLY_STORETEST_CRASH"

// RunCrash kills a recording process in several rounds. It then looks for every
// certificate whose record was acknowledged. test is the name of the calling test.
// RunCrash runs it again in another process, where CrashChild returns dsn. open
// opens that database in this process.
func RunCrash(t *testing.T, test, dsn string, rounds int, open func(t testing.TB, dsn string) store.Store) {
	lost := 0
	for round := range rounds {
		acknowledged := recordAndKill(t, test, dsn, 20+round*7%60)
		s := open(t, dsn)
		for _, serial := range acknowledged {
			if _, err := s.Certificate(context.Background(), serial); err != nil {
				t.Errorf("round %d: acknowledged, but %v", round, err)
				lost++
			}
		}
		if _, err := s.VerifyEvents(context.Background()); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		record(t, s, Certificate("after"))
		if err := s.Close(); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
	}
	t.Logf("%d kills, %d acknowledged records lost", rounds, lost)
}

// CrashChild returns the database in which this process must record until it is
// killed. In any other process it returns "".
func CrashChild() (dsn string) { return os.Getenv(crashEnv) }

// RecordForEver records from eight goroutines and prints each acknowledged serial,
// until the process is killed.
func RecordForEver(s store.Store) {
	for range 8 {
		go func() {
			for {
				c := Certificate("crash")
				if _, err := s.Record(context.Background(), c, store.Event{}); err != nil {
					os.Exit(3)
				}
				fmt.Printf("acknowledged %s\n", c.Serial)
			}
		}()
	}
	select {}
}

// recordAndKill kills a recording process after n acknowledgements and returns all
// serials that it printed.
func recordAndKill(t testing.TB, test, dsn string, n int) (acknowledged []string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(self, "-test.run=^"+test+"$", "-test.timeout=60s")
	child.Env = append(os.Environ(), crashEnv+"="+dsn)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		serial, ok := strings.CutPrefix(lines.Text(), "acknowledged ")
		if !ok || len(serial) != 32 {
			continue
		}
		if acknowledged = append(acknowledged, serial); len(acknowledged) == n {
			if err := child.Process.Kill(); err != nil {
				t.Error(err)
			}
		}
	}
	if err := child.Wait(); err == nil || len(acknowledged) < n {
		t.Fatalf("the child ended by itself after %d records: %v", len(acknowledged), err)
	}
	return acknowledged
}
