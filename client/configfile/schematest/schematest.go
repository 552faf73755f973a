// Package schematest generates the JSON Schema of a configuration file from its Go
// type and compares it with the committed schema. It is for tests: no program
// contains the generator.
package schematest

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/invopop/jsonschema"
	validator "github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write the schemas that are committed")

// home is the URL of the main branch's files.
const home = "https://raw.githubusercontent.com/mayfly-ca/mayfly/main/"

// File is a configuration file's type and its schema.
type File struct {
	Type   any    // a pointer to the struct for the file
	Source string // the Go file with the struct, whose comments are the descriptions
	Path   string // the schema, in the test's folder
	Home   string // the schema, from the repository's root
	Title  string
	// Edit, if not nil, adds what the Go type cannot express.
	Edit func(*jsonschema.Schema)
}

// Hold fails t unless the committed schema equals the generated one. With the flag
// -update it writes the schema first.
func (f File) Hold(t *testing.T) {
	t.Helper()
	want := f.generate(t)
	if *update {
		if err := os.WriteFile(f.Path, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what the type gives: run go test -run %s -update in its folder", f.Path, t.Name())
	}
}

// Validate checks text, a YAML document, against the committed schema.
func (f File) Validate(t *testing.T, text string) error {
	t.Helper()
	data, err := os.ReadFile(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	schema, err := validator.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	c := validator.NewCompiler()
	if err := c.AddResource("schema.json", schema); err != nil {
		t.Fatal(err)
	}
	compiled, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	instance, err := validator.UnmarshalJSON(bytes.NewReader(asJSON))
	if err != nil {
		t.Fatal(err)
	}
	return compiled.Validate(instance)
}

// Shipped returns the text of a file that users may copy. It fails t unless the
// file is valid and its first line names the schema, for editors.
func (f File) Shipped(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	first, _, _ := strings.Cut(text, "\n")
	named, ok := strings.CutPrefix(first, "# yaml-language-server: $schema=")
	got, err := os.ReadFile(filepath.Join(filepath.Dir(path), named))
	if !ok || err != nil {
		t.Errorf("%s: the first line names no schema: %q (%v)", path, first, err)
	}
	want, err := os.ReadFile(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: names a schema that is not %s", path, f.Path)
	}
	if err := f.Validate(t, text); err != nil {
		t.Errorf("%s: %v", path, err)
	}
	return text
}

// durationPattern matches the input of time.ParseDuration without a sign.
const durationPattern = `^(0|([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+)$`

func (f File) generate(t *testing.T) []byte {
	t.Helper()
	names := f.fields(t)
	r := jsonschema.Reflector{
		FieldNameTag: "yaml", RequiredFromJSONSchemaTags: true, DoNotReference: true, Anonymous: true,
		Mapper: func(t reflect.Type) *jsonschema.Schema {
			switch t {
			case reflect.TypeFor[time.Duration]():
				return &jsonschema.Schema{Type: "string", Pattern: durationPattern}
			case reflect.TypeFor[yaml.Node]():
				return &jsonschema.Schema{Type: "object"}
			}
			return nil
		},
		LookupComment: func(t reflect.Type, field string) string { return names.comment[t.Name()+"."+field] },
	}
	s := r.Reflect(f.Type)
	s.ID, s.Title = jsonschema.ID(home+f.Home), f.Title
	names.describe(s)
	if f.Edit != nil {
		f.Edit(s)
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(s); err != nil {
		t.Fatal(err)
	}
	return []byte(unescape.Replace(out.String()))
}

// unescape reverses the generator's HTML escapes.
var unescape = strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&")

// goNames has the names of a Go file that occur in its comments.
type goNames struct {
	comment map[string]string // by TYPE.FIELD
	key     map[string]string // by field: its YAML key
	types   []string
}

func (f File) fields(t *testing.T) *goNames {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), f.Source, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	n := &goNames{comment: map[string]string{}, key: map[string]string{}}
	ast.Inspect(parsed, func(node ast.Node) bool {
		spec, ok := node.(*ast.TypeSpec)
		if !ok {
			return true
		}
		st, ok := spec.Type.(*ast.StructType)
		if !ok {
			return false
		}
		n.types = append(n.types, spec.Name.Name)
		for _, field := range st.Fields.List {
			if field.Tag == nil {
				continue
			}
			key, _, _ := strings.Cut(reflect.StructTag(strings.Trim(field.Tag.Value, "`")).Get("yaml"), ",")
			if key == "-" || key == "" {
				continue
			}
			for _, name := range field.Names {
				n.comment[spec.Name.Name+"."+name.Name] = field.Doc.Text()
				n.key[name.Name] = key
			}
		}
		return false
	})
	if len(n.comment) == 0 {
		t.Fatalf("%s has no struct with yaml tags", f.Source)
	}
	return n
}

// describe replaces Go names by YAML names in the descriptions of s and its parts.
func (n *goNames) describe(s *jsonschema.Schema) {
	if s == nil {
		return
	}
	s.Description = n.text(s.Description)
	n.describe(s.Items)
	n.describe(s.AdditionalProperties)
	if s.Properties == nil {
		return
	}
	for p := s.Properties.Oldest(); p != nil; p = p.Next() {
		n.describe(p.Value)
	}
}

var (
	see  = regexp.MustCompile(`\s*\bSee \w+\.`)
	word = regexp.MustCompile(`\b[A-Z]\w*(\.[A-Z]\w*)?\b`)
)

// text rewrites a comment for users of the file: it replaces field names by keys
// and removes type names.
func (n *goNames) text(comment string) string {
	comment = see.ReplaceAllString(strings.Join(strings.Fields(comment), " "), "")
	return word.ReplaceAllStringFunc(comment, func(w string) string {
		if typ, field, ok := strings.Cut(w, "."); ok && n.key[field] != "" {
			return strings.ToLower(strings.TrimSuffix(typ, "Config")) + "." + n.key[field]
		}
		if key, ok := n.key[w]; ok && (w != strings.ToUpper(w) || w != strings.ToUpper(key)) { // CA and TLS are also words
			return key
		}
		return w
	})
}

// CheckKeys fails t unless the schema has each key of the struct, with a description
// that uses no Go names.
func (f File) CheckKeys(t *testing.T) {
	t.Helper()
	data, err := os.ReadFile(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	var s map[string]any
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	names := f.fields(t)
	if n := f.checkKeys(t, names, s, reflect.TypeOf(f.Type).Elem(), ""); n < 5 {
		t.Errorf("only %d keys were looked for", n)
	}
	for _, name := range names.types {
		if regexp.MustCompile(`\b`+name+`\b`).MatchString(string(data)) && name != strings.ToLower(name) {
			t.Errorf("%s names the Go type %s", f.Path, name)
		}
	}
}

func (f File) checkKeys(t *testing.T, names *goNames, s map[string]any, typ reflect.Type, at string) (n int) {
	t.Helper()
	properties, _ := s["properties"].(map[string]any)
	if s["additionalProperties"] != false {
		t.Errorf("%s: keys that do not exist are allowed", at)
	}
	for i := range typ.NumField() {
		field := typ.Field(i)
		key, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		if key == "-" || key == "" {
			continue
		}
		n++
		p, ok := properties[key].(map[string]any)
		if !ok {
			t.Errorf("%s.%s is missing", at, key)
			continue
		}
		if d, _ := p["description"].(string); len(d) < 10 {
			t.Errorf("%s.%s has no description", at, key)
		}
		inner := field.Type
		for inner.Kind() == reflect.Slice || inner.Kind() == reflect.Map {
			next := "items"
			if inner.Kind() == reflect.Map {
				next = "additionalProperties"
			}
			inner = inner.Elem()
			p, _ = p[next].(map[string]any)
		}
		if inner.Kind() == reflect.Struct && inner != reflect.TypeFor[yaml.Node]() {
			n += f.checkKeys(t, names, p, inner, fmt.Sprintf("%s.%s", at, key))
		}
	}
	return n
}
