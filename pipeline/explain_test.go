package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestLastWords: the cause of a failure is among the few repeated lines, however
// much else a command prints.
func TestLastWords(t *testing.T) {
	t.Parallel()
	var chatter strings.Builder
	for i := range 50 {
		fmt.Fprintf(&chatter, "ok  \texample.com/p%d\t0.1s\n?   \texample.com/q%d\t[no test files]\n", i, i)
	}
	downloads := strings.Repeat("go: downloading example.com/m v1.2.3\n", 50)
	for _, c := range []struct {
		name, stdout, stderr string
		want                 []string
	}{
		{
			"a failing test among passing ones, on a cold cache",
			chatter.String() + "--- FAIL: TestSum (0.00s)\n    sum_test.go:5: two and two are 5\nFAIL\nFAIL\texample.com/p\t0.004s\n" + chatter.String() + "FAIL\n", downloads,
			[]string{"--- FAIL: TestSum (0.00s)", "    sum_test.go:5: two and two are 5", "FAIL\texample.com/p\t0.004s"},
		}, {
			"what does not compile",
			chatter.String() + "FAIL\texample.com/p [build failed]\nFAIL\n", downloads + "# example.com/p\np/p.go:3:2: undefined: x\n",
			[]string{"FAIL\texample.com/p [build failed]", "# example.com/p", "p/p.go:3:2: undefined: x"},
		},
		{"errors alone", "", strings.Repeat("e\n", 99), []string{"e", "e", "e", "e", "e", "e", "e", "e"}},
		{"much of both", strings.Repeat("o\n", 99), strings.Repeat("e\n", 99), []string{"o", "o", "o", "o", "e", "e", "e", "e"}},
		{"nothing", "", "", nil},
	} {
		if diff := cmp.Diff(c.want, lastWords(c.stdout, c.stderr)); diff != "" {
			t.Errorf("%s:\n%s", c.name, diff)
		}
	}
}

// TestLostEngine uses the error of an engine that was killed during a step.
func TestLostEngine(t *testing.T) {
	t.Parallel()
	broken := errors.New(`test: unit tests: returned error 502: {"data":null,"errors":[{"message":"http do: Post \"http://dagger/query\": unexpected EOF"}]}`)
	if said := explain(broken); !strings.Contains(said, "was lost in the middle") || !strings.Contains(said, "unexpected EOF") {
		t.Error(said)
	}
	if said := explain(errors.New("build: linux/arm64: engine is shutting down")); strings.Contains(said, "lost") {
		t.Error(said)
	}
}
