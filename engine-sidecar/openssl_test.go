package sidecar_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/client/clienttest"
)

// opensslFiles writes the files for `openssl s_client`.
func (w *world) opensslFiles(cert *tls.Certificate) (dir string) {
	w.tb.Helper()
	dir = w.tb.TempDir()
	write := func(name, kind string, ders ...[]byte) {
		var b bytes.Buffer
		for _, der := range ders {
			_ = pem.Encode(&b, &pem.Block{Type: kind, Bytes: der})
		}
		if err := os.WriteFile(filepath.Join(dir, name), b.Bytes(), 0o600); err != nil {
			w.tb.Fatal(err)
		}
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		w.tb.Fatal(err)
	}
	write("chain.pem", "CERTIFICATE", cert.Certificate...)
	write("key.pem", "PRIVATE KEY", key)
	write("root.pem", "CERTIFICATE", w.issuer.ca.Root.Certificate.Raw)
	return dir
}

// sClient runs `openssl s_client` with input and returns its whole output.
func (w *world) sClient(cert *tls.Certificate, input string, args ...string) string {
	w.tb.Helper()
	cmd := w.sClientCommand(cert, append([]string{"-quiet"}, args...)...)
	cmd.Stdin = strings.NewReader(input)
	out, _ := cmd.CombinedOutput() // its exit code is not reliable
	return string(out)
}

// sClientCommand returns `openssl s_client`. Without -quiet, s_client treats a
// line that begins with K as a command.
func (w *world) sClientCommand(cert *tls.Certificate, args ...string) *exec.Cmd {
	w.tb.Helper()
	dir := w.opensslFiles(cert)
	host, port, err := net.SplitHostPort(w.addr)
	if err != nil {
		w.tb.Fatal(err)
	}
	cmd := exec.CommandContext(w.tb.Context(), "openssl", append([]string{
		"s_client", "-connect", host + ":" + port, "-servername", serverName, "-verify_hostname", serverName,
		"-CAfile", "root.pem", "-cert", "chain.pem", "-cert_chain", "chain.pem", "-key", "key.pem",
		"-verify_return_error",
	}, args...)...)
	cmd.Dir = dir
	return cmd
}

func needOpenSSL(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		if os.Getenv("MAYFLY_TEST_REQUIRE") == "all" {
			t.Fatal("openssl is not installed")
		}
		t.Skip("openssl is not installed: apt-get install openssl")
	}
}

// answerOnce is an engine that answers once and closes, so that s_client ends.
func (w *world) answerOnce() {
	go func() {
		for {
			c, err := w.engine.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 100)
				n, _ := c.Read(buf)
				_, _ = c.Write([]byte("engine heard " + string(buf[:n])))
			}()
		}
	}()
}

func TestOpenSSLClient(t *testing.T) {
	t.Parallel()
	needOpenSSL(t)
	w := setUp(t)
	w.answerOnce()
	w.run()
	good := w.clientCert(nil)
	if out := w.sClient(good, "hello\n"); !strings.Contains(out, "engine heard hello") {
		t.Fatalf("no answer:\n%s\n%s", out, w.log)
	}
	if out := w.sClient(good, "hello\n", "-alpn", "mayfly/1"); !strings.Contains(out, "OK\nengine heard hello") {
		t.Fatalf("no verdict:\n%s", out)
	}
	wrong := w.clientCert(func(l *clienttest.Leaf) { l.Engines = []string{"other"} })
	if out := w.sClient(wrong, "hello\n"); !strings.Contains(out, "alert bad certificate") || strings.Contains(out, "engine heard") {
		t.Fatalf("wrong engine:\n%s", out)
	}
	if out := w.sClient(wrong, "hello\n", "-alpn", "mayfly/1"); !strings.Contains(out, "ERR wrong_engine") {
		t.Fatalf("wrong engine, told:\n%s", out)
	}
	if out := w.sClient(good, "hello\n", "-tls1_2"); !strings.Contains(out, "alert protocol version") {
		t.Fatalf("TLS 1.2:\n%s", out)
	}
	server := w.clientCert(func(l *clienttest.Leaf) {
		l.Usage, l.ID, l.DNS = x509.ExtKeyUsageServerAuth, "/engine/default/fly/22/m2", []string{serverName}
	})
	if out := w.sClient(server, "hello\n"); !strings.Contains(out, "alert bad certificate") {
		t.Fatalf("server certificate:\n%s", out)
	}
}
