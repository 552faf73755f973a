package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// crashes is how often the issuer is killed under load.
const crashes = 8

// A kill -9 of the issuer under load, again and again: whatever certificate a
// client holds is recorded, and listed when the issuer is back.
func TestNoUnrecordedCertificateAfterAKill(t *testing.T) {
	needRoot(t)
	s := startStack(t, "--engine-cmd", "/bin/false", "--engine-socket", "/nowhere.sock")
	client := s.httpClient(t)
	var held []string
	for range crashes {
		before := len(held)
		held = append(held, s.killUnderLoad(t, client)...)
		if len(held) == before {
			t.Error("no certificate was issued before the kill: the load shows nothing")
		}
	}
	for _, serial := range held {
		var got wire.CertificateDetail
		if status := s.get(t, client, wire.PathCertificates+"/"+serial, &got); status != http.StatusOK || got.Serial != serial {
			t.Errorf("certificate %s is held by a client and not recorded: %d", serial, status)
		}
	}
	t.Logf("%d certificates held over %d kills, all of them recorded", len(held), crashes)
}

// killUnderLoad mints until the issuer is killed, waits for its successor, and
// returns the serials that clients got.
func (s *stack) killUnderLoad(t *testing.T, client *http.Client) []string {
	t.Helper()
	var mu sync.Mutex
	var held []string
	var load sync.WaitGroup
	enough := make(chan struct{})
	for range 8 {
		load.Go(func() {
			for {
				serial, err := s.mint(client)
				if err != nil {
					return // killed
				}
				mu.Lock()
				if held = append(held, serial); len(held) == 40 {
					close(enough)
				}
				mu.Unlock()
			}
		})
	}
	pid, err := strconv.Atoi(s.env["ISSUER_PID"])
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-enough:
	case <-time.After(time.Minute):
		t.Fatal("the issuer is too slow for a load")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	load.Wait()
	s.waitOtherIssuer(t, strconv.Itoa(pid))
	return held
}

// waitOtherIssuer waits until DIR/env names the issuer that followed pid.
func (s *stack) waitOtherIssuer(t *testing.T, pid string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if s.load() && s.env["ISSUER_PID"] != pid {
			return
		}
		select {
		case <-t.Context().Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	t.Fatal("the issuer was not started again")
}

// mint is one job: a token, a key, a certificate.
func (s *stack) mint(client *http.Client) (string, error) {
	token, err := http.Post(s.env["GITHUB_OIDC"]+"/mint", "application/json", strings.NewReader(`{"aud":"`+s.env["MAYFLY_AUDIENCE"]+`"}`))
	if err != nil {
		return "", err
	}
	raw, err := io.ReadAll(token.Body)
	if err := errors.Join(err, token.Body.Close()); err != nil {
		return "", err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(wire.IssueRequest{CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))})
	if err != nil {
		return "", err
	}
	req, err := http.NewRequest(http.MethodPost, s.env["MAYFLY_ISSUER"]+wire.PathCertificates, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(raw)))
	req.Header.Set("Content-Type", "application/json")
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	var issued wire.IssueResponse
	if err := json.NewDecoder(res.Body).Decode(&issued); err != nil {
		return "", err
	}
	if res.StatusCode != http.StatusCreated {
		return "", fmt.Errorf("status %d", res.StatusCode)
	}
	return issued.Serial, nil
}

// get asks as the admin, and decodes a 200.
func (s *stack) get(t *testing.T, client *http.Client, path string, into any) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.env["MAYFLY_ISSUER"]+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.env["MAYFLY_ADMIN_TOKEN"])
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusOK {
		if err := json.NewDecoder(res.Body).Decode(into); err != nil {
			t.Fatal(err)
		}
	}
	return res.StatusCode
}

// httpClient trusts the stack's root alone.
func (s *stack) httpClient(t *testing.T) *http.Client {
	t.Helper()
	data, err := os.ReadFile(s.env["MAYFLY_CA_FILE"])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		t.Fatal("no certificate in MAYFLY_CA_FILE")
	}
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, MaxIdleConnsPerHost: 16,
	}}
}
