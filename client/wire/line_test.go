package wire_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mayfly-ca/mayfly/client/wire"
)

var name = strings.Repeat("0a", wire.ExporterLength)

func TestParseVerdict(t *testing.T) {
	t.Parallel()
	tests := []struct {
		line, reason string
		ok           bool
	}{
		{"OK\n", "", true},
		{"ERR revoked\n", "revoked", true},
		{"ERR wrong_engine\n", "wrong_engine", true},
		{"ERR some_later_reason\n", "some_later_reason", true},
		{"OK", "", false},
		{"ok\n", "", false},
		{"OK \n", "", false},
		{"OK\n\n", "", false},
		{"ERR \n", "", false},
		{"ERR revoked", "", false},
		{"ERR re voked\n", "", false},
		{"ERR \x1b[31mrevoked\n", "", false},
		{"ERR " + strings.Repeat("a", 49) + "\n", "", false},
		{"HTTP/1.1 400 Bad Request\r\n", "", false},
		{"", "", false},
	}
	for _, tt := range tests {
		reason, err := wire.ParseVerdict(tt.line)
		if (err == nil) != tt.ok || reason != tt.reason {
			t.Errorf("%q: reason %q, error %v", tt.line, reason, err)
		}
	}
}

// A verdict that parses is the same line as the one written for its reason, and fits.
func FuzzParseVerdict(f *testing.F) {
	for _, s := range []string{"OK\n", "ERR revoked\n", "ERR feed_stale\n", "ERR \n", "ERR a\nb\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		reason, err := wire.ParseVerdict(line)
		if err != nil {
			return
		}
		if got := wire.Verdict(reason); got != line || len(got) > wire.MaxVerdictBytes {
			t.Fatalf("%q parsed as %q", line, reason)
		}
	})
}

func TestParseControl(t *testing.T) {
	t.Parallel()
	tests := []struct {
		line string
		want wire.Control
		ok   bool
	}{
		{`{"hold":["` + name + `"]}` + "\n", wire.Control{Hold: []string{name}}, true},
		{`{"held":[]}`, wire.Control{Held: []string{}}, true},
		{`{"ping":1}`, wire.Control{Ping: 1}, true},
		{`{"pong":18446744073709551615}`, wire.Control{Pong: 1<<64 - 1}, true},
		{`{"cut":"` + name + `","reason":"revoked"}`, wire.Control{Cut: name, Reason: "revoked"}, true},
		{`{"cut":"` + name + `","reason":"engine_exited","detail":"exit code 7"}`, wire.Control{Cut: name, Reason: "engine_exited", Detail: "exit code 7"}, true},
		{`{"cut":"` + name + `","reason":"engine_exited","detail":"\u001b[31m"}`, wire.Control{}, false},
		{`{"cut":"` + name + `","reason":"engine_exited","detail":"` + strings.Repeat("x", wire.MaxControlDetail+1) + `"}`, wire.Control{}, false},
		{`{"ping":1,"detail":"x"}`, wire.Control{}, false},
		{`{"ping":1,"later":true}`, wire.Control{Ping: 1}, true},
		{`{}`, wire.Control{}, false},
		{`{"ping":1,"pong":1}`, wire.Control{}, false},
		{`{"ping":-1}`, wire.Control{}, false},
		{`{"ping":0}`, wire.Control{}, false},
		{`{"cut":"` + name + `"}`, wire.Control{}, false},
		{`{"ping":1,"reason":"revoked"}`, wire.Control{}, false},
		{`{"cut":"x","reason":"revoked"}`, wire.Control{}, false},
		{`{"cut":"` + name + `","reason":"\u001b[31m"}`, wire.Control{}, false},
		{`{"hold":["` + strings.ToUpper(name) + `"]}`, wire.Control{}, false},
		{`{"ping":1}{"ping":2}`, wire.Control{}, false},
		{`["ping"]`, wire.Control{}, false},
		{strings.Repeat(" ", wire.MaxControlLine+1), wire.Control{}, false},
		{``, wire.Control{}, false},
	}
	for _, tt := range tests {
		got, err := wire.ParseControl([]byte(tt.line))
		if (err == nil) != tt.ok {
			t.Errorf("%.80q: error %v", tt.line, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%.80q: %s", tt.line, diff)
		}
	}
}

// A parsed line, written and parsed again, is the same message.
func FuzzParseControl(f *testing.F) {
	for _, s := range []string{`{"ping":1}`, `{"held":[]}`, `{"cut":"` + name + `","reason":"limit"}`, `{"hold":["` + name + `"]}`, `{}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := wire.ParseControl(line)
		if err != nil {
			return
		}
		out, err := m.Line()
		if err != nil || !json.Valid(out) || len(out) > wire.MaxControlLine {
			t.Fatalf("%q does not write: %v", line, err)
		}
		again, err := wire.ParseControl(out)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m, again); diff != "" {
			t.Fatal(diff)
		}
	})
}

// The largest hold fits in a line.
func TestHoldFits(t *testing.T) {
	t.Parallel()
	names := make([]string, wire.MaxHoldNames)
	for i := range names {
		names[i] = name
	}
	line, err := wire.Control{Hold: names}.Line()
	if err != nil || len(line) > wire.MaxControlLine {
		t.Errorf("%d bytes, %v", len(line), err)
	}
}
