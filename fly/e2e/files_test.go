package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Other tools use the files of mayfly cert, with exactly the command lines that it
// prints. Without the files, the engine admits no client.
func testFiles(t *testing.T, s *stack) {
	openssl, err := exec.LookPath("openssl")
	need(t, err == nil, "it asks as OpenSSL does: apt-get install openssl")
	dir := filepath.Join(t.TempDir(), "certificate")
	in := func(name string, args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Env = []string{"HOME=" + t.TempDir(), "PATH=" + filepath.Dir(engineTool(t, "buildctl")) + string(filepath.ListSeparator) + os.Getenv("PATH")}
		for k, v := range s.env {
			if k != "PATH" && k != "HOME" {
				cmd.Env = append(cmd.Env, k+"="+v)
			}
		}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	printed, err := in(filepath.Join(s.env["MAYFLY_BIN"], "mayfly"), "cert", "--out", dir)
	if err != nil {
		t.Fatalf("mayfly cert: %v\n%s", err, printed)
	}
	var line string
	for l := range strings.Lines(printed) {
		if strings.HasPrefix(l, "buildctl ") {
			line = strings.TrimSpace(l)
		}
	}
	if out, err := in("sh", "-c", line+" debug workers"); err != nil || !strings.Contains(out, "linux/") {
		t.Errorf("%s: %v\n%s", line, err, out)
	}
	testBuildx(t, in, printed)
	if out, err := in("sh", "-c", "buildctl --timeout 5 --addr tcp://"+s.env["ENGINE_ADDR"]+" --tlsservername "+s.env["ENGINE_SERVER_NAME"]+" --tlscacert "+filepath.Join(dir, "ca.pem")+" debug workers"); err == nil {
		t.Errorf("buildctl without a certificate was let in:\n%s", out)
	}
	ask := []string{"s_client", "-connect", s.env["ENGINE_ADDR"], "-servername", s.env["ENGINE_SERVER_NAME"],
		"-verify_hostname", s.env["ENGINE_SERVER_NAME"], "-verify_return_error", "-CAfile", filepath.Join(dir, "ca.pem"), "-alpn", "h2", "-ign_eof"}
	files := []string{"-cert", filepath.Join(dir, "cert.pem"), "-cert_chain", filepath.Join(dir, "cert.pem"), "-key", filepath.Join(dir, "key.pem")}
	for _, tt := range []struct {
		name string
		args []string
		want []string
	}{
		{"with the files", files, []string{"Verification: OK", "Verified peername: " + s.env["ENGINE_SERVER_NAME"], "TLSv1.3", "ALPN protocol: h2"}},
		{"without", nil, []string{"alert certificate required"}},
		{"TLS 1.2", append(files, "-tls1_2"), []string{"alert protocol version"}},
	} {
		// The engine waits for HTTP/2, so timeout ends the command.
		out, _ := in("timeout", append([]string{"5", openssl}, append(ask, tt.args...)...)...)
		for _, want := range tt.want {
			if !strings.Contains(out, want) {
				t.Errorf("openssl %s: no %q in\n%s", tt.name, want, out)
			}
		}
	}
}

// testBuildx builds with Docker's own client, with the printed line.
func testBuildx(t *testing.T, in func(name string, args ...string) (string, error), printed string) {
	t.Helper()
	var line string
	for l := range strings.Lines(printed) {
		if strings.HasPrefix(l, "docker buildx ") {
			line = strings.TrimSpace(l)
		}
	}
	dir := t.TempDir()
	for name, text := range map[string]string{"Dockerfile": "FROM scratch\nCOPY greeting /greeting\n", "greeting": "by buildx"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// buildx works alone as it does under docker; it keeps its builders in dir.
	script := `docker() { shift; ` + tool(t, "buildx", "buildx") + ` "$@"; }
export BUILDX_CONFIG="$0/config"
` + line + `
docker buildx build --builder mayfly-default --output "type=local,dest=$0/out" "$0"`
	out, err := in("sh", "-euc", script, dir)
	if got, _ := os.ReadFile(filepath.Join(dir, "out", "greeting")); err != nil || string(got) != "by buildx" {
		t.Errorf("%s: %v, built %q\n%s", line, err, got, out)
	}
}
