package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// maxReason bounds a reason, so that VerdictErr, a reason and a line feed fit
// in MaxVerdictBytes.
const maxReason = 48

// relayNameLength is the length of a relay's name: its exporter value in hex.
const relayNameLength = 2 * ExporterLength

// ValidReason reports whether s has the form of a reason: lower-case letters and
// underscores. Unknown reasons are valid, because later versions may add some.
func ValidReason(s string) bool {
	if s == "" || len(s) > maxReason {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && c != '_' {
			return false
		}
	}
	return true
}

// Verdict returns the line for reason, or VerdictOK if reason is empty.
func Verdict(reason string) string {
	if reason == "" {
		return VerdictOK
	}
	return VerdictErr + reason + "\n"
}

// ParseVerdict parses a whole verdict line with its line feed. The reason is empty
// if the connection is admitted.
func ParseVerdict(line string) (reason string, err error) {
	if line == VerdictOK {
		return "", nil
	}
	reason, isErr := strings.CutPrefix(line, VerdictErr)
	reason, whole := strings.CutSuffix(reason, "\n")
	if !isErr || !whole || !ValidReason(reason) {
		return "", fmt.Errorf("%.*q is no verdict", MaxVerdictBytes, line)
	}
	return reason, nil
}

// ParseControl parses one line of a control connection, with or without its line
// feed, and checks its form. The line must have one message, well-formed relay
// names, and a reason if and only if it has a cut. Unknown members are ignored.
func ParseControl(line []byte) (Control, error) {
	var c Control
	if len(line) > MaxControlLine {
		return c, fmt.Errorf("control line is longer than %d bytes", MaxControlLine)
	}
	if err := json.Unmarshal(bytes.TrimSuffix(line, []byte("\n")), &c); err != nil {
		return Control{}, fmt.Errorf("control line: %w", err)
	}
	if err := c.check(); err != nil {
		return Control{}, fmt.Errorf("control line: %w", err)
	}
	return c, nil
}

func (c Control) check() error {
	messages := 0
	for _, set := range []bool{c.Hold != nil, c.Held != nil, c.Ping != 0, c.Pong != 0, c.Cut != ""} {
		if set {
			messages++
		}
	}
	if messages != 1 {
		return fmt.Errorf("%d messages in one line", messages)
	}
	for _, names := range [][]string{c.Hold, c.Held} {
		for _, name := range names {
			if !validRelayName(name) {
				return errors.New("malformed relay name")
			}
		}
	}
	switch {
	case c.Cut == "" && c.Reason+c.Detail != "":
		return errors.New("a reason without a cut")
	case len(c.Detail) > MaxControlDetail || strings.ContainsFunc(c.Detail, func(r rune) bool { return r < ' ' || r > '~' }):
		return errors.New("a detail that is no short text")
	case c.Cut != "" && !validRelayName(c.Cut):
		return errors.New("malformed relay name")
	case c.Cut != "" && !ValidReason(c.Reason):
		return errors.New("a cut without a reason")
	}
	return nil
}

func validRelayName(s string) bool {
	if len(s) != relayNameLength {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Line returns the message as one line with its line feed.
func (c Control) Line() ([]byte, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	if len(b) >= MaxControlLine {
		return nil, fmt.Errorf("control line is longer than %d bytes", MaxControlLine)
	}
	return append(b, '\n'), nil
}

// MaxHoldNames is the maximum number of relays in one hold line. Such a line is
// well below MaxControlLine.
const MaxHoldNames = 500
