package configfile

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"sort"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Bounds of the search for the place of a syntax error.
const (
	maxSearchBytes = 64 << 10
	maxSearchTries = 200
)

// parserPrefix is the beginning of the parser's errors. The line in it may be the
// line of an enclosing value.
var parserPrefix = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// syntaxError places the parser's error at the end of the longest prefix of data
// that is valid YAML.
func syntaxError(file string, data []byte, err error) *Error {
	e := &Error{File: file, Line: 1, Column: 1}
	at := parserPrefix.FindStringSubmatch(err.Error())
	if at == nil {
		e.Text = err.Error()
		return e
	}
	if line, err := strconv.Atoi(at[1]); err == nil {
		e.Line = line
	}
	e.Text = plainText(err.Error()[len(at[0]):])
	if len(data) > maxSearchBytes {
		return e
	}
	lines := bytes.SplitAfter(data, []byte("\n"))
	good := longest(len(lines), func(n int) bool { return isYAML(bytes.Join(lines[:n], nil)) })
	if good == len(lines) {
		return e
	}
	before := bytes.Join(lines[:good], nil)
	line := lines[good]
	column := longest(len(line), func(n int) bool { return isYAML(append(bytes.Clone(before), line[:n]...)) })
	e.Line, e.Column = good+1, min(column+1, max(len(bytes.TrimRight(line, "\r\n")), 1))
	if column < len(line) && line[column] == '\t' {
		e.Text = "a tab does not indent in YAML; use spaces"
	}
	return e
}

// longest returns the largest n up to most for which ok returns true. ok may return
// true again after a gap, as after a list on several lines, so longest searches a
// little further.
func longest(most int, ok func(int) bool) int {
	const gap = 32
	tries := 0
	good := 0
	for tries < maxSearchTries {
		start := good
		bad := sort.Search(most-good, func(i int) bool {
			tries++
			return !ok(start + i + 1)
		})
		good = start + bad
		next := 0
		for n := good + 2; n <= min(most, good+gap) && next == 0 && tries < maxSearchTries; n++ {
			if tries++; ok(n) {
				next = n
			}
		}
		if next == 0 {
			return good
		}
		good = next
	}
	return good
}

func isYAML(data []byte) bool {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		if err := dec.Decode(new(yaml.Node)); err != nil {
			return errors.Is(err, io.EOF)
		}
	}
}

// plainText replaces the parser's most frequent texts by advice.
func plainText(text string) string {
	for part, plain := range map[string]string{
		"mapping values are not allowed": "a \": \" does not fit here; quote the value, or correct the indentation",
		"could not find expected ':'":    "this is no \"key: value\"; add the colon, or correct the indentation",
		"did not find expected key":      "a key is expected here; correct the indentation, or quote the value",
		"did not find expected '-'":      "a list item (\"- \") is expected here; correct the indentation",
		"did not find expected ',' or":   "a list or mapping in brackets is not closed; add the comma or the bracket",
		"found unexpected end of stream": "a quote is not closed",
		"cannot start any token":         "a value cannot begin with this character; quote it",
		"control characters are not":     "a control character does not belong here",
	} {
		if strings.Contains(text, part) {
			return plain
		}
	}
	return "not YAML: " + text
}
