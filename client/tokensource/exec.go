package tokensource

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"
)

const (
	execTimeout = 30 * time.Second
	execGrace   = 2 * time.Second
	maxStderr   = 4 << 10
)

// Exec returns a source that runs a command and reads the token from its standard
// output: at most 16 KiB, within 30 s. Exec splits the line at spaces and treats
// single quotes, double quotes and backslash as a shell does. There is no shell and
// no expansion. The command gets the audience in MAYFLY_AUDIENCE.
func Exec(cmdline string) (Source, error) {
	args, err := split(cmdline)
	if err != nil {
		return nil, fmt.Errorf("token source exec: %w", err)
	}
	if len(args) == 0 {
		return nil, errors.New("token source exec: no command")
	}
	return command(args), nil
}

type command []string

func (c command) String() string { return "command " + c[0] }

func (c command) Token(ctx context.Context, audience string) (string, error) {
	fail := func(hint string, err error) (string, error) {
		return "", &Error{Source: c.String(), Hint: hint, Err: err}
	}
	if err := CheckAudience(audience); err != nil {
		return fail("", err)
	}
	ctx, cancel := context.WithTimeout(ctx, execTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, c[0], c[1:]...)
	cmd.Env = append(os.Environ(), "MAYFLY_AUDIENCE="+audience)
	cmd.WaitDelay = execGrace
	stdout, stderr := bounded{max: maxToken + 256}, bounded{max: maxStderr}
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("stopped: %w", context.Cause(ctx))
		}
		if said := excerpt(stderr.buf.Bytes()); said != "" {
			return fail("the command said: "+said, err)
		}
		return fail("", err)
	}
	token, err := readToken(&stdout.buf)
	if err != nil {
		return fail("the command must print one ID token for the audience in MAYFLY_AUDIENCE and nothing else", err)
	}
	return token, nil
}

// bounded keeps the first max bytes and drops the rest, so that the command
// does not block.
type bounded struct {
	buf bytes.Buffer
	max int
}

func (b *bounded) Write(p []byte) (int, error) {
	b.buf.Write(p[:min(len(p), b.max-b.buf.Len())])
	return len(p), nil
}

// split splits a command line into words.
func split(line string) ([]string, error) {
	const maxLine = 4 << 10
	if len(line) > maxLine {
		return nil, fmt.Errorf("command is longer than %d bytes", maxLine)
	}
	var s splitter
	for i := 0; i < len(line); i++ {
		s.next(line[i])
	}
	switch {
	case s.quote != 0:
		return nil, fmt.Errorf("unclosed quote %c", s.quote)
	case s.escaped:
		return nil, errors.New("backslash at the end")
	}
	s.end()
	return s.words, nil
}

type splitter struct {
	words   []string
	word    []byte
	started bool // an empty quoted word is a word
	quote   byte // 0, ' or "
	escaped bool
}

func (s *splitter) next(c byte) {
	switch {
	case s.escaped:
		if s.quote == '"' && c != '"' && c != '\\' {
			s.word = append(s.word, '\\') // as in a shell's double quotes
		}
		s.word, s.escaped = append(s.word, c), false
	case c == '\\' && s.quote != '\'':
		s.escaped, s.started = true, true
	case s.quote != 0 && c == s.quote:
		s.quote = 0
	case s.quote != 0:
		s.word = append(s.word, c)
	case c == '\'' || c == '"':
		s.quote, s.started = c, true
	case c == ' ' || c == '\t' || c == '\n':
		s.end()
	default:
		s.word, s.started = append(s.word, c), true
	}
}

func (s *splitter) end() {
	if s.started {
		s.words = append(s.words, string(s.word))
	}
	s.word, s.started = s.word[:0], false
}
