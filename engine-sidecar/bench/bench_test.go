package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// TestMain lets the test binary run as the bare server.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == bareCommand {
		os.Exit(bare(os.Args[2:], os.Stderr))
	}
	os.Exit(m.Run())
}

// TestRun runs the whole program with small numbers: the real sidecar with a
// real issuer, and the bare loop.
func TestRun(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{
		"--servers", "mayfly,bare", "--rounds", "2", "--bytes", "8000000", "--pings", "50", "--handshakes", "16",
		"--idle", "20", "--settle", "10ms", "--losses", "4", "--json", "-",
	}, &stdout, &stderr)
	if code != 0 {
		t.Fatalf("exit %d\n%s", code, &stderr)
	}
	var r report
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	for name, samples := range map[string]int{
		"up, 1 stream": 2, "down, 4 streams": 2, "up, 4 streams: CPU": 2, "64 bytes there and back, p50": 2,
		"handshakes, 1 client": 2, "handshakes, 16 clients: CPU": 2, "memory per idle relay of 20, after 64 KiB": 1,
	} {
		for _, server := range []string{mayfly, bareGo} {
			res := r.find(name, server)
			if res == nil || len(res.Samples) != samples || res.Median <= 0 {
				t.Errorf("%s of %s: %+v", name, server, res)
			}
		}
	}
	if res := r.find("handshakes X25519MLKEM768, 16 clients: CPU", mayfly); res == nil {
		t.Error("no row of X25519MLKEM768")
	}
	for _, e := range allEndings {
		if res := r.find(e.name, mayfly); res == nil || res.Median != 0 {
			t.Errorf("%s: %+v", e.name, res)
		}
	}
	// The bare loop does not detect a truncation, so this row shows the
	// difference.
	if res := r.find("FIN without close_notify", bareGo); res == nil || res.Median == 0 {
		t.Errorf("a truncation through the bare loop: %+v", res)
	}
	for _, print := range []func(*report) string{
		func(r *report) string { var b bytes.Buffer; _ = r.text(&b); return b.String() },
		func(r *report) string { var b bytes.Buffer; _ = r.markdown(&b); return b.String() },
	} {
		if text := print(&r); !strings.Contains(text, "up, 4 streams, of bare Go's") || !strings.Contains(text, r.Machine) {
			t.Errorf("table:\n%s", text)
		}
	}
}

func TestMissingPeer(t *testing.T) {
	t.Parallel()
	_, _, err := installed("no-such-proxy", "no-such-package", "-v")
	if err == nil || !strings.Contains(err.Error(), "apt install no-such-package") {
		t.Fatalf("error %v", err)
	}
	if program, version, err := installed("go", "golang", "version"); err != nil || program != "go" || version == "" {
		t.Fatalf("%q %q %v", program, version, err)
	}
}

// TestJudge: a bound is compared with all rounds together, not with each
// round.
func TestJudge(t *testing.T) {
	t.Parallel()
	own, other, peer := &server{name: mayfly}, &server{name: bareGo}, &server{name: nginx}
	speed, cpu := row{"up, 1 stream", "GB/s"}, row{"up, 1 stream: CPU", "s/GB"}
	r := newReport(options{rounds: 3})
	for i, v := range []float64{1.0, 0.5, 0.98} { // the machine was slow in the second round
		r.add(own, speed, v)
		r.add(other, speed, []float64{1.0, 0.5, 1.0}[i])
		r.add(own, cpu, 1.1)
		r.add(peer, cpu, 1.0)
	}
	r.add(own, row{allEndings[0].name, "lost of 80"}, 0)
	r.judge(options{})
	want := []bound{
		{"up, 1 stream, of bare Go's", 1, ">= 0.97", true},
		{"up, 1 stream: CPU, of nginx's", 1.1, "<= 1.00", false},
		{allEndings[0].name + ", lost", 0, "0", true},
	}
	if len(r.Bounds) != len(want) {
		t.Fatalf("bounds %+v", r.Bounds)
	}
	for i, b := range r.Bounds {
		if b.What != want[i].What || b.Holds != want[i].Holds || b.Want != want[i].Want || b.Value < want[i].Value-1e-9 || b.Value > want[i].Value+1e-9 {
			t.Errorf("bound %+v, want %+v", b, want[i])
		}
	}
	if r.hold() {
		t.Error("all bounds hold")
	}
}

func TestWrongCommandLine(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--idle", "many"}, {"--speed", "dance"}, {"--nonsense"}} {
		var stderr bytes.Buffer
		if code := run(t.Context(), args, &stderr, &stderr); code != 2 || stderr.Len() == 0 {
			t.Errorf("%q: exit %d, %q", args, code, &stderr)
		}
	}
}
