package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	for _, name := range os.Environ() {
		if key, _, _ := strings.Cut(name, "="); strings.HasPrefix(key, "MAYFLY_SIDECAR_") {
			t.Setenv(key, "")
		}
	}
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("good.yaml", "issuer: https://issuer.example.com\nengine: default\n")
	bad := file("bad.yaml", "issuer: https://issuer.example.com\nengin: default\n")
	own := file("own.yaml", "issuer: https://issuer.example.com\nengine: default\nengine_env: [DAGGER_CLOUD_TOKEN, DEBUG=1, SITE_*]\n")
	prefix := file("prefix.yaml", "issuer: https://issuer.example.com\nengine: default\nengine_env: [AWS_*]\n")
	plain := file("plain.yaml", "issuer: http://issuer.example.com\nengine: default\ntoken_source: file:/nonexistent/token\n")
	for _, tc := range []struct {
		name string
		args []string
		code int
		out  string
	}{
		{"nothing", nil, 2, "no command is given"},
		{"unknown", []string{"start"}, 2, "unexpected argument start"},
		{"help", []string{"--help"}, 0, "Exit codes"},
		{"help of run", []string{"run", "--help"}, 0, "Usage: mayfly-sidecar run [flags] -- <engine> ..."},
		{"version", []string{"version"}, 0, "mayfly-sidecar"},
		{"check", []string{"check", "--config", good}, 0, "ok"},
		{"check lists what the engine gets", []string{"check", "--config", good}, 0, "gets:             PATH HOME "},
		{"check lists what must be named", []string{"check", "--config", good}, 0, "gets when named:  *TOKEN* "},
		{"check lists what never passes", []string{"check", "--config", good}, 0, "never gets:       MAYFLY_* "},
		{"check lists engine_env without values", []string{"check", "--config", own}, 0, "engine_env names: DAGGER_CLOUD_TOKEN DEBUG SITE_*\n"},
		{"check of a secret by its prefix", []string{"check", "--config", prefix}, 1, "engine_env: what \"AWS_*\" stands for may be a secret"},
		{"check of a bad file", []string{"check", "--config", bad}, 1, "engin"},
		{"check of no file", []string{"check", "--config", dir + "/none"}, 1, "no such file"},
		{"check of nothing", []string{"check"}, 1, "issuer is required"},
		{"unknown flag", []string{"run", "--verbose"}, 2, "verbose"},
		{"engine before --", []string{"run", "--config", good, "buildkitd"}, 2, "after --"},
		{"bad log format", []string{"run", "--log-format", "xml"}, 2, "xml"},
		{"bad log format, as the flag was once spelled", []string{"run", "--log", "xml"}, 2, "xml"},
		{"run of a bad file", []string{"run", "--config", bad, "--", "true"}, 1, "engin"},
		{"http off loopback", []string{"run", "--config", plain, "--", "true"}, 1, "http"},
	} {
		var out bytes.Buffer
		code := Run(t.Context(), tc.args, Stdio{In: strings.NewReader(""), Out: &out, Err: &out})
		if code != tc.code || !strings.Contains(out.String(), tc.out) {
			t.Errorf("%s: %d, want %d and %q:\n%s", tc.name, code, tc.code, tc.out, out.String())
		}
	}
}
