package command

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Printable escapes an untrusted string and does not shorten it. It escapes text
// that a terminal or a CI runner would interpret, as Go quotes it.
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
		case workflowCommand(s, i):
			fmt.Fprintf(&b, `\x%02x`, s[i])
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

// workflowCommand reports whether GitHub's runner would read a command at byte i
// of a line: ##[command] anywhere, and ::command after nothing but white space.
// https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands
func workflowCommand(line string, i int) bool {
	return strings.HasPrefix(line[i:], "##[") || strings.HasPrefix(line[i:], "::") && strings.TrimSpace(line[:i]) == ""
}

// Inert escapes workflow commands in all lines of text and changes nothing
// else.
func Inert(text string) string {
	if !strings.Contains(text, "##[") && !strings.Contains(text, "::") {
		return text
	}
	var b strings.Builder
	for line := range strings.Lines(text) {
		for i := range len(line) {
			if workflowCommand(line, i) {
				fmt.Fprintf(&b, `\x%02x`, line[i])
			} else {
				b.WriteByte(line[i])
			}
		}
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
