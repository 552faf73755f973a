package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	pageLink = regexp.MustCompile(`\]\(([^)#\s]+)(?:#[^)]*)?\)`)
	testName = regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z][A-Za-z0-9_]*)`")
	testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)[A-Za-z0-9_]+)\(`)
)

// TestPages checks every page: its relative links lead to existing files, and the
// tests that it names exist.
func TestPages(t *testing.T) {
	t.Parallel()
	tracked := func(pattern string) []string {
		out, err := exec.CommandContext(t.Context(), "git", "-C", "../..", "ls-files", pattern).Output()
		need(t, err == nil, "git says what belongs to the project: run the tests in a clone")
		return strings.Fields(string(out))
	}
	tests := map[string]bool{}
	for _, name := range tracked("*_test.go") {
		for _, m := range testFunc.FindAllStringSubmatch(string(read(t, "../"+name)), -1) {
			tests[m[1]] = true
		}
	}
	pages := tracked("*.md")
	if len(pages) < 10 || len(tests) < 500 {
		t.Fatalf("%d pages and %d tests are too few: the test reads the tree wrongly", len(pages), len(tests))
	}
	for _, page := range pages {
		text := string(read(t, "../"+page))
		for _, m := range pageLink.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], ":") {
				continue // another site
			}
			if _, err := os.Stat(filepath.Join("../..", filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s links to %s, which is not there", page, m[1])
			}
		}
		for _, m := range testName.FindAllStringSubmatch(text, -1) {
			if !tests[m[1]] {
				t.Errorf("%s names %s, which is no test", page, m[1])
			}
		}
	}
}
