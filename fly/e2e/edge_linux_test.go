package e2e

import (
	"os/exec"
	"strings"
	"testing"
)

// scan connects as an internet scanner does, and returns openssl's output.
func (d *distant) scan(args ...string) string {
	d.t.Helper()
	argv := d.job.command(append([]string{"openssl", "s_client", "-connect", engineAddr + ":443", "-CAfile", d.edgeRoots()}, args...)...)
	out, _ := exec.CommandContext(d.t.Context(), argv[0], argv[1:]...).CombinedOutput() // its exit code is not useful
	return string(out)
}

// TestEdge: mTLS inside the TLS of Fly's edge, from fly.edge.toml, on an address
// that several apps share. A client that does not know the app's name does not wake
// the machine. A build does, and the sidecar sees the build's address.
func TestEdge(t *testing.T) {
	t.Parallel()
	_, err := exec.LookPath("openssl")
	need(t, err == nil, "openssl is not installed: apt-get install openssl")
	d := newDistant(t, distantOptions{edge: true})
	for name, args := range map[string][]string{
		"no name":        {"-noservername"},
		"another's name": {"-servername", "other.fly.dev"},
		"the address":    {"-servername", engineAddr},
	} {
		if out := d.scan(args...); strings.Contains(out, "BEGIN CERTIFICATE") {
			t.Errorf("a scanner by %s was answered:\n%s", name, out)
		}
	}
	plain, err := d.job.dial(t.Context(), "tcp", engineAddr+":443")
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, err := plain.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	_, _ = plain.Read(make([]byte, 64)) // the edge closes the connection, with or without an alert
	if n := d.machine.Starts(); n != 0 {
		t.Fatalf("scanners woke the machine %d times", n)
	}

	build := d.running("6400")
	d.sidecarLog.await(patience, `"relay opened"`, `"run":"6400/`, `"alpn":"mayfly/1"`, `"remote":"`+runnerAddr+`:`)
	if n := d.machine.Starts(); n != 1 {
		t.Errorf("the build woke the machine %d times", n)
	}
	// A client that knows the name gets the edge's certificate. Behind the edge,
	// the sidecar requires TLS and closes the connection.
	out := d.scan("-servername", edgeName, "-verify_return_error", "-alpn", "h2,http/1.1")
	if !strings.Contains(out, "Verify return code: 0 (ok)") || !strings.Contains(out, "No ALPN negotiated") {
		t.Errorf("the edge by its name:\n%s", out)
	}
	build.goesOn()
}
