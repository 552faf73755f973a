package configfile

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// checker compares a document with the Go type of its target.
type checker struct {
	*Document
	errs   []error
	values int
	top    reflect.Type
}

func (d *Document) check(v any) error {
	c := &checker{Document: d, top: reflect.TypeOf(v).Elem()}
	c.value(d.Root, c.top, "")
	return errors.Join(c.errs...)
}

func (c *checker) bad(n *yaml.Node, format string, args ...any) {
	if len(c.errs) < maxErrors {
		c.errs = append(c.errs, c.errorAt(n, format, args...))
	}
}

// value checks n, the value of key, against type t.
func (c *checker) value(n *yaml.Node, t reflect.Type, key string) {
	if c.values++; c.values > maxValues {
		if c.values == maxValues+1 {
			c.bad(n, "the file has more than %d values", maxValues)
		}
		return
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case n.Kind == yaml.AliasNode:
		c.value(n.Alias, t, key)
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null":
	case t == reflect.TypeFor[yaml.Node](), t.Kind() == reflect.Interface:
		c.free(n, t)
	case t.Kind() == reflect.Struct:
		c.structure(n, t, key)
	case t.Kind() == reflect.Map:
		if c.isMapping(n, key) {
			c.uniqueKeys(n)
			for i := 0; i+1 < len(n.Content); i += 2 {
				c.value(n.Content[i+1], t.Elem(), join(key, n.Content[i].Value))
			}
		}
	case t.Kind() == reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			c.bad(n, "%swant a list, as in [a, b]", prefix(key))
			return
		}
		for i, item := range n.Content {
			c.value(item, t.Elem(), fmt.Sprintf("%s[%d]", key, i))
		}
	default:
		c.scalar(n, t, key)
	}
}

// free checks a value of any type. Only repeated keys are errors.
func (c *checker) free(n *yaml.Node, t reflect.Type) {
	if n.Kind == yaml.MappingNode {
		c.uniqueKeys(n)
	}
	for _, inner := range n.Content {
		c.value(inner, t, "")
	}
}

func (c *checker) isMapping(n *yaml.Node, key string) bool {
	if n.Kind == yaml.MappingNode {
		return true
	}
	c.bad(n, "%swant keys with values, as in key: value", prefix(key))
	return false
}

func (c *checker) structure(n *yaml.Node, t reflect.Type, key string) {
	if !c.isMapping(n, key) {
		return
	}
	c.uniqueKeys(n)
	fields := fieldsOf(t)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.ShortTag() == "!!merge" {
			c.merged(v, t, key)
			continue
		}
		at := slices.IndexFunc(fields, func(f field) bool { return f.key == k.Value })
		if at < 0 || k.Kind != yaml.ScalarNode {
			c.bad(k, "unknown key %q%s; %s", cut(k.Value), under(key), c.suggest(k.Value, fields))
			continue
		}
		c.value(v, fields[at].typ, join(key, k.Value))
	}
}

// merged checks the value of a key <<: a mapping or a list of mappings.
func (c *checker) merged(n *yaml.Node, t reflect.Type, key string) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind != yaml.SequenceNode {
		c.value(n, t, key)
		return
	}
	for _, m := range n.Content {
		c.value(m, t, key)
	}
}

func (c *checker) uniqueKeys(n *yaml.Node) {
	seen := make(map[string]*yaml.Node, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		if k.Kind != yaml.ScalarNode {
			c.bad(k, "a key must be text")
			continue
		}
		if first, twice := seen[k.Value]; twice {
			c.bad(k, "key %q occurs twice, first on line %d; keep one", cut(k.Value), first.Line)
		}
		seen[k.Value] = k
	}
}

func (c *checker) scalar(n *yaml.Node, t reflect.Type, key string) {
	if n.Kind != yaml.ScalarNode {
		c.bad(n, "%swant %s, not a list or keys with values", prefix(key), kindOf(t))
		return
	}
	if n.Decode(reflect.New(t).Interface()) != nil {
		c.bad(n, "%swant %s, not %q", prefix(key), kindOf(t), cut(n.Value))
	}
}

// Value sets v, a pointer, to the YAML scalar in text. The error names the wanted
// kind of value.
func Value(text string, v any) error {
	if yaml.Unmarshal([]byte(text), v) != nil {
		return fmt.Errorf("want %s, not %q", kindOf(reflect.TypeOf(v).Elem()), cut(text))
	}
	return nil
}

func kindOf(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "a duration like 90s, 5m or 24h"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() >= reflect.Int && t.Kind() <= reflect.Uint64:
		return "a whole number"
	}
	return "text"
}

// field is one key of a struct.
type field struct {
	key string
	typ reflect.Type
}

// fieldsOf returns the YAML keys of t in the order of its fields.
func fieldsOf(t reflect.Type) []field {
	var out []field
	for i := range t.NumField() {
		f := t.Field(i)
		key, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case strings.Contains(options, "inline"):
			out = append(out, fieldsOf(f.Type)...)
		case key != "-" && key != "":
			out = append(out, field{key, f.Type})
		}
	}
	return out
}

// suggest returns advice for an unknown key.
func (c *checker) suggest(key string, fields []field) string {
	keys := make([]string, len(fields))
	for i, f := range fields {
		keys[i] = f.key
	}
	if near := Nearest(key, keys); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	if parent := parentOf(c.top, key, 0); parent != "" {
		return fmt.Sprintf("it belongs under %q", parent)
	}
	return "the keys here are " + strings.Join(keys, ", ")
}

// parentOf returns the key of t that has key below it, or "" if there is none.
func parentOf(t reflect.Type, key string, depth int) string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[yaml.Node]() || depth > 8 {
		return ""
	}
	for _, f := range fieldsOf(t) {
		inner := f.typ
		for inner.Kind() == reflect.Pointer || inner.Kind() == reflect.Slice || inner.Kind() == reflect.Map {
			inner = inner.Elem()
		}
		if inner.Kind() != reflect.Struct || inner == reflect.TypeFor[yaml.Node]() {
			continue
		}
		if slices.ContainsFunc(fieldsOf(inner), func(f field) bool { return f.key == key }) {
			return f.key
		}
		if found := parentOf(inner, key, depth+1); found != "" {
			return found
		}
	}
	return ""
}

func join(key, next string) string {
	if key == "" {
		return next
	}
	return key + "." + next
}

func prefix(key string) string {
	if key == "" {
		return ""
	}
	return cut(key) + ": "
}

func under(key string) string {
	if key == "" {
		return ""
	}
	return " in " + cut(key)
}

// cut bounds the text of the file in an error.
func cut(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
