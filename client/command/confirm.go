package command

import (
	"fmt"
	"io"
	"strings"
)

// Confirm asks a question on the terminal. yes reports whether the answer was a
// full "yes". Without a terminal it does not ask.
func Confirm(s Stdio, question string) (asked, yes bool) {
	if !IsTerminal(s.In) || !IsTerminal(s.Err) {
		return false, false
	}
	for line := range strings.Lines(question) {
		fmt.Fprintf(s.Err, "%s\n", Printable(strings.TrimRight(line, "\n")))
	}
	fmt.Fprint(s.Err, "Type yes to go on: ")
	return true, ReadLine(s.In, 16) == "yes"
}

// ReadLine reads up to a line feed or limit. It reads byte by byte, so that the
// following bytes stay for the next reader.
func ReadLine(r io.Reader, limit int) string {
	var b []byte
	one := make([]byte, 1)
	for len(b) <= limit {
		n, err := r.Read(one)
		if n == 1 {
			if one[0] == '\n' {
				break
			}
			b = append(b, one[0])
		}
		if err != nil {
			break
		}
	}
	return strings.TrimRight(string(b), "\r")
}
