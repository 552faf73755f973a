package sidecar_test

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestEngineEnvironment starts an engine that prints its environment. It has
// the variables of its image, and secret ones only if they are named.
func TestEngineEnvironment(t *testing.T) {
	for name, value := range map[string]string{
		"DAGGER_GO_SDK_MANIFEST_DIGEST": "sha256:1", "_EXPERIMENTAL_DAGGER_METRICS_ADDR": "0.0.0.0:9090", "BUILDKIT_SETUP_CGROUPV2_ROOT": "1",
		"HTTPS_PROXY": "http://user:password@proxy:3128", "NO_PROXY": "localhost,10.0.0.0/8", "OTEL_SERVICE_NAME": "engine", "SSL_CERT_FILE": "/ca.pem", "TZ": "UTC",
		"DAGGER_CLOUD_TOKEN": "hush", "GOOGLE_APPLICATION_CREDENTIALS": "/gcp.json", "OTEL_EXPORTER_OTLP_HEADERS": "authorization=hush",
		"FLY_API_TOKEN": "hush", "MAYFLY_ADMIN_TOKEN": "hush", "SOMETHING_ELSE": "hush",
	} {
		t.Setenv(name, value)
	}
	w := setUp(t)
	token, err := os.ReadFile(strings.TrimPrefix(w.cfg.TokenSource, "file:"))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("CI_IDENTITY", string(token))
	t.Setenv("CI_NAME", "ours")
	w.cfg.TokenSource = "env:CI_IDENTITY"
	w.cfg.UnsafeNoIsolation = true
	w.cfg.EngineEnv = []string{"GOOGLE_APPLICATION_CREDENTIALS", "OWN=a,b", "ABSENT", "CI_*"}
	w.cfg.Program.Command = []string{"/usr/bin/env"}
	var out bytes.Buffer
	w.cfg.Program.EngineOut = &out
	w.launch(nil)
	w.wantEnd(0, "while starting") // env ends without listening on the socket
	var got []string
	for line := range strings.Lines(out.String()) {
		name, _, _ := strings.Cut(line, "=")
		switch name {
		case "PATH", "HOME", "NOTIFY_SOCKET", "USER", "LOGNAME", "HOSTNAME", "LANG", "TMPDIR": // this machine's
		default:
			got = append(got, strings.TrimSuffix(line, "\n"))
		}
	}
	slices.Sort(got)
	want := []string{
		"BUILDKIT_SETUP_CGROUPV2_ROOT=1", "CI_NAME=ours", "DAGGER_GO_SDK_MANIFEST_DIGEST=sha256:1", "GOOGLE_APPLICATION_CREDENTIALS=/gcp.json",
		"HTTPS_PROXY=http://user:password@proxy:3128", "NO_PROXY=localhost,10.0.0.0/8", "OTEL_SERVICE_NAME=engine", "OWN=a,b",
		"SSL_CERT_FILE=/ca.pem", "TZ=UTC", "_EXPERIMENTAL_DAGGER_METRICS_ADDR=0.0.0.0:9090",
	}
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("the engine has no %s", line)
		}
	}
	if strings.Contains(out.String(), "hush") || strings.Contains(out.String(), string(token)) || strings.Contains(out.String(), "ABSENT") {
		t.Errorf("the engine has %s", cmp.Diff(want, got))
	}
	for _, name := range []string{"DAGGER_CLOUD_TOKEN", "OTEL_EXPORTER_OTLP_HEADERS", "FLY_API_TOKEN", "MAYFLY_ADMIN_TOKEN", "SOMETHING_ELSE", "CI_IDENTITY"} {
		if !w.log.has("variables that the engine does not get", name) {
			t.Errorf("the log does not name %s", name)
		}
	}
	if w.log.has("hush") || w.log.has("password@") {
		t.Errorf("the log has a value:\n%s", w.log)
	}
}
