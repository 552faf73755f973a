package sidecar_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

var (
	namedTests = regexp.MustCompile("((?:`Test\\w+`(?: \\([^)]*\\))?(?:, | and )?)+) in (\\S+_test\\.go)")
	testName   = regexp.MustCompile("`(Test\\w+)`")
)

// TestTable: every test named in the README's table exists.
func TestTable(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, m := range namedTests.FindAllStringSubmatch(string(text), -1) {
		source, err := os.ReadFile(m[2])
		if err != nil {
			t.Error(err)
			continue
		}
		for _, name := range testName.FindAllStringSubmatch(m[1], -1) {
			found++
			if !strings.Contains(string(source), "func "+name[1]+"(t *testing.T)") {
				t.Errorf("%s is not in %s", name[1], m[2])
			}
		}
	}
	if all := len(testName.FindAllString(string(text), -1)); found != all || found < 40 {
		t.Errorf("%d of the %d tests in the table name their file", found, all)
	}
}
