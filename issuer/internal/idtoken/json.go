package idtoken

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Bounds of a JSON text. The caller bounds its size.
const (
	maxDepth  = 16
	maxValues = 4096
)

// parseObject parses one JSON object (RFC 8259) in one pass, more strictly than
// encoding/json. It compares names byte by byte and refuses repeated names at any
// depth. Strings must be valid UTF-8 without unpaired surrogates and without NUL
// (which PostgreSQL cannot store). Only white space may follow the object. Numbers
// keep their text.
func parseObject(text string) (map[string]any, error) {
	if !utf8.ValidString(text) {
		return nil, errors.New("not valid UTF-8")
	}
	p := parser{text: text}
	p.space()
	if p.peek() != '{' {
		return nil, errors.New("not a JSON object")
	}
	v, err := p.object(1)
	if err != nil {
		return nil, fmt.Errorf("at byte %d: %w", p.at, err)
	}
	p.space()
	if p.at != len(p.text) {
		return nil, fmt.Errorf("at byte %d: data after the JSON object", p.at)
	}
	return v, nil
}

type parser struct {
	text   string
	at     int
	values int
}

var errSyntax = errors.New("not JSON")

func (p *parser) peek() byte {
	if p.at < len(p.text) {
		return p.text[p.at]
	}
	return 0
}

func (p *parser) space() {
	for p.at < len(p.text) {
		switch p.text[p.at] {
		case ' ', '\t', '\n', '\r':
			p.at++
		default:
			return
		}
	}
}

func (p *parser) value(depth int) (any, error) {
	if p.values++; p.values > maxValues {
		return nil, fmt.Errorf("more than %d values", maxValues)
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("nested deeper than %d", maxDepth)
	}
	switch b := p.peek(); b {
	case '{':
		return p.object(depth)
	case '[':
		return p.array(depth)
	case '"':
		return p.str()
	case 't':
		return true, p.literal("true")
	case 'f':
		return false, p.literal("false")
	case 'n':
		return nil, p.literal("null")
	default:
		if b == '-' || isDigit(b) {
			return p.number()
		}
	}
	return nil, errSyntax
}

func (p *parser) literal(word string) error {
	if !strings.HasPrefix(p.text[p.at:], word) {
		return errSyntax
	}
	p.at += len(word)
	return nil
}

func (p *parser) object(depth int) (map[string]any, error) {
	p.at++ // {
	out := make(map[string]any, 8)
	if depth == 1 {
		out = make(map[string]any, 40) // a GitHub token has 38 claims
	}
	p.space()
	if p.peek() == '}' {
		p.at++
		return out, nil
	}
	for {
		p.space()
		if p.peek() != '"' {
			return nil, errSyntax
		}
		name, err := p.str()
		if err != nil {
			return nil, err
		}
		if _, ok := out[name]; ok {
			return nil, errors.New("a name occurs twice in one object")
		}
		p.space()
		if p.peek() != ':' {
			return nil, errSyntax
		}
		p.at++
		p.space()
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		out[name] = v
		more, err := p.next('}')
		if err != nil || !more {
			return out, err
		}
	}
}

func (p *parser) array(depth int) ([]any, error) {
	p.at++ // [
	out := []any{}
	p.space()
	if p.peek() == ']' {
		p.at++
		return out, nil
	}
	for {
		p.space()
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
		more, err := p.next(']')
		if err != nil || !more {
			return out, err
		}
	}
}

// next consumes a comma, or the end of an object or array.
func (p *parser) next(end byte) (more bool, err error) {
	p.space()
	switch p.peek() {
	case ',':
		p.at++
		return true, nil
	case end:
		p.at++
		return false, nil
	}
	return false, errSyntax
}

// str parses a string. Without escapes, the result is a part of the text.
func (p *parser) str() (string, error) {
	p.at++ // "
	start := p.at
	for p.at < len(p.text) {
		switch b := p.text[p.at]; {
		case b == '"':
			s := p.text[start:p.at]
			p.at++
			return s, nil
		case b == '\\':
			return p.escaped(start)
		case b < 0x20:
			return "", errors.New("a control character in a string")
		}
		p.at++
	}
	return "", errSyntax
}

func (p *parser) escaped(start int) (string, error) {
	out := []byte(p.text[start:p.at])
	for p.at < len(p.text) {
		b := p.text[p.at]
		p.at++
		switch {
		case b == '"':
			return string(out), nil
		case b < 0x20:
			return "", errors.New("a control character in a string")
		case b != '\\':
			out = append(out, b)
			continue
		}
		r, err := p.escape()
		if err != nil {
			return "", err
		}
		out = utf8.AppendRune(out, r)
	}
	return "", errSyntax
}

// escape parses the rest of an escape sequence after the backslash.
func (p *parser) escape() (rune, error) {
	b := p.peek()
	p.at++
	switch b {
	case '"', '\\', '/':
		return rune(b), nil
	case 'b':
		return '\b', nil
	case 'f':
		return '\f', nil
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'u':
		return p.unicode()
	}
	return 0, errSyntax
}

func (p *parser) unicode() (rune, error) {
	r, err := p.hex4()
	switch {
	case err != nil:
		return 0, err
	case r == 0:
		return 0, errors.New("NUL in a string")
	case r < 0xd800 || r > 0xdfff:
		return r, nil
	case r > 0xdbff || !strings.HasPrefix(p.text[p.at:], `\u`):
		return 0, errors.New("an unpaired surrogate in a string")
	}
	p.at += 2
	low, err := p.hex4()
	if err != nil {
		return 0, err
	}
	if low < 0xdc00 || low > 0xdfff {
		return 0, errors.New("an unpaired surrogate in a string")
	}
	return (r-0xd800)<<10 + (low - 0xdc00) + 0x10000, nil
}

func (p *parser) hex4() (rune, error) {
	if len(p.text)-p.at < 4 {
		return 0, errSyntax
	}
	var r rune
	for _, b := range []byte(p.text[p.at : p.at+4]) {
		switch {
		case isDigit(b):
			r = r<<4 + rune(b-'0')
		case b >= 'a' && b <= 'f':
			r = r<<4 + rune(b-'a'+10)
		case b >= 'A' && b <= 'F':
			r = r<<4 + rune(b-'A'+10)
		default:
			return 0, errSyntax
		}
	}
	p.at += 4
	return r, nil
}

func isDigit(b byte) bool { return b >= '0' && b <= '9' }

func (p *parser) number() (json.Number, error) {
	start := p.at
	if p.peek() == '-' {
		p.at++
	}
	if p.peek() == '0' {
		p.at++
	} else if !p.digits() {
		return "", errSyntax
	}
	if p.peek() == '.' {
		p.at++
		if !p.digits() {
			return "", errSyntax
		}
	}
	if b := p.peek(); b == 'e' || b == 'E' {
		p.at++
		if b := p.peek(); b == '+' || b == '-' {
			p.at++
		}
		if !p.digits() {
			return "", errSyntax
		}
	}
	return json.Number(p.text[start:p.at]), nil
}

func (p *parser) digits() bool {
	start := p.at
	for isDigit(p.peek()) {
		p.at++
	}
	return p.at > start
}

// maxUnix bounds a NumericDate: the year 9999, the last that RFC 3339 can write.
const maxUnix = 253402300799

// timeClaim returns a NumericDate (RFC 7519 section 2): a JSON number of seconds,
// without its fraction. It returns false if the claim is missing.
func timeClaim(object map[string]any, name string) (time.Time, bool, error) {
	v, ok := object[name]
	if !ok {
		return time.Time{}, false, nil
	}
	n, ok := v.(json.Number)
	if !ok {
		return time.Time{}, true, fmt.Errorf("%s is not a number", name)
	}
	sec, err := strconv.ParseInt(string(n), 10, 64)
	if err != nil {
		f, err := strconv.ParseFloat(string(n), 64)
		if err != nil || f < 0 || f > maxUnix {
			return time.Time{}, true, fmt.Errorf("%s is out of range", name)
		}
		sec = int64(math.Floor(f))
	}
	if sec < 0 || sec > maxUnix {
		return time.Time{}, true, fmt.Errorf("%s is out of range", name)
	}
	return time.Unix(sec, 0).UTC(), true, nil
}
