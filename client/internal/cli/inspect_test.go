package cli

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/mtls"
)

// inspectPEM runs mayfly inspect with in on stdin.
func inspectPEM(t *testing.T, in []byte, args ...string) (string, int) {
	t.Helper()
	var out, errs bytes.Buffer
	code := Run(context.Background(), append([]string{"inspect", "-"}, args...), Stdio{In: bytes.NewReader(in), Out: &out, Err: &errs})
	return out.String() + errs.String(), code
}

func certificatePEM(ders ...[]byte) []byte {
	var b bytes.Buffer
	for _, der := range ders {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	return b.Bytes()
}

func TestInspect(t *testing.T) {
	t.Parallel()
	ca := clienttest.New(t, "ci.example.com")
	leaf := ca.Issue(t, clienttest.Leaf{Rule: "app-main", Run: "1/2/3", Engines: []string{"default", "arm64"}})
	server := ca.Issue(t, clienttest.Leaf{ID: "/engine/default/fly/1/2", DNS: []string{"engine.example.com"}, Usage: x509.ExtKeyUsageServerAuth})
	revoked := big.NewInt(0).SetBytes(bytes.Repeat([]byte{0xab}, 16))
	feed := ca.Feed(t, clienttest.Feed{Number: 42, Revoked: []*big.Int{revoked}, Floor: time.Now().Add(-time.Hour).Truncate(time.Second)})
	for _, tt := range []struct {
		name string
		in   []byte
		want []string
	}{
		{"client chain", certificatePEM(leaf.Certificate...), []string{"Client certificate", "spiffe://ci.example.com/github/1/2", "default, arm64", "app-main", "1/2/3", mtls.Serial(leaf.Leaf.SerialNumber), "Intermediate CA", "sha256:"}},
		{"server", certificatePEM(server.Certificate[0]), []string{"Server certificate", "engine.example.com", "/engine/default/fly/1/2"}},
		{"der", server.Certificate[0], []string{"Server certificate"}},
		{"root", certificatePEM(ca.Root.Certificate.Raw), []string{"Root CA", "--trust-anchor"}},
		{"feed", feed, []string{"Revocation list", "42", "abababababababababababababababab", "Floor"}},
	} {
		out, code := inspectPEM(t, tt.in)
		if code != 0 {
			t.Errorf("%s: code %d", tt.name, code)
		}
		for _, want := range tt.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s lacks %q:\n%s", tt.name, want, out)
			}
		}
	}
	out, _ := inspectPEM(t, certificatePEM(leaf.Certificate...), "--json")
	var d inspectedDocument
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&d); err != nil || d.Kind != "client" || d.Rule != "app-main" || d.Problem != "" {
		t.Errorf("%v: %s", err, out)
	}
}

// TestInspectForeign checks foreign input: inspect describes it as far as possible,
// never shows a key, and escapes names.
func TestInspectForeign(t *testing.T) {
	t.Parallel()
	ca := clienttest.New(t, "ci.example.com")
	odd := ca.Issue(t, clienttest.Leaf{Template: func(c *x509.Certificate) {
		c.URIs, c.ExtraExtensions = nil, nil
		c.Subject.CommonName = "x\x1b[2J\u202e"
	}})
	out, code := inspectPEM(t, certificatePEM(odd.Certificate[0]))
	if code != 0 || !strings.Contains(out, "does not have the form of mayfly's") || strings.Contains(out, "\x1b") {
		t.Errorf("code %d:\n%q", code, out)
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("c2VjcmV0")})
	for _, in := range [][]byte{nil, key, []byte("<html>"), certificatePEM([]byte("no DER"))} {
		if out, code := inspectPEM(t, in); code != 1 || !strings.Contains(out, "hint: ") || strings.Contains(out, "c2VjcmV0") {
			t.Errorf("%q: code %d\n%s", in, code, out)
		}
	}
	missing := filepath.Join(t.TempDir(), "none.pem")
	var errs bytes.Buffer
	if code := Run(t.Context(), []string{"inspect", missing}, Stdio{Err: &errs}); code != 1 || !strings.Contains(errs.String(), "none.pem") {
		t.Errorf("code %d: %s", code, &errs)
	}
	if err := os.WriteFile(missing, certificatePEM(odd.Certificate[0]), 0o600); err != nil {
		t.Fatal(err)
	}
	if code := Run(t.Context(), []string{"inspect", missing}, Stdio{}); code != 0 {
		t.Errorf("code %d", code)
	}
}

func TestWorkflowInWords(t *testing.T) {
	t.Parallel()
	list := workflowFacts(identity.Workflow{SourceRepositoryURI: "https://github.com/acme/app", SourceRepositoryID: "7", BuildTrigger: "push"})
	if len(list) != 2 || list[0].Text != "https://github.com/acme/app (id 7)" || list[1].Name != "Event" {
		t.Errorf("%+v", list)
	}
}

// FuzzInspect checks that any file is described or refused.
func FuzzInspect(f *testing.F) {
	ca := clienttest.New(f, "ci.example.com")
	f.Add(certificatePEM(ca.Issue(f, clienttest.Leaf{}).Certificate...))
	f.Add(ca.Feed(f, clienttest.Feed{Number: 1}))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		list, err := parseInspected(raw)
		if err != nil {
			return
		}
		term, out := testTerminal(80, false)
		p := &program{terminal: term}
		for _, it := range list {
			p.inspected(it)
			if _, err := json.Marshal(it.document()); err != nil {
				t.Fatal(err)
			}
		}
		if bytes.ContainsRune(out.Bytes(), '\x1b') {
			t.Fatalf("%q", out)
		}
	})
}
