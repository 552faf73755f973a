package identity

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// engineSegment is the first path segment of every engine's SPIFFE ID. No provider
// may have this name.
const engineSegment = "engine"

// Limits of what Embed writes and FromCertificate reads.
const (
	// MaxCommonName bounds a common name in runes (RFC 5280, ub-common-name).
	MaxCommonName = 64
	// MaxEngines bounds the engines of one grant.
	MaxEngines = 64
	// MaxValue bounds each string of an extension in bytes.
	MaxValue = 2048
	// maxID bounds a SPIFFE ID in bytes (SPIFFE-ID section 2.3).
	maxID = 2048
)

const upperHex = "0123456789ABCDEF"

// EscapeSegment writes s as one path segment of a SPIFFE ID. Every byte outside
// [A-Za-z0-9.-], '_' included, becomes _XX in upper-case hex. A segment of only
// dots is escaped whole. No two strings have the same escape. An empty s is an
// error, since SPIFFE has no empty segments.
func EscapeSegment(s string) (string, error) {
	if s == "" {
		return "", errors.New("empty path segment")
	}
	if len(s) > maxID {
		return "", fmt.Errorf("path segment of %d bytes: a SPIFFE ID holds %d", len(s), maxID)
	}
	onlyDots := strings.Trim(s, ".") == ""
	var b strings.Builder
	b.Grow(len(s))
	for i := range len(s) {
		c := s[i]
		if plain(c) && !(onlyDots && c == '.') {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('_')
		b.WriteByte(upperHex[c>>4])
		b.WriteByte(upperHex[c&0xf])
	}
	return b.String(), nil
}

func plain(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return c == '.' || c == '-'
}

// ClientID returns spiffe://TD/<provider>/<segment>..., with each segment escaped.
// The provider's name is not escaped. The provider "engine" is refused, since that
// path names engines.
func ClientID(td spiffeid.TrustDomain, provider string, segments ...string) (spiffeid.ID, error) {
	if provider == engineSegment {
		return spiffeid.ID{}, fmt.Errorf("no provider is named %q", engineSegment)
	}
	return makeID(td, []string{provider}, segments)
}

// EngineID returns spiffe://TD/engine/<engine>/<provider>/<segment>..., with each
// segment escaped.
func EngineID(td spiffeid.TrustDomain, engine, provider string, segments ...string) (spiffeid.ID, error) {
	return makeID(td, []string{engineSegment, engine, provider}, segments)
}

// makeID joins names and the escaped segments. Names must need no escape, and there
// must be at least one segment.
func makeID(td spiffeid.TrustDomain, names, segments []string) (spiffeid.ID, error) {
	if td.IsZero() {
		return spiffeid.ID{}, errors.New("spiffe id: no trust domain")
	}
	if len(segments) == 0 {
		return spiffeid.ID{}, errors.New("spiffe id: no segment names the subject")
	}
	path := make([]string, 0, len(names)+len(segments))
	for _, n := range names {
		escaped, err := EscapeSegment(n)
		if err != nil {
			return spiffeid.ID{}, fmt.Errorf("spiffe id: %w", err)
		}
		if escaped != n {
			return spiffeid.ID{}, fmt.Errorf("spiffe id: %q is not a name", n)
		}
		path = append(path, n)
	}
	for _, s := range segments {
		escaped, err := EscapeSegment(s)
		if err != nil {
			return spiffeid.ID{}, fmt.Errorf("spiffe id: %w", err)
		}
		path = append(path, escaped)
	}
	id, err := spiffeid.FromSegments(td, path...)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("spiffe id: %w", err)
	}
	if n := len(id.String()); n > maxID {
		return spiffeid.ID{}, fmt.Errorf("spiffe id: %d bytes, at most %d", n, maxID)
	}
	return id, nil
}

// Engine returns the name of the engine in id. ok reports whether id is an
// engine's.
func Engine(id spiffeid.ID) (name string, ok bool) {
	rest, ok := strings.CutPrefix(id.Path(), "/"+engineSegment+"/")
	if !ok {
		return "", false
	}
	name, rest, ok = strings.Cut(rest, "/")
	if !ok || name == "" || rest == "" {
		return "", false
	}
	return name, true
}

// CommonName makes s fit for people to read. It drops invalid UTF-8, control
// characters and format characters, and cuts the rest to 64 runes. Format
// characters include the bidirectional controls, which can make one name look like
// another. No decision depends on a common name.
func CommonName(s string) string {
	var b strings.Builder
	n := 0
	for i, r := range s {
		if n == MaxCommonName {
			break
		}
		if r == utf8.RuneError {
			if _, size := utf8.DecodeRuneInString(s[i:]); size == 1 {
				continue
			}
		}
		if unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) {
			continue
		}
		b.WriteRune(r)
		n++
	}
	return b.String()
}

// Validate returns an error if c cannot be written into a certificate.
func (c Identity) Validate() error {
	if c.ID.IsZero() {
		return errors.New("no SPIFFE ID")
	}
	if c.ID.Path() == "" {
		return errors.New("the SPIFFE ID names only a trust domain")
	}
	if c.CommonName != CommonName(c.CommonName) {
		return errors.New("common name was not made by CommonName")
	}
	if err := c.Grant.validate(); err != nil {
		return err
	}
	for _, f := range c.Workflow.fields() {
		if err := checkValue(*f.value); err != nil {
			return fmt.Errorf("workflow extension .%d: %w", f.arc, err)
		}
	}
	return nil
}

func (g Scope) validate() error {
	switch {
	case len(g.Engines) == 0:
		return errors.New("grant: no engine")
	case len(g.Engines) > MaxEngines:
		return fmt.Errorf("grant: %d engines, at most %d", len(g.Engines), MaxEngines)
	case g.Rule == "":
		return errors.New("grant: no rule")
	}
	for i, e := range g.Engines {
		if e == "" || slices.Contains(g.Engines[:i], e) {
			return errors.New("grant: an engine is empty or named twice")
		}
		if err := checkValue(e); err != nil {
			return fmt.Errorf("grant: engine: %w", err)
		}
	}
	if err := checkValue(g.Rule); err != nil {
		return fmt.Errorf("grant: rule: %w", err)
	}
	if err := checkValue(g.Run); err != nil {
		return fmt.Errorf("grant: run: %w", err)
	}
	return nil
}

func checkValue(s string) error {
	if len(s) > MaxValue {
		return fmt.Errorf("%d bytes, at most %d", len(s), MaxValue)
	}
	if !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
		return errors.New("not valid UTF-8, or NUL in it")
	}
	return nil
}
