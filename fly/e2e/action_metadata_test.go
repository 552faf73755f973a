package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// The action's inputs and outputs are a contract with workflows elsewhere. Each of
// them exists, and the scripts read or write exactly these.
func TestActionMetadata(t *testing.T) {
	t.Parallel()
	dir := filepath.Join("..", "..", "client", "action")
	data, err := os.ReadFile(filepath.Join(dir, "action.yml"))
	if err != nil {
		t.Fatal(err)
	}
	type described struct {
		Description string
		Required    bool
		Default     *string
	}
	var action struct {
		Inputs, Outputs map[string]described
		Runs            map[string]string
	}
	if err := yaml.Unmarshal(data, &action); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]string{"using": "node24", "main": "main.js", "post": "post.js", "post-if": "always()"}, action.Runs); d != "" {
		t.Errorf("runs: %s", d)
	}
	source, err := os.ReadFile(filepath.Join(dir, "main.js"))
	if err != nil {
		t.Fatal(err)
	}
	used := func(pattern string) (names []string) {
		for _, m := range regexp.MustCompile(pattern).FindAllSubmatch(source, -1) {
			names = append(names, string(m[1]))
		}
		slices.Sort(names)
		return slices.Compact(names)
	}
	named := func(list map[string]described) (names []string) {
		for name, d := range list {
			names = append(names, name)
			if d.Description == "" {
				t.Errorf("%s says nothing of itself", name)
			}
		}
		slices.Sort(names)
		return names
	}
	for what, tt := range map[string]struct{ want, declared, used []string }{
		"inputs": {[]string{"audience", "ca-file", "engine", "export-env", "issuer", "mode", "trust-anchor", "version", "wake"}, named(action.Inputs),
			used(`(?:runner\.(?:input|boolean)\(|\[)'([a-z-]+)'(?:,|\)| *, *'MAYFLY)`)},
		"outputs": {[]string{"buildkit-host", "certificate", "expires-at", "runner-host", "serial"}, named(action.Outputs), used(`runner\.output\('([a-z-]+)'`)},
	} {
		if d := cmp.Diff(tt.want, tt.declared); d != "" {
			t.Errorf("%s that are declared: %s", what, d)
		}
		for _, name := range tt.want {
			if !slices.Contains(tt.used, name) {
				t.Errorf("main.js has nothing to do with %s %s (it has %v)", what, name, tt.used)
			}
		}
	}
	// Output goes through runner.js, which removes workflow commands.
	for _, script := range []string{"main.js", "post.js", "binary.js", "download.js"} {
		text, err := os.ReadFile(filepath.Join(dir, script))
		if err != nil {
			t.Fatal(err)
		}
		if found := regexp.MustCompile(`console\.|process\.std`).Find(text); found != nil {
			t.Errorf("%s prints by itself: %s", script, found)
		}
	}
	page, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for name := range action.Outputs {
		if !regexp.MustCompile("(?m)^\\| `" + name + "` \\| .+ \\|$").Match(page) {
			t.Errorf("the page's table lacks output %s", name)
		}
	}
	for name, in := range action.Inputs {
		value := ""
		if in.Default != nil && *in.Default != "" {
			value = "`" + *in.Default + "` "
		}
		if !regexp.MustCompile("(?m)^\\| `" + name + "` \\| " + value + "\\| .+ \\|$").Match(page) {
			t.Errorf("the page's table lacks input %s with default %q", name, value)
		}
		if in.Required == (in.Default != nil) {
			t.Errorf("input %s must be required or have a default", name)
		}
	}
}
