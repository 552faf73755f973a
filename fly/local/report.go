package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// The rules of this program's output:
//   - standard error has one line a step, with its time, and what the programs
//     under demonstration print, indented;
//   - standard output stays empty, but for the one line of --json;
//   - a failure names the step, the cause and the remedy.

// step is one line of the report. The JSON names are part of the command line's
// contract.
type step struct {
	Name  string `json:"name"`
	OK    bool   `json:"ok"`
	MS    int64  `json:"ms"`
	Error string `json:"error,omitempty"`
}

// report collects the steps and prints each one when it ends.
type report struct {
	OK          bool   `json:"ok"`
	Steps       []step `json:"steps"`
	Serial      string `json:"serial"`
	Rule        string `json:"rule"`
	RevokeCutMS int64  `json:"revoke_cut_ms"`

	progress io.Writer
}

// stepError is the cause of a failed step, with what a person can do.
type stepError struct {
	cause  error
	remedy string
}

func (e *stepError) Error() string { return e.cause.Error() }
func (e *stepError) Unwrap() error { return e.cause }

// remedy adds to an error what to do. A nil error stays nil.
func remedy(err error, what string) error {
	if err == nil {
		return nil
	}
	return &stepError{cause: err, remedy: what}
}

// say prints one indented line of a step in progress.
func (r *report) say(format string, args ...any) {
	fmt.Fprintf(r.progress, "    "+format+"\n", args...)
}

// run runs one step. f returns the text for the step's line.
func (r *report) run(name string, f func() (string, error)) error {
	begin := time.Now()
	said, err := f()
	took := time.Since(begin)
	s := step{Name: name, OK: err == nil, MS: took.Milliseconds()}
	if err != nil {
		s.Error = err.Error()
		r.Steps = append(r.Steps, s)
		fmt.Fprintf(r.progress, "FAIL %-8s %7s  %s\n", name, roundTime(took), firstLine(err.Error()))
		return err
	}
	r.Steps = append(r.Steps, s)
	fmt.Fprintf(r.progress, "ok   %-8s %7s  %s\n", name, roundTime(took), said)
	return nil
}

// json writes the one line of --json.
func (r *report) json(w io.Writer) error {
	if r.Steps == nil {
		r.Steps = []step{}
	}
	return json.NewEncoder(w).Encode(r)
}

func roundTime(d time.Duration) string {
	if d >= 10*time.Second {
		return d.Round(time.Second / 10).String()
	}
	return d.Round(time.Millisecond).String()
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// indent adds a prefix to every line. It keeps an unfinished last line until flush.
type indent struct {
	w      io.Writer
	prefix string
	rest   []byte
}

func (i *indent) Write(p []byte) (int, error) {
	i.rest = append(i.rest, p...)
	for {
		line, rest, ok := strings.Cut(string(i.rest), "\n")
		if !ok {
			return len(p), nil
		}
		if _, err := fmt.Fprintf(i.w, "%s%s\n", i.prefix, strings.TrimRight(line, "\r")); err != nil {
			return 0, err
		}
		i.rest = []byte(rest)
	}
}

func (i *indent) flush() {
	if len(i.rest) > 0 {
		fmt.Fprintf(i.w, "%s%s\n", i.prefix, i.rest)
		i.rest = nil
	}
}
