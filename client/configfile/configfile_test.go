package configfile_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/client/configfile"
)

type config struct {
	Listen  string            `yaml:"listen"`
	TLS     protection        `yaml:"tls"`
	Proxies []string          `yaml:"trusted_proxies"`
	Keep    time.Duration     `yaml:"retention"`
	Count   int               `yaml:"count"`
	On      bool              `yaml:"behind_proxy"`
	Engines map[string]engine `yaml:"engines"`
	Rules   []rule            `yaml:"rules"`
	Secret  string            `yaml:"-"`
}

type protection struct {
	Mode string `yaml:"mode"`
	Cert string `yaml:"cert"`
}

type engine struct {
	ServerName string `yaml:"server_name"`
}

type rule struct {
	Name  string    `yaml:"name"`
	Match yaml.Node `yaml:"match"`
	Grant struct {
		TTL string `yaml:"ttl"`
	} `yaml:"grant"`
}

func decode(text string) (config, error) {
	c := config{Listen: ":1"}
	d, err := configfile.Parse("c.yaml", []byte(text))
	if err == nil {
		err = d.Decode(&c)
	}
	return c, err
}

func TestDecode(t *testing.T) {
	t.Parallel()
	got, err := decode(`
tls: {mode: self}
trusted_proxies: [a, b]
retention: 48h
count: 7
behind_proxy: true
engines: {default: &e {server_name: x}, other: *e}
rules:
  - name: 5
    match: {anything: [goes, {here: 1}]}
    grant: {ttl: 1h}
`)
	if err != nil {
		t.Fatal(err)
	}
	if got.Rules[0].Match.Kind != yaml.MappingNode {
		t.Errorf("match is %v", got.Rules[0].Match)
	}
	got.Rules[0].Match = yaml.Node{}
	want := config{
		Listen: ":1", TLS: protection{Mode: "self"}, Proxies: []string{"a", "b"}, Keep: 48 * time.Hour, Count: 7, On: true,
		Engines: map[string]engine{"default": {"x"}, "other": {"x"}}, Rules: []rule{{Name: "5"}},
	}
	want.Rules[0].Grant.TTL = "1h"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, empty := range []string{"", "# only a remark\n", "---\n", "null\n"} {
		if got, err := decode(empty); err != nil || !reflect.DeepEqual(got, config{Listen: ":1"}) {
			t.Errorf("%q: %+v, %v", empty, got, err)
		}
	}
	if got, err := decode("listen: ~\ntls: ~\n"); err != nil || got.Listen != ":1" {
		t.Errorf("without values: %+v, %v", got, err)
	}
	if got, err := decode("tls: &t {mode: self}\nengines: {}\n<<: {count: 3}\n"); err != nil || got.Count != 3 {
		t.Errorf("merged: %+v, %v", got, err)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ text, want string }{
		"a key that is near":      {"count: 1\nlisen: x\n", `c.yaml:2:1: unknown key "lisen"; did you mean "listen"?`},
		"as people spell":         {"Trusted-Proxies: [a]\n", `c.yaml:1:1: unknown key "Trusted-Proxies"; did you mean "trusted_proxies"?`},
		"a beginning":             {"engine: {}\n", `c.yaml:1:1: unknown key "engine"; did you mean "engines"?`},
		"half a key":              {"trusted: []\n", `c.yaml:1:1: unknown key "trusted"; did you mean "trusted_proxies"?`},
		"a key of elsewhere":      {"rules:\n- name: a\n  ttl: 1h\n", `c.yaml:3:3: unknown key "ttl" in rules[0]; it belongs under "grant"`},
		"a key of nowhere":        {"tls:\n  zzzzzz: 1\n", `c.yaml:2:3: unknown key "zzzzzz" in tls; the keys here are mode, cert`},
		"a hidden field":          {"secret: 1\n", `c.yaml:1:1: unknown key "secret"; the keys here are listen, tls, trusted_proxies, retention, count, behind_proxy, engines, rules`},
		"a key twice":             {"count: 1\nlisten: a\ncount: 2\n", `c.yaml:3:1: key "count" occurs twice, first on line 1; keep one`},
		"a name twice":            {"engines:\n  a: {}\n  a: {}\n", `c.yaml:3:3: key "a" occurs twice, first on line 2; keep one`},
		"a free key twice":        {"rules:\n- match:\n    a: {b: 1, b: 2}\n", `c.yaml:3:15: key "b" occurs twice, first on line 3; keep one`},
		"a duration":              {"retention: 90\n", `c.yaml:1:12: retention: want a duration like 90s, 5m or 24h, not "90"`},
		"a number":                {"count: many\n", `c.yaml:1:8: count: want a whole number, not "many"`},
		"a number too large":      {"count: 99999999999999999999\n", `c.yaml:1:8: count: want a whole number, not "99999999999999999999"`},
		"a boolean":               {"behind_proxy: maybe\n", `c.yaml:1:15: behind_proxy: want true or false, not "maybe"`},
		"a list for text":         {"rules:\n- name: [a]\n", `c.yaml:2:9: rules[0].name: want text, not a list or keys with values`},
		"text for a list":         {"trusted_proxies: a\n", `c.yaml:1:18: trusted_proxies: want a list, as in [a, b]`},
		"text for keys":           {"tls: self\n", `c.yaml:1:6: tls: want keys with values, as in key: value`},
		"a list for the file":     {"- a\n", `c.yaml:1:1: want keys with values, as in key: value`},
		"text for the file":       {"listen\n", `c.yaml:1:1: want keys with values, as in key: value`},
		"a key that is a list":    {"engines:\n  [a]: {}\n", `c.yaml:2:3: a key must be text`},
		"an unknown key merged":   {"<<: {coumt: 1}\n", `c.yaml:1:6: unknown key "coumt"; did you mean "count"?`},
		"an unknown key by alias": {"engines:\n  a: &a {server: x}\n  b: *a\n", "c.yaml:2:10: unknown key \"server\" in engines.a; did you mean \"server_name\"?\nc.yaml:2:10: unknown key \"server\" in engines.b; did you mean \"server_name\"?"},
		"two faults":              {"lisen: x\ncount: y\n", "c.yaml:1:1: unknown key \"lisen\"; did you mean \"listen\"?\nc.yaml:2:8: count: want a whole number, not \"y\""},
		"a second document":       {"count: 1\n---\ncount: 2\n", `c.yaml:2:1: a second document begins here; write one file for each`},
		"an alias of itself":      {"engines: &e\n  a: *e\n", `c.yaml:2:3: unknown key "a" in engines.a; the keys here are server_name`},
	} {
		_, err := decode(tc.text)
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if diff := cmp.Diff(tc.want, err.Error()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// A syntax error is placed at the end of the longest prefix that is valid YAML.
func TestSyntaxErrors(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ text, want string }{
		"a tab":                      {"tls:\n\tmode: self\n", `c.yaml:2:1: a tab does not indent in YAML; use spaces`},
		"a colon too many":           {"count: 1\nlisten: a: b\n", `c.yaml:2:10: a ": " does not fit here; quote the value, or correct the indentation`},
		"a missing colon":            {"count: 1\nlisten\ntls: {}\n", `c.yaml:2:1: this is no "key: value"; add the colon, or correct the indentation`},
		"a bracket that stays open":  {"count: 1\ntls: {mode: self\nrules: []\n", `c.yaml:2:6: a list or mapping in brackets is not closed; add the comma or the bracket`},
		"a quote that stays open":    {"count: 1\nlisten: \"a\ntls: {}\n", `c.yaml:2:9: a quote is not closed`},
		"indented too much":          {"rules:\n  - name: a\n     grant: {}\n", `c.yaml:3:11: a ": " does not fit here; quote the value, or correct the indentation`},
		"indented too little":        {"rules:\n  - name: a\n    grant: {}\n   match: {}\n", `c.yaml:4:4: a list item ("- ") is expected here; correct the indentation`},
		"a value that cannot begin":  {"listen: @a\n", `c.yaml:1:9: a value cannot begin with this character; quote it`},
		"behind a list over lines":   {"trusted_proxies: [\n  a,\n  b\n]\ncount: 1\nlisten: a: b\n", `c.yaml:6:10: a ": " does not fit here; quote the value, or correct the indentation`},
		"in what follows a document": {"count: 1\n---\na: {\n", `c.yaml:3:4: not YAML: did not find expected node content`},
		"too large":                  {strings.Repeat("#", configfile.MaxBytes+1), `c.yaml: is larger than 1048576 bytes`},
	} {
		_, err := decode(tc.text)
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if diff := cmp.Diff(tc.want, err.Error()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestErrorf(t *testing.T) {
	t.Parallel()
	d, err := configfile.Parse("c.yaml", []byte("a:\n  - b: 1\n    c: 2\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		path []any
		want string
	}{
		{[]any{"a", 0, "c"}, "c.yaml:3:8: x"},
		{[]any{"a", 0}, "c.yaml:2:5: x"},
		{[]any{"a", 0, "gone", "further"}, "c.yaml:2:5: x"},
		{[]any{"a", 7}, "c.yaml:2:3: x"},
		{nil, "c.yaml:1:1: x"},
	} {
		if got := d.Errorf(tc.path, "x").Error(); got != tc.want {
			t.Errorf("%v: %s, want %s", tc.path, got, tc.want)
		}
	}
	if got := d.KeyErrorf([]any{"a", 0, "c"}, "x").Error(); got != "c.yaml:3:5: x" {
		t.Errorf("at the key: %s", got)
	}
}

func TestNearest(t *testing.T) {
	t.Parallel()
	names := []string{"repository_id", "repository_owner_id", "ref", "event_name", "environment"}
	for word, want := range map[string]string{
		"repositoryId": "repository_id", "reposiotry_id": "repository_id", "event": "event_name", "environmnet": "environment",
		"REF": "ref", "rev": "ref", "re": "ref", "x": "", "branch": "", "": "",
	} {
		if got := configfile.Nearest(word, names); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}

func TestValue(t *testing.T) {
	t.Parallel()
	var d time.Duration
	if err := configfile.Value("90s", &d); err != nil || d != 90*time.Second {
		t.Errorf("%v, %v", d, err)
	}
	if err := configfile.Value("90", &d); err == nil || err.Error() != `want a duration like 90s, 5m or 24h, not "90"` {
		t.Error(err)
	}
}

// FuzzDecode checks that an error has a place inside the file and names no Go type.
// The parser's own strict mode must accept each accepted file.
func FuzzDecode(f *testing.F) {
	f.Add("listen: a\nrules:\n- name: b\n  match: {c: [1]}\n")
	f.Add("lisen: a\ncount: x\n")
	f.Add("a: &a [*a]\n<<: *a\n")
	f.Add("tls:\n\tmode: self\n")
	f.Add("a: [\n1,\n2\n]\nb: c: d\n---\n")
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 4096 {
			return
		}
		_, err := decode(text)
		if err == nil {
			var c config
			dec := yaml.NewDecoder(strings.NewReader(text))
			dec.KnownFields(true)
			if strict := dec.Decode(&c); strict != nil && strict.Error() != "EOF" {
				t.Fatalf("accepted, and the parser says: %v", strict)
			}
			return
		}
		for _, e := range faults(err) {
			lines := strings.Count(text, "\n") + strings.Count(text, "\r") + strings.Count(text, "\u2028") + strings.Count(text, "\u2029") + strings.Count(text, "\u0085") + 1
			if e.Line < 1 || e.Line > lines || e.Column < 1 || strings.Contains(e.Text, "configfile_test.") || strings.Contains(e.Text, "yaml:") {
				t.Fatalf("%q: %v", text, e)
			}
		}
	})
}

func faults(err error) []*configfile.Error {
	switch err := err.(type) {
	case *configfile.Error:
		return []*configfile.Error{err}
	case interface{ Unwrap() []error }:
		var out []*configfile.Error
		for _, e := range err.Unwrap() {
			out = append(out, faults(e)...)
		}
		return out
	}
	return nil
}
