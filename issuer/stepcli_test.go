package issuer_test

import (
	"bytes"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// stepCLI returns the path of smallstep's own client, pinned in a separate module and
// built on first use.
func stepCLI(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("go", "-C", "issuertest/step", "tool", "-n", "step")
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err == nil {
		return strings.TrimSpace(string(out))
	}
	if os.Getenv("MAYFLY_TEST_REQUIRE") == "all" {
		t.Fatalf("build step: %v\n%s", err, said.String())
	}
	t.Skipf("step cannot be built here, let go reach a module proxy: %v", err)
	return ""
}

// TestStepCLI runs the real step: it bootstraps with the root's fingerprint, checks
// the CA's health, reads its roots and verifies its CRL. It cannot get a certificate.
func TestStepCLI(t *testing.T) {
	t.Parallel()
	bin := stepCLI(t)
	i := issuertest.Start(t, issuertest.Options{})
	out, err := i.Issue(i.GitHubToken(nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.Revoke(wire.RevokeRequest{Serial: out.Serial}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	_, chain := pem.Decode([]byte(out.Certificate))
	intermediate := write("intermediate.crt", chain)
	step := func(args ...string) (string, error) {
		cmd := exec.Command(bin, args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "STEPPATH="+filepath.Join(dir, "step"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	fingerprint := strings.TrimPrefix(i.TrustAnchor, "sha256:")
	if out, err := step("ca", "bootstrap", "--ca-url", i.URL, "--fingerprint", strings.Repeat("0", 64)); err == nil {
		t.Errorf("bootstrapped by another root's fingerprint: %s", out)
	}
	root := "step/certs/root_ca.crt"
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"ca", "bootstrap", "--ca-url", i.URL, "--fingerprint", fingerprint}, "root certificate has been saved"},
		{[]string{"ca", "health"}, "ok"},
		{[]string{"ca", "roots"}, "BEGIN CERTIFICATE"},
		{[]string{"ca", "root", "root.crt"}, "saved"},
		{[]string{"ca", "provisioner", "list"}, "[]"},
		{[]string{"crl", "inspect", i.URL + wire.PathCRL, "--roots", root, "--ca", intermediate}, out.Serial},
		{[]string{"crl", "inspect", i.URL + "/1.0/crl", "--roots", root, "--ca", intermediate}, "Valid: true"},
		{[]string{"certificate", "verify", write("leaf.crt", []byte(out.Certificate)), "--roots", "root.crt"}, ""},
	} {
		got, err := step(tc.args...)
		if err != nil || !strings.Contains(strings.ToLower(strings.ReplaceAll(got, ":", "")), strings.ToLower(strings.ReplaceAll(tc.want, ":", ""))) {
			t.Errorf("step %s: %v\n%s", strings.Join(tc.args, " "), err, got)
		}
	}
	// step cannot get a certificate.
	token := i.GitHubToken(map[string]any{"run_id": "another"})
	if got, err := step("ca", "certificate", "engine.example.com", "a.crt", "a.key", "--token", token, "--ca-url", i.URL, "--root", root); err == nil {
		t.Errorf("step ca certificate: %s", got)
	}
	if _, err := i.Issue(token); err != nil {
		t.Errorf("step's try has used the token up: %v", err)
	}
}
