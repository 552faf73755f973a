package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// TestRun runs the whole program: it builds the issuer, loads it, stops it, and starts
// it with what it has stored. The figures are not checked.
func TestRun(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the bench reads /proc: it needs Linux")
	}
	t.Setenv("TMPDIR", t.TempDir())
	var out, progress bytes.Buffer
	code := run(t.Context(), []string{"-servers", "mayfly-sqlite", "-clients", "1,64", "-rounds", "1", "-duration", "100ms", "-cold", "1", "-json"}, &out, &progress)
	if code != 0 {
		t.Fatalf("exit %d\n%s", code, progress.String())
	}
	var r report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Servers) != 1 || len(r.Servers[0].Loads) != 2 || r.FloorMicros <= 0 {
		t.Fatalf("%+v", r)
	}
	s := r.Servers[0]
	if s.StoredBytes <= 0 || s.ColdMillis <= 0 || s.Issued < 1+64+1 {
		t.Errorf("%+v", s)
	}
	for _, l := range s.Loads {
		if l.PerSecond <= 0 || l.P50Millis <= 0 || l.P99Millis < l.P50Millis || l.RSSBytes <= 0 {
			t.Errorf("%+v", l)
		}
	}
	if len(r.Bounds) != 2 { // CPU, cold start
		t.Errorf("bounds %+v", r.Bounds)
	}
	left, err := os.ReadDir(os.TempDir())
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	o, err := parse([]string{"-servers", "fulcio,mayfly-sqlite", "-clients", "8", "-markdown"}, io.Discard)
	if err != nil || !slices.Equal(o.servers, []string{"fulcio", "mayfly-sqlite"}) || !slices.Equal(o.clients, []int{8}) || o.format != "markdown" {
		t.Errorf("%+v, %v", o, err)
	}
	for _, args := range []string{
		"-servers nobody", "-servers fulcio,fulcio", "-servers=", "-clients 0", "-clients 8,8", "-clients x", "-rounds 0",
		"-duration 1h", "-duration 0s", "-cold -1", "-json -markdown", "more", "-unknown",
	} {
		if _, err := parse(strings.Fields(args), io.Discard); err == nil {
			t.Errorf("%s: accepted", args)
		}
	}
	if code := run(t.Context(), []string{"more"}, io.Discard, io.Discard); code != 2 {
		t.Errorf("exit %d", code)
	}
}

// TestJudge checks that bounds compare in the right direction, and that bounds without
// a measured value are left out.
func TestJudge(t *testing.T) {
	t.Parallel()
	of := func(name string, rate, p99, cpu float64) line {
		return line{Name: name, Loads: []load{{Clients: 8, PerSecond: 1}, {Clients: 64, PerSecond: rate, P99Millis: p99, CPUMicros: cpu}}}
	}
	r := report{FloorMicros: 100, Servers: []line{
		of("mayfly-sqlite", 3000, 40, 250), of("step-ca-badger", 1500, 60, 900), of("fulcio", 3500, 50, 300),
	}}
	r.Servers[0].ColdMillis = 101
	r.judge()
	holds := map[string]bool{}
	for _, b := range r.Bounds {
		holds[b.What] = b.Holds
	}
	want := map[string]bool{
		"mayfly-sqlite / step-ca-badger, certificates per second, 64 clients": true,
		"mayfly-sqlite / step-ca-badger, p99, 64 clients":                     false,
		"mayfly-sqlite / fulcio, certificates per second, 64 clients":         false,
		"mayfly-sqlite / crypto floor, CPU per certificate, 64 clients":       true,
		"mayfly-sqlite, cold start to first certificate, median":              false,
	}
	for what, h := range want {
		if got, ok := holds[what]; !ok || got != h {
			t.Errorf("%s: holds %v, judged %v", what, got, ok)
		}
	}
	if len(holds) != len(want) {
		t.Errorf("judged %v", holds)
	}
	for _, format := range []string{"", "markdown", "json"} {
		var out strings.Builder
		if err := r.write(&out, format); err != nil || !strings.Contains(out.String(), "fulcio") {
			t.Errorf("%q: %v\n%s", format, err, out.String())
		}
	}
}

func TestRequest(t *testing.T) {
	t.Parallel()
	body := func(b []byte, c *client, token string) []byte { return append(append(b, c.csr...), token...) }
	c := &client{csr: "CSR"}
	for _, tc := range []struct {
		r    request
		want string
	}{
		{request{path: "/a", body: body}, "POST /a HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nCSRt"},
		{request{path: "/b", bearer: true, body: body}, "POST /b HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 4\r\nAuthorization: Bearer t\r\n\r\nCSRt"},
	} {
		if got, _ := tc.r.append(nil, nil, c, "h", "t"); string(got) != tc.want {
			t.Errorf("%q", got)
		}
	}
}

// BenchmarkFloor measures the cryptography that every issuance needs, on one
// processor.
func BenchmarkFloor(b *testing.B) {
	f, err := newFloor()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := f.once(); err != nil {
			b.Fatal(err)
		}
	}
}
