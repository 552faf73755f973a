package command

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Printable makes a foreign string harmless and whole: what a terminal or a
// runner would act on is written out as Go would quote it.
func Printable(s string) string {
	if harmless(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n <= 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == '#' && strings.HasPrefix(s[i:], "##["):
			// GitHub's runner obeys ##[command] anywhere in a line ...
			b.WriteString(`\x23`)
		case r == ':' && strings.HasPrefix(s[i:], "::") && strings.TrimSpace(s[:i]) == "":
			// ... and ::command at its beginning.
			b.WriteString(`\x3a`)
		case strconv.IsPrint(r):
			b.WriteRune(r)
		default:
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		}
		i += n
	}
	return b.String()
}

func harmless(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] > '~' || s[i] == '#' || s[i] == ':' {
			return false
		}
	}
	return true
}
