// Package configfile parses the YAML of policy.yaml, issuer.yaml and sidecar.yaml
// strictly and reports where a file is wrong: file, line, column, the key as
// written and the nearest key that exists.
//
// It imports a YAML parser and no package of this module. Package client does not
// import it.
package configfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Bounds of a file.
const (
	// MaxBytes bounds a file.
	MaxBytes = 1 << 20
	// maxValues bounds the values of a file. An alias counts as the values that
	// it refers to.
	maxValues = 200_000
	// maxErrors bounds the number of reported faults of a file.
	maxErrors = 20
)

// Error is one fault of a file.
type Error struct {
	File         string // as given to Parse
	Line, Column int    // from 1; 0 for a fault of the whole file
	Text         string
}

// Error returns FILE:LINE:COLUMN: TEXT.
func (e *Error) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Text
	}
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Text)
}

// Document is the one YAML document of a file.
type Document struct {
	// Root is the document's top value; nil if the file has none.
	Root *yaml.Node
	file string
}

// Parse parses data, the contents of file. The error is an *Error for a second
// document, for more than MaxBytes and for invalid YAML.
func Parse(file string, data []byte) (*Document, error) {
	d := &Document{file: file}
	if len(data) > MaxBytes {
		return nil, d.errorAt(nil, "is larger than %d bytes", MaxBytes)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var first, second yaml.Node
	switch err := dec.Decode(&first); {
	case errors.Is(err, io.EOF):
		return d, nil
	case err != nil:
		return nil, syntaxError(file, data, err)
	}
	switch err := dec.Decode(&second); {
	case err == nil:
		return nil, d.errorAt(&second, "a second document begins here; write one file for each")
	case !errors.Is(err, io.EOF):
		return nil, syntaxError(file, data, err)
	}
	if len(first.Content) == 1 {
		d.Root = first.Content[0]
	}
	return d, nil
}

// Decode sets v, a pointer to a map or to a struct with yaml tags, from the document.
// It leaves the fields that the document does not name. Unknown keys, repeated keys
// and values of another type are errors: *Error, joined.
func (d *Document) Decode(v any) error {
	if d.Root == nil {
		return nil
	}
	if err := d.check(v); err != nil {
		return err
	}
	if err := d.Root.Decode(v); err != nil {
		return d.errorAt(d.Root, "%s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	return nil
}

// Errorf returns an *Error at the value at path: keys, and indexes of lists. If the
// path ends early, the error is at the last value on it.
func (d *Document) Errorf(path []any, format string, args ...any) *Error {
	_, value := d.find(path)
	return d.errorAt(value, format, args...)
}

// KeyErrorf is Errorf for the last key of path.
func (d *Document) KeyErrorf(path []any, format string, args ...any) *Error {
	key, _ := d.find(path)
	return d.errorAt(key, format, args...)
}

// ErrorAt returns an *Error at n, a node of the document.
func (d *Document) ErrorAt(n *yaml.Node, format string, args ...any) *Error {
	return d.errorAt(n, format, args...)
}

func (d *Document) errorAt(n *yaml.Node, format string, args ...any) *Error {
	e := &Error{File: d.file, Text: fmt.Sprintf(format, args...)}
	if n != nil {
		e.Line, e.Column = max(n.Line, 1), max(n.Column, 1)
	}
	return e
}

// find follows path as far as possible. For an item of a list, key is the value.
func (d *Document) find(path []any) (key, value *yaml.Node) {
	key, value = d.Root, d.Root
	for _, step := range path {
		k, v := child(value, step)
		if v == nil {
			break
		}
		key, value = k, v
	}
	return key, value
}

// child returns the value of n at step, a key or an index, or nil if there is
// none.
func child(n *yaml.Node, step any) (key, value *yaml.Node) {
	if n == nil {
		return nil, nil
	}
	switch step := step.(type) {
	case int:
		if n.Kind == yaml.SequenceNode && step >= 0 && step < len(n.Content) {
			return n.Content[step], n.Content[step]
		}
	case string:
		if n.Kind != yaml.MappingNode {
			return nil, nil
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == step {
				return n.Content[i], n.Content[i+1]
			}
		}
	}
	return nil, nil
}
