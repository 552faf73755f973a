package policy

import (
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

func page(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// section returns the page's text from a heading to the next of its level.
func section(t *testing.T, heading string) string {
	t.Helper()
	_, text, ok := strings.Cut(page(t), "\n"+heading+"\n")
	if !ok {
		t.Fatalf("the page has no %q", heading)
	}
	level, _, _ := strings.Cut(heading, " ")
	for _, next := range []string{"\n## ", "\n" + level + " "} {
		text, _, _ = strings.Cut(text, next)
	}
	return text
}

var (
	recipeBlock = regexp.MustCompile("(?s)### ([^\n]+)\n[^#]*?<!-- recipe -->\n```yaml\n(.*?)```")
	fileBlock   = regexp.MustCompile("(?s)<!-- file -->\n```yaml\n(.*?)```")
	quoted      = regexp.MustCompile("`([^`]*)`")
)

// rows returns the rows of text's tables whose first cell begins with code.
func rows(text string) [][]string {
	var out [][]string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "| `") {
			out = append(out, strings.Split(strings.Trim(line, "| "), " | "))
		}
	}
	return out
}

func wholeFile(t *testing.T) string {
	t.Helper()
	m := fileBlock.FindStringSubmatch(page(t))
	if m == nil {
		t.Fatal("the page has no whole file")
	}
	return m[1]
}

// recipes returns the page's recipes, each as a whole file.
func recipes(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, m := range recipeBlock.FindAllStringSubmatch(page(t), -1) {
		out[m[1]] = merge(t, wholeFile(t), m[2])
	}
	return out
}

// merge adds a recipe to the file: named providers and engines, and items of rules and
// tests.
func merge(t *testing.T, file, recipe string) string {
	t.Helper()
	var whole, more yaml.Node
	for text, into := range map[string]*yaml.Node{file: &whole, recipe: &more} {
		if err := yaml.Unmarshal([]byte(text), into); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
	}
	top := whole.Content[0]
	for i := 0; i < len(more.Content[0].Content); i += 2 {
		key, value := more.Content[0].Content[i], more.Content[0].Content[i+1]
		at := slices.IndexFunc(top.Content, func(n *yaml.Node) bool { return n.Value == key.Value })
		if at < 0 {
			top.Content = append(top.Content, key, value)
			continue
		}
		top.Content[at+1].Content = append(top.Content[at+1].Content, value.Content...)
	}
	out, err := yaml.Marshal(&whole)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestRecipes checks that each recipe admits and refuses as the page says, has no
// findings and fits the schema.
func TestRecipes(t *testing.T) {
	t.Parallel()
	all := recipes(t)
	if len(all) != 10 {
		t.Fatalf("%d recipes: %v", len(all), slices.Sorted(maps.Keys(all)))
	}
	all["A whole file"] = wholeFile(t)
	for name, text := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := Parse([]byte(text), Options{TrustDomain: "ci.example.com", PermittedDNS: []string{"fly.dev"}})
			if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			if f := s.Findings(); len(f) > 0 {
				t.Errorf("findings: %v", f)
			}
			if err := fileSchema.Validate(t, text); err != nil {
				t.Error(err)
			}
			admitted, refused := map[string]bool{}, 0
			for _, r := range s.RunTests() {
				if !r.OK {
					t.Errorf("%s: got %s, want %s", r.Name, r.Got, r.Want)
				}
				if rule, ok := strings.CutPrefix(r.Got, "rule "); ok {
					admitted[rule] = true
				} else {
					refused++
				}
			}
			if name == "A whole file" {
				return
			}
			if refused < 2 && len(admitted) < 2 {
				t.Errorf("%d claims are refused", refused)
			}
			for _, r := range s.Rules() {
				if !admitted[r.Name] && !strings.HasPrefix(r.Name, "engine") {
					t.Errorf("no test is admitted by rule %s", r.Name)
				}
			}
		})
	}
}

// edited returns the recipe main only, with parts of its rule replaced.
func edited(t *testing.T, parts string) string {
	t.Helper()
	var whole map[string]any
	if err := yaml.Unmarshal([]byte(recipes(t)["main only"]), &whole); err != nil {
		t.Fatal(err)
	}
	delete(whole, "tests")
	rule := whole["rules"].([]any)[1].(map[string]any)
	var replaced map[string]any
	if err := yaml.Unmarshal([]byte(parts), &replaced); err != nil || len(replaced) == 0 {
		t.Fatalf("%s: %v", parts, err)
	}
	maps.Copy(rule, replaced)
	out, err := yaml.Marshal(whole)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestRefusalsOfThePage(t *testing.T) {
	t.Parallel()
	table := rows(section(t, "## What is refused"))
	if len(table) < 15 {
		t.Fatalf("%d refusals", len(table))
	}
	for _, row := range table {
		write, says := strings.Trim(row[0], "`"), strings.Trim(row[1], "`")
		if _, err := Parse([]byte(edited(t, write)), Options{}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v, want %s", write, err, says)
		}
	}
}

func TestFindingsOfThePage(t *testing.T) {
	t.Parallel()
	table := rows(section(t, "## What check finds"))
	if len(table) < 7 {
		t.Fatalf("%d findings", len(table))
	}
	for _, row := range table {
		write, says := strings.Trim(row[0], "`"), strings.Trim(row[1], "`")
		s, err := Parse([]byte(edited(t, write)), Options{})
		if err != nil {
			t.Errorf("%s: %v", write, err)
			continue
		}
		var got []string
		for _, f := range s.Findings() {
			got = append(got, string(f.Severity)+": "+f.String())
		}
		if len(got) != 1 || !strings.HasPrefix(got[0], says) {
			t.Errorf("%s: got %q, want %s", write, got, says)
		}
	}
}

// TestKeysOfThePage checks that every key is in the right table of the page.
func TestKeysOfThePage(t *testing.T) {
	t.Parallel()
	text := section(t, "## Keys")
	for title, typ := range map[string]reflect.Type{
		"": reflect.TypeFor[file](), "A provider:": reflect.TypeFor[fileProvider](), "An engine:": reflect.TypeFor[fileEngine](),
		"A rule:": reflect.TypeFor[fileRule](), "What it grants:": reflect.TypeFor[fileGrant](), "A test:": reflect.TypeFor[fileTest](),
	} {
		_, after, ok := strings.Cut(text, title)
		if !ok {
			t.Fatalf("no table %q", title)
		}
		_, after, _ = strings.Cut(after, "|---|---|\n")
		table, _, _ := strings.Cut(after, "\n\n")
		var got, want []string
		for _, row := range rows(table) {
			got = append(got, strings.Trim(row[0], "`"))
		}
		for i := range typ.NumField() {
			want = append(want, typ.Field(i).Tag.Get("yaml"))
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%q: the page has %v, the file %v", title, got, want)
		}
	}
}

// TestClaimsOfThePage checks that every claim of the typed providers is on the page,
// and that a token may have every example there.
func TestClaimsOfThePage(t *testing.T) {
	t.Parallel()
	for typ, least := range map[idtoken.Type]int{idtoken.GitHub: len(githubClaims), idtoken.Fly: len(flyClaims), idtoken.People: 1, idtoken.OIDC: 5} {
		text := section(t, "### "+string(typ))
		seen := map[string]bool{}
		for _, row := range rows(text) {
			example := strings.ReplaceAll(strings.Trim(row[1], "`"), `\|`, "|")
			var n yaml.Node
			if err := yaml.Unmarshal([]byte(example), &n); err != nil {
				t.Fatalf("%s: %v", example, err)
			}
			for _, name := range quoted.FindAllStringSubmatch(row[0], -1) {
				claim := name[1]
				seen[claim] = true
				info, ok := known(typ, claim)
				if !ok {
					t.Errorf("%s: claim %s is not known", typ, claim)
				}
				v, err := loadValue(typ, claim, n.Content[0])
				if err != nil {
					t.Errorf("%s: %s: %v", typ, claim, err)
				}
				if why := info.wrong(v); why != "" {
					t.Errorf("%s: %s %s never matches: %s", typ, claim, v, why)
				}
			}
		}
		if len(seen) < least {
			t.Errorf("%s: %d claims, want %d", typ, len(seen), least)
		}
		if typ == idtoken.OIDC {
			continue
		}
		for claim, info := range claimsOf(typ) {
			if !seen[claim] && (info.form != structured || !strings.Contains(text, "`"+claim+"`")) {
				t.Errorf("%s: claim %s is not on the page", typ, claim)
			}
		}
	}
}
