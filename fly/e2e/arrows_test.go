package e2e

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const modulePrefix = "github.com/mayfly-ca/mayfly/"

// arrows lists which packages of this module each package may import, in addition
// to the packages below it. For a package without an entry, the nearest entry above
// it applies. No name ends in a slash. A name with /... means that package and all
// below it.
var arrows = map[string][]string{
	"client":              {"client/wire", "client/mtls", "client/tokensource", "ca/identity"},
	"client/wire":         {},
	"client/tokensource":  {},
	"client/configfile":   {},
	"client/mtls":         {"ca/identity"},
	"client/internal/api": {"client/wire"},
	"client/internal/cli": {"client/...", "ca/identity"},
	"client/command":      {},
	"client/cmd":          {"client/internal/cli"},

	"ca":                   {"ca/grant", "ca/internal/guard", "ca/store", "ca/internal/keys", "ca/internal/sqlstore"},
	"ca/identity":          {},
	"ca/grant":             {"ca/identity"},
	"ca/internal/guard":    {"ca/grant", "ca/identity"},
	"ca/internal/keys":     {"ca/grant", "ca/identity"},
	"ca/internal/sqlstore": {"ca/store"},
	"ca/store":             {},

	"issuer":                  {"ca", "ca/store", "ca/grant", "ca/identity", "issuer/internal/idtoken", "issuer/internal/policy", "issuer/internal/web", "client/wire", "client/configfile"},
	"issuer/internal/idtoken": {},
	"issuer/internal/policy":  {"issuer/internal/idtoken", "ca/grant", "ca/identity", "client/configfile"},
	"issuer/internal/web":     {"client/wire"},
	"issuer/internal/cli":     {"issuer", "issuer/internal/policy", "issuer/internal/idtoken", "ca", "ca/store", "client/wire", "client/configfile", "client/command"},
	"issuer/cmd":              {"issuer/internal/cli"},

	"engine-sidecar":                     {"engine-sidecar/...", "client", "client/wire", "client/mtls", "client/tokensource", "client/configfile", "ca/identity"},
	"engine-sidecar/internal/relay":      {},
	"engine-sidecar/internal/supervise":  {},
	"engine-sidecar/internal/revocation": {"client/wire", "client/mtls", "ca/identity"},
	"engine-sidecar/internal/admission":  {"engine-sidecar/internal/revocation", "client/wire", "client/mtls", "ca/identity"},
	"engine-sidecar/internal/cli":        {"engine-sidecar", "engine-sidecar/...", "client/command"},
	"engine-sidecar/cmd":                 {"engine-sidecar/internal/cli"},

	"pipeline":       {"client"},
	"fly/flytest":    {"issuer/idtokentest"},
	"fly/local/demo": {},
}

// outsiders lists the only packages that may import a module of another project.
var outsiders = map[string][]string{
	"dagger.io/dagger":                  {"pipeline"},
	"charm.land/":                       {"client/internal/cli"},
	"github.com/alecthomas/kong":        {"client/command", "client/internal/cli", "issuer/internal/cli", "engine-sidecar/internal/cli"},
	"golang.org/x/term":                 {"client/command", "client/internal/cli"},
	"github.com/smallstep/certificates": {"ca/internal/keys"},
	"github.com/invopop/jsonschema":     {}, // test packages only
	"go.step.sm/crypto":                 {"ca/internal/keys"},
}

type goPackage struct {
	ImportPath string
	Imports    []string
}

// The packages import only what the tables above allow.
func TestArrows(t *testing.T) {
	t.Parallel()
	packages := listPackages(t)
	if len(packages) < len(arrows) {
		t.Fatalf("go list names %d packages only", len(packages))
	}
	for _, p := range packages {
		room := strings.TrimPrefix(p.ImportPath, modulePrefix)
		for _, imported := range p.Imports {
			if other, own := strings.CutPrefix(imported, modulePrefix); own {
				if !mayImport(room, other) {
					t.Errorf("%s imports %s", room, other)
				}
				continue
			}
			for module, rooms := range outsiders {
				if strings.HasPrefix(imported, module) && !slices.Contains(rooms, room) && !isForTests(room) {
					t.Errorf("%s imports %s, which is for %v", room, imported, rooms)
				}
			}
		}
		for _, name := range strings.Split(room, "/") {
			if slices.Contains([]string{"util", "utils", "common", "helper", "helpers", "types", "manager"}, name) {
				t.Errorf("%s is no noun of the field", room)
			}
		}
	}
}

// mayImport applies arrows and two further rules. Packages that run the whole
// system may import everything but the pipeline. Test packages are only for tests.
func mayImport(room, other string) bool {
	switch {
	case other == "pipeline":
		return false
	case drivesAll(room), isForTests(room):
		return true
	case isForTests(other):
		return slices.Contains(arrows[room], other)
	}
	for at := room; ; {
		if allowed, named := arrows[at]; named {
			return slices.ContainsFunc(allowed, func(a string) bool {
				above, all := strings.CutSuffix(a, "/...")
				return other == above || all && strings.HasPrefix(other, above+"/")
			})
		}
		cut := strings.LastIndexByte(at, '/')
		if cut < 0 {
			return false
		}
		at = at[:cut]
	}
}

func drivesAll(room string) bool {
	return room == "fly/local" || room == "fly/e2e" || strings.Contains(room+"/", "/bench/")
}

func isForTests(room string) bool { return strings.HasSuffix(room, "test") }

func TestMayImport(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		room, other string
		want        bool
	}{
		{"client", "client/wire", true},
		{"client", "client/internal/api", false},
		{"client", "client/configfile", false},
		{"issuer/internal/policy", "client/configfile", true},
		{"client/wire", "ca/identity", false},
		{"client", "client/command", false},
		{"engine-sidecar", "client/command", false},
		{"engine-sidecar/internal/cli", "client/command", true},
		{"issuer", "client/command", false},
		{"issuer/internal/cli", "client/command", true},
		{"ca", "ca/identity", false},
		{"ca", "ca/internal/sqlstore", true},
		{"ca/internal/sqlstore", "ca/store", true},
		{"issuer", "ca/internal/sqlstore", false},
		{"ca/store", "ca/internal/sqlstore", false},
		{"ca/internal/guard", "ca/store", false},
		{"issuer", "ca/store", true},
		{"issuer", "ca/store/storetest", false},
		{"issuer/internal/policy", "ca/store", false},
		{"issuer", "issuer/issuertest", false},
		{"issuer/internal/policy", "ca", false},
		{"issuer/bench", "client", true},
		{"issuer/bench", "pipeline", false},
		{"engine-sidecar/bench/enforce", "issuer/internal/idtoken", true},
		{"engine-sidecar/benchmark", "issuer/internal/idtoken", false},
		{"issuer/issuertest", "issuer", true},
		{"engine-sidecar/internal/cli", "engine-sidecar/internal/supervise", true},
		{"engine-sidecar/internal/relay", "client/wire", false},
		{"pipeline", "client/tokensource", false},
		{"fly/flytest", "issuer/idtokentest", true},
		{"somewhere", "client", false},
	} {
		if got := mayImport(c.room, c.other); got != c.want {
			t.Errorf("%s -> %s: %v", c.room, c.other, got)
		}
	}
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", modulePrefix+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		switch err := dec.Decode(&p); {
		case errors.Is(err, io.EOF):
			return packages
		case err != nil:
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

// The top level holds only these folders and files, and git's own.
func TestTopLevel(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "git", "-C", "../..", "ls-tree", "--name-only", "HEAD").Output()
	need(t, err == nil, "git says what belongs to the project: run the tests in a clone")
	want := []string{"ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md", "ca", "client", "engine-sidecar", "fly", "go.mod", "go.sum", "issuer", "pipeline"}
	var got []string
	for name := range strings.FieldsSeq(string(out)) {
		if !strings.HasPrefix(name, ".") {
			got = append(got, name)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("top level: %v, want %v", got, want)
	}
}

// Every key of a configuration file has a comment with its meaning and its default.
func TestConfigurationKeysAreExplained(t *testing.T) {
	t.Parallel()
	for file, types := range map[string][]string{
		"../../issuer/config.go":         {"Config", "TLSConfig", "CAConfig", "PreviousCA", "RateConfig"},
		"../../engine-sidecar/config.go": {"Config", "Limits"},
	} {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		ast.Inspect(parsed, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok || !slices.Contains(types, spec.Name.Name) {
				return true
			}
			seen++
			for _, field := range spec.Type.(*ast.StructType).Fields.List {
				explained(t, file, spec.Name.Name, field)
			}
			return false
		})
		if seen != len(types) {
			t.Errorf("%s has %d of %v", file, seen, types)
		}
	}
}

func explained(t *testing.T, file, of string, field *ast.Field) {
	t.Helper()
	if field.Tag == nil {
		return
	}
	tag, err := strconv.Unquote(field.Tag.Value)
	if err != nil {
		t.Fatal(err)
	}
	key := reflect.StructTag(tag).Get("yaml")
	if key == "-" {
		return
	}
	doc := field.Doc.Text()
	if !strings.HasPrefix(doc, field.Names[0].Name+" ") {
		t.Errorf("%s: %s.%s (%s) has no comment of its own", file, of, field.Names[0].Name, key)
	}
	for _, says := range []string{"Default", "default", "Required", "Empty", "See "} {
		if strings.Contains(doc, says) {
			return
		}
	}
	t.Errorf("%s: %s.%s (%s) does not say what stands when it is left out", file, of, field.Names[0].Name, key)
}
