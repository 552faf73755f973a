package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// target is the issuer under the integration tests: the one of the pipeline's test
// step, or one that the test itself runs.
type target struct {
	url    string
	root   *x509.Certificate
	client *http.Client
}

func integrationTarget(t *testing.T) *target {
	t.Helper()
	url := os.Getenv("MAYFLY_INTEGRATION_ISSUER")
	if url == "" {
		i := issuertest.Start(t, issuertest.Options{})
		return &target{url: i.URL, root: i.Root, client: i.Client()}
	}
	data, err := os.ReadFile(os.Getenv("MAYFLY_INTEGRATION_ROOT"))
	if err != nil {
		t.Fatalf("MAYFLY_INTEGRATION_ROOT: %v", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatal("MAYFLY_INTEGRATION_ROOT: no PEM")
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatalf("MAYFLY_INTEGRATION_ROOT: %v", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}
	t.Cleanup(transport.CloseIdleConnections)
	return &target{url: url, root: root, client: &http.Client{Transport: transport, Timeout: time.Minute}}
}

// do sends a request and returns status and body. A request with a body also has an
// invalid token.
func (g *target) do(t *testing.T, method, path string, body []byte) (int, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, g.url+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer garbage")
	}
	resp, err := g.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, answer
}

func TestIntegrationReady(t *testing.T) {
	g := integrationTarget(t)
	if status, body := g.do(t, http.MethodGet, wire.PathReady, nil); status != http.StatusOK {
		t.Errorf("/readyz: %d %s", status, body)
	}
}

func TestIntegrationInfo(t *testing.T) {
	g := integrationTarget(t)
	status, body := g.do(t, http.MethodGet, wire.PathInfo, nil)
	var info wire.Info
	if err := json.Unmarshal(body, &info); err != nil || status != http.StatusOK {
		t.Fatalf("/v1/info: %d %s (%v)", status, body, err)
	}
	if !strings.HasPrefix(info.TrustDomain, "ci.") {
		t.Errorf("trust domain %q: %s", info.TrustDomain, body)
	}
}

func TestIntegrationGarbageToken(t *testing.T) {
	g := integrationTarget(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})
	ask, err := json.Marshal(wire.IssueRequest{CSR: string(text)})
	if err != nil {
		t.Fatal(err)
	}
	status, body := g.do(t, http.MethodPost, wire.PathCertificates, ask)
	if status != http.StatusUnauthorized {
		t.Errorf("a garbage token: %d %s", status, body)
	}
}

func TestIntegrationFeed(t *testing.T) {
	g := integrationTarget(t)
	status, body := g.do(t, http.MethodGet, wire.PathCRLWait, nil)
	if status != http.StatusOK {
		t.Fatalf("/v1/crl/wait: %d %s", status, body)
	}
	if _, err := mtls.ParseFeed(body, []*x509.Certificate{g.root}); err != nil {
		t.Error(err)
	}
}
