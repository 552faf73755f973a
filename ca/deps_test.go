package ca_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/mayfly-ca/mayfly/"

// These packages import only what their package comments allow. Another import
// would give a pure package powers that it must not have.
func TestImports(t *testing.T) {
	t.Parallel()
	t.Run("smallstep stays in its room", func(t *testing.T) {
		for _, line := range goList(t, "{{.ImportPath}} {{join .Imports \" \"}}", "./...") {
			path, imports, _ := strings.Cut(line, " ")
			if path != module+"ca/internal/keys" && (strings.Contains(imports, "github.com/smallstep/") || strings.Contains(imports, "go.step.sm/")) {
				t.Errorf("%s imports smallstep", path)
			}
		}
	})
	for room, allowed := range map[string][]string{
		"./identity":       nil,
		"./grant":          {"ca/identity"},
		"./internal/guard": {"ca/identity", "ca/grant"},
	} {
		t.Run(room, func(t *testing.T) {
			for _, dep := range goList(t, "{{join .Deps \"\\n\"}}", room) {
				host, _, _ := strings.Cut(dep, "/")
				own := strings.TrimPrefix(dep, module)
				switch {
				case !strings.Contains(host, "."), strings.HasPrefix(dep, "github.com/spiffe/go-spiffe/v2/spiffeid"), strings.HasPrefix(dep, "golang.org/x/"):
				case own != dep && slices.Contains(allowed, own):
				default:
					t.Errorf("imports %s", dep)
				}
			}
		})
	}
}

func goList(t *testing.T, format, pattern string) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", format, pattern).Output()
	if err != nil {
		t.Fatalf("go list %s: %v", pattern, err)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}
