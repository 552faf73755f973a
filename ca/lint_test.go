package ca_test

import (
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"

	"crypto/x509"

	"github.com/mayfly-ca/mayfly/ca/catest"
	"github.com/mayfly-ca/mayfly/ca/store"
)

// zlint, with its lints of RFC 5280, finds no error in anything that mayfly signs.
func TestLint(t *testing.T) {
	t.Parallel()
	registry, err := lint.GlobalRegistry().Filter(lint.FilterOptions{IncludeSources: lint.SourceList{lint.RFC5280, lint.RFC5480, lint.RFC5891, lint.RFC6962, lint.RFC8813}})
	if err != nil {
		t.Fatal(err)
	}
	c := catest.New(t, catest.Options{})
	client, server := c.Client(t, "default", "large"), c.Server(t, "default")
	own, err := c.ServerCertificate(t.Context(), []string{"engine." + catest.EngineDNS}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, cert := range map[string]*x509.Certificate{
		"root": c.Root(), "intermediate": c.Intermediates()[0], "client": client.Leaf, "server": server.Leaf, "issuer": own.Leaf,
	} {
		t.Run(name, func(t *testing.T) {
			parsed, err := zx509.ParseCertificate(cert.Raw)
			if err != nil {
				t.Fatal(err)
			}
			report(t, zlint.LintCertificateEx(parsed, registry))
		})
	}
	if _, _, err := c.Revoke(t.Context(), store.Revocation{Serial: serial(client.Leaf), Reason: "test", By: "test"}); err != nil {
		t.Fatal(err)
	}
	crls, err := c.CRLs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range blocks(t, crls.PEM, "X509 CRL") {
		parsed, err := zx509.ParseRevocationList(block)
		if err != nil {
			t.Fatal(err)
		}
		report(t, zlint.LintRevocationListEx(parsed, registry))
	}
}

func report(t *testing.T, results *zlint.ResultSet) {
	t.Helper()
	checked := 0
	for name, r := range results.Results {
		if r.Status >= lint.Error {
			t.Errorf("%s: %v %s", name, r.Status, r.Details)
		}
		if r.Status == lint.Pass {
			checked++
		}
	}
	if checked == 0 {
		t.Error("no lint applied")
	}
}

// blocks returns the DER of every PEM block of a kind.
func blocks(t *testing.T, data []byte, kind string) [][]byte {
	t.Helper()
	var all [][]byte
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			if strings.TrimSpace(string(data)) != "" {
				t.Fatalf("%d bytes are no PEM", len(data))
			}
			return all
		}
		if block.Type == kind {
			all = append(all, block.Bytes)
		}
		data = rest
	}
}

// OpenSSL verifies both chains against the root with the CRLs, each for its own use
// only, and refuses a revoked one.
func TestOpenSSL(t *testing.T) {
	t.Parallel()
	openssl := lookPath(t, "openssl")
	c := catest.New(t, catest.Options{})
	client, server, revoked := c.Client(t, "default"), c.Server(t, "default"), c.Client(t, "default")
	if _, _, err := c.Revoke(t.Context(), store.Revocation{Serial: serial(revoked.Leaf), Reason: "test", By: "test"}); err != nil {
		t.Fatal(err)
	}
	crls, err := c.CRLs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, ders ...[]byte) string {
		var b strings.Builder
		for _, der := range ders {
			b.Write(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	crlFile := write("crls.pem", "X509 CRL", blocks(t, crls.PEM, "X509 CRL")...)
	intermediate := write("intermediate.pem", "CERTIFICATE", c.Intermediates()[0].Raw)
	for _, v := range []struct {
		name, purpose string
		leaf          *x509.Certificate
		extra         []string
		want          string
	}{
		{"client", "sslclient", client.Leaf, nil, "OK"},
		{"server", "sslserver", server.Leaf, []string{"-verify_hostname", catest.EngineDNS}, "OK"},
		{"client as server", "sslserver", client.Leaf, nil, "unsuitable certificate purpose"},
		{"server as client", "sslclient", server.Leaf, nil, "unsuitable certificate purpose"},
		{"server of another name", "sslserver", server.Leaf, []string{"-verify_hostname", "other.fly.dev"}, "hostname mismatch"},
		{"revoked", "sslclient", revoked.Leaf, nil, "certificate revoked"},
	} {
		t.Run(v.name, func(t *testing.T) {
			args := append([]string{"verify", "-x509_strict", "-purpose", v.purpose, "-CAfile", c.Files.Root, "-untrusted", intermediate, "-CRLfile", crlFile, "-crl_check_all"}, v.extra...)
			out, err := exec.CommandContext(t.Context(), openssl, append(args, write(strings.ReplaceAll(v.name, " ", "-")+".pem", "CERTIFICATE", v.leaf.Raw))...).CombinedOutput()
			if !strings.Contains(strings.ToLower(string(out)), strings.ToLower(v.want)) || (err == nil) != (v.want == "OK") {
				t.Errorf("openssl: %v: %s", err, out)
			}
		})
	}
}

// lookPath finds a program. Without it, lookPath skips the test and says what to
// install.
func lookPath(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err == nil {
		return path
	}
	if os.Getenv("MAYFLY_TEST_REQUIRE") == "all" {
		t.Fatal(err)
	}
	t.Skipf("needs %s: apt-get install %s", program, program)
	return ""
}
