package issuer_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// problem returns err as a problem, and fails the test for any other error.
func problem(t *testing.T, err error) *wire.Problem {
	t.Helper()
	var p *wire.Problem
	if !errors.As(err, &p) {
		t.Fatalf("error %v, want a problem", err)
	}
	return p
}

func wantProblem(t *testing.T, err error, name string) *wire.Problem {
	t.Helper()
	p := problem(t, err)
	if p.Name() != name || p.Status != wire.ProblemStatus(name) {
		t.Fatalf("problem %s (%d, %s), want %s", p.Name(), p.Status, p.Detail, name)
	}
	if p.Instance == "" || p.Title == "" {
		t.Errorf("problem without instance or title: %+v", p)
	}
	return p
}

func leafOf(t *testing.T, chain string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(chain))
	if block == nil {
		t.Fatalf("no PEM in %q", chain)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// events returns the events of one type, newest first.
func events(t *testing.T, i *issuertest.Issuer, kind string) []wire.Event {
	t.Helper()
	var list wire.List[wire.Event]
	if err := i.Call("GET", wire.PathEvents+"?type="+kind, i.ViewerToken(), nil, &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func TestIssue(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	out, err := i.Issue(i.GitHubToken(nil))
	if err != nil {
		t.Fatal(err)
	}
	leaf := leafOf(t, out.Certificate)
	_, rest := pem.Decode([]byte(out.Certificate))
	intermediates, roots := x509.NewCertPool(), x509.NewCertPool()
	intermediates.AppendCertsFromPEM(rest)
	roots.AppendCertsFromPEM([]byte(out.TrustBundle))
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	want := []wire.Engine{{Name: issuertest.Engine, Endpoint: "tcp://127.0.0.1:8080", ServerName: issuertest.ServerName}}
	if len(out.Engines) != 1 || out.Engines[0] != want[0] || out.Rule != "app-main" {
		t.Errorf("rule %q, engines %v", out.Rule, out.Engines)
	}
	if !out.NotAfter.Equal(leaf.NotAfter) || !out.NotBefore.Equal(leaf.NotBefore) || out.RenewAfter.Sub(out.NotBefore) != out.NotAfter.Sub(out.NotBefore)/2 {
		t.Errorf("times %v %v %v", out.NotBefore, out.RenewAfter, out.NotAfter)
	}
	if out.Identity != leaf.URIs[0].String() {
		t.Errorf("identity %s, certificate %s", out.Identity, leaf.URIs[0])
	}
	if n := strings.Count(out.CRL, "BEGIN X509 CRL"); n != 2 {
		t.Errorf("%d CRLs in the answer, want the intermediate's and the root's", n)
	}
	if crl := leaf.CRLDistributionPoints; len(crl) != 1 || !strings.HasPrefix(crl[0], i.URL+wire.PathCRL+"/") {
		t.Errorf("distribution points %v", crl)
	}
}

// TestIssueRefusals covers each refusal of POST /v1/certificates. TestIssue is the
// allowed twin of all.
func TestIssueRefusals(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	_, csr := issuertest.Key(t)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, weak)
	if err != nil {
		t.Fatal(err)
	}
	weakCSR := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	block, _ := pem.Decode([]byte(csr))
	forged := bytes.Clone(block.Bytes)
	forged[len(forged)-1] ^= 1
	forgedCSR := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: forged}))
	good := i.GitHubToken(nil)
	parts := strings.Split(good, ".")
	header := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`))

	for _, tc := range []struct{ name, token, csr, want string }{
		{"no token", "", csr, wire.ProblemBadToken},
		{"garbage", "garbage", csr, wire.ProblemBadToken},
		{"garbage, and no csr", "garbage", "", wire.ProblemBadToken},
		{"another repository, and no csr", i.GitHubToken(map[string]any{"repository_id": "1"}), "", wire.ProblemDenied},
		{"alg none", header + "." + parts[1] + ".", csr, wire.ProblemBadToken},
		{"huge token", strings.Repeat("a", wire.MaxTokenBytes+1), csr, wire.ProblemBadToken},
		{"altered signature", alter(good), csr, wire.ProblemBadToken},
		{"wrong audience", i.GitHubToken(map[string]any{"aud": "mayfly:other.example.com"}), csr, wire.ProblemBadToken},
		{"audience of sessions", i.SessionsToken(nil), csr, wire.ProblemBadToken},
		{"expired", i.GitHubToken(map[string]any{"iat": time.Now().Add(-time.Hour).Unix()}), csr, wire.ProblemBadToken},
		{"no jti", i.GitHubToken(map[string]any{"jti": nil}), csr, wire.ProblemBadToken},
		{"another repository", i.GitHubToken(map[string]any{"repository_id": "1"}), csr, wire.ProblemDenied},
		{"pull request", i.GitHubToken(map[string]any{"event_name": "pull_request_target"}), csr, wire.ProblemDenied},
		{"another Fly app", i.FlyToken(map[string]any{"app_id": "1"}), csr, wire.ProblemDenied},
		{"a person without a rule for certificates", i.AdminToken(), csr, wire.ProblemDenied},
		{"no csr", good, "", wire.ProblemBadCSR},
		{"csr is no PEM", good, "MIIB", wire.ProblemBadCSR},
		{"two PEM blocks", good, csr + csr, wire.ProblemBadCSR},
		{"text before the PEM", good, "Subject: evil\n" + csr, wire.ProblemBadCSR},
		{"text after the PEM", good, csr + "x", wire.ProblemBadCSR},
		{"headers in the PEM", good, strings.Replace(csr, "REQUEST-----\n", "REQUEST-----\nProc-Type: 4,ENCRYPTED\n\n", 1), wire.ProblemBadCSR},
		{"bytes after the request", good, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: append(bytes.Clone(block.Bytes), 0)})), wire.ProblemBadCSR},
		{"a certificate as csr", good, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Root.Raw})), wire.ProblemBadCSR},
		{"weak key", good, weakCSR, wire.ProblemBadCSR},
		{"bad signature of the csr", good, forgedCSR, wire.ProblemBadCSR},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, err := i.IssueCSR(tc.token, tc.csr)
			wantProblem(t, err, tc.want)
		})
	}
}

// alter changes one character in the middle of a token's signature.
func alter(token string) string {
	b, at := []byte(token), len(token)-100
	if b[at] == 'A' {
		b[at] = 'B'
	} else {
		b[at] = 'A'
	}
	return string(b)
}

func TestDenialNamesTheClaim(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	_, err := i.Issue(i.GitHubToken(map[string]any{"repository_id": "666"}))
	p := wantProblem(t, err, wire.ProblemDenied)
	if p.Claim != "repository_id" || p.Rule != "app-main" || !strings.Contains(p.Detail, "repository_id") || !strings.Contains(p.Detail, "666") {
		t.Errorf("problem %+v", p)
	}
	if strings.Contains(p.Detail, issuertest.RepositoryID) {
		t.Errorf("the denial tells what the rule wants: %s", p.Detail)
	}
	evs := events(t, i, "denied")
	if len(evs) != 1 || evs[0].Reason != "repository_id" || evs[0].Rule != "app-main" {
		t.Errorf("events %+v", evs)
	}
}

func TestRequestedEngine(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	_, csr := issuertest.Key(t)
	err := i.Call("POST", wire.PathCertificates, i.GitHubToken(nil), wire.IssueRequest{CSR: csr, Engine: "other"}, nil)
	if p := wantProblem(t, err, wire.ProblemDenied); p.Claim != "engine" {
		t.Errorf("claim %q, want engine", p.Claim)
	}
	if err := i.Call("POST", wire.PathCertificates, i.GitHubToken(nil), wire.IssueRequest{CSR: csr, Engine: issuertest.Engine}, nil); err != nil {
		t.Error(err)
	}
}

// TestOneEngine checks that a request without an engine gets all engines of the rule.
// If it requires one, nothing is recorded and the token still works.
func TestOneEngine(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{Policy: func(text string) string {
		return strings.NewReplacer(
			"engines:\n  default:", "engines:\n  arm: {endpoint: \"tcp://127.0.0.1:8081\", server_name: arm.example.com}\n  default:",
			"grant: {profile: client, engines: [default]", "grant: {profile: client, engines: [default, arm]",
		).Replace(text)
	}})
	_, csr := issuertest.Key(t)
	token := i.GitHubToken(nil)
	p := wantProblem(t, i.Call("POST", wire.PathCertificates, token, wire.IssueRequest{CSR: csr, OneEngine: true}, nil), wire.ProblemSeveralEngines)
	if d := cmp.Diff([]string{"default", "arm"}, p.Engines); d != "" || p.Rule != "app-main" || !strings.Contains(p.Detail, "default, arm") {
		t.Errorf("%+v", p)
	}
	var recorded wire.List[wire.Certificate]
	if err := i.Call("GET", wire.PathCertificates, i.ViewerToken(), nil, &recorded); err != nil || len(recorded.Items) != 0 {
		t.Errorf("recorded %+v, %v", recorded.Items, err)
	}
	for _, tt := range []struct {
		token string
		req   wire.IssueRequest
		want  []string
	}{
		{token, wire.IssueRequest{CSR: csr, Engine: "arm", OneEngine: true}, []string{"arm"}},
		{i.GitHubToken(nil), wire.IssueRequest{CSR: csr, Engine: "arm"}, []string{"arm"}},
		{i.GitHubToken(nil), wire.IssueRequest{CSR: csr}, []string{"default", "arm"}},
		{i.FlyToken(nil), wire.IssueRequest{CSR: csr, OneEngine: true}, []string{"default"}},
	} {
		var out wire.IssueResponse
		if err := i.Call("POST", wire.PathCertificates, tt.token, tt.req, &out); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range out.Engines {
			got = append(got, e.Name)
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%+v: %s", tt.req, d)
		}
	}
}

func TestRequestForm(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	_, csr := issuertest.Key(t)
	good, err := json.Marshal(wire.IssueRequest{CSR: csr})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, method, path, body string
		status                   int
	}{
		{"good", "POST", wire.PathCertificates, string(good), 201},
		{"empty", "POST", wire.PathCertificates, "", 400},
		{"not JSON", "POST", wire.PathCertificates, "csr=1", 400},
		{"unknown member", "POST", wire.PathCertificates, `{"csr":"x","ttl":"1h"}`, 400},
		{"two values", "POST", wire.PathCertificates, string(good) + "{}", 400},
		{"too large", "POST", wire.PathCertificates, `{"csr":"` + strings.Repeat("a", wire.MaxBodyBytes) + `"}`, 413},
		{"no such path", "GET", "/v2/certificates", "", 404},
		{"no such method", "PUT", wire.PathCertificates, "", 405},
		{"step's sign is not here", "POST", "/sign", "{}", 404},
		{"step's 1.0 sign is not here", "POST", "/1.0/sign", "{}", 404},
		{"step's renew is not here", "POST", "/renew", "{}", 404},
		{"step's rekey is not here", "POST", "/rekey", "{}", 404},
		{"step's revoke is not here", "POST", "/revoke", "{}", 404},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			req, err := http.NewRequest(tc.method, i.URL+tc.path, strings.NewReader(tc.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+i.GitHubToken(nil))
			resp, err := i.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != tc.status {
				t.Errorf("status %d, want %d: %s", resp.StatusCode, tc.status, body)
			}
			if tc.status >= 400 && resp.Header.Get("Content-Type") != wire.ProblemMediaType {
				t.Errorf("content type %q", resp.Header.Get("Content-Type"))
			}
		})
	}
}

// TestMethods checks that HEAD is answered as GET, without the body, and that a wrong
// method gets the list of allowed ones (RFC 9110 sections 9.3.2 and 15.5.6).
func TestMethods(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	for _, tc := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"HEAD", wire.PathHealth, 200, ""},
		{"HEAD", wire.PathReady, 200, ""},
		{"HEAD", wire.PathCRL, 200, ""},
		{"HEAD", wire.PathTrustBundle, 200, ""},
		{"HEAD", wire.PathCertificates, 401, ""},
		{"HEAD", "/v1/nothing", 404, ""},
		{"HEAD", wire.PathRevocations, 405, "POST"},
		{"PUT", wire.PathCRL, 405, "GET, HEAD"},
		{"PUT", wire.PathCertificates, 405, "GET, HEAD, POST"},
		{"GET", wire.PathRevocations, 405, "POST"},
		{"GET", wire.PathBlocks + "/" + strings.Repeat("a", 32), 405, "DELETE"},
	} {
		req, err := http.NewRequest(tc.method, i.URL+tc.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := i.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if allow := strings.Join(resp.Header.Values("Allow"), ", "); resp.StatusCode != tc.status || allow != tc.allow {
			t.Errorf("%s %s: %d, Allow %q; want %d, %q", tc.method, tc.path, resp.StatusCode, allow, tc.status, tc.allow)
		}
		if tc.path == wire.PathCRL && tc.status == 200 && (resp.ContentLength <= 0 || resp.Header.Get("ETag") == "") {
			t.Errorf("HEAD tells nothing of the CRL: %v", resp.Header)
		}
	}
}

// TestHeaderLimit checks the header's bound over HTTP/2. TestHeaderLimitIsExact checks
// the exact bound.
func TestHeaderLimit(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	for size, want := range map[int]int{16 << 10: 200, 64 << 10: 431} {
		req, err := http.NewRequest("GET", i.URL+wire.PathInfo, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Padding", strings.Repeat("a", size))
		resp, err := i.Client().Do(req)
		if err != nil {
			if want == 200 {
				t.Error(err)
			}
			continue // HTTP/2 resets the stream instead of answering
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("header of %d bytes: status %d, want %d", size, resp.StatusCode, want)
		}
	}
}

// TestReplay is ATTACKS 22 and 23: a used token with another key is refused and
// recorded; with the same key it returns the same certificate.
func TestReplay(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	token := i.GitHubToken(nil)
	_, csr := issuertest.Key(t)
	first, err := i.IssueCSR(token, csr)
	if err != nil {
		t.Fatal(err)
	}
	again, err := i.IssueCSR(token, csr)
	if err != nil {
		t.Fatal(err)
	}
	if first.Serial != again.Serial || !bytes.Equal(tbsOf(t, first), tbsOf(t, again)) {
		t.Error("the same token and key bought two certificates")
	}
	_, err = i.Issue(token)
	wantProblem(t, err, wire.ProblemReplay)
	evs := events(t, i, "replay")
	if len(evs) != 1 || evs[0].Serial != first.Serial || !strings.Contains(evs[0].Reason, "another key") {
		t.Errorf("events %+v", evs)
	}
}

// tbsOf returns the signed part of an issued certificate.
func tbsOf(t *testing.T, r *wire.IssueResponse) []byte {
	t.Helper()
	block, _ := pem.Decode([]byte(r.Certificate))
	if block == nil {
		t.Fatal("no PEM block")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert.RawTBSCertificate
}

// TestReplayAtTwoIssuers is ATTACKS 24 over one store: two issuers, one token, two
// keys at once.
func TestReplayAtTwoIssuers(t *testing.T) {
	t.Parallel()
	a := issuertest.Start(t, issuertest.Options{})
	b := a.Replica()
	rounds := 20
	for range rounds {
		token := a.GitHubToken(nil)
		var wg sync.WaitGroup
		var mu sync.Mutex
		won := 0
		for _, i := range []*issuertest.Issuer{a, b, a, b} {
			wg.Go(func() {
				_, err := i.Issue(token)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won++
				} else if p := (*wire.Problem)(nil); !errors.As(err, &p) || p.Name() != wire.ProblemReplay {
					t.Errorf("loser got %v", err)
				}
			})
		}
		wg.Wait()
		if won != 1 {
			t.Fatalf("%d certificates for one token", won)
		}
	}
}

// TestRateLimits checks that a matrix of 256 jobs of one repository is within the
// default limits, from one address and as one identity. A flood is not.
func TestRateLimits(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	var wg sync.WaitGroup
	gate := make(chan struct{}, 16)
	for range 256 {
		wg.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			if err := i.Call("GET", wire.PathInfo, "", nil, nil); err != nil {
				t.Error(err)
			}
			if _, err := i.Issue(i.GitHubToken(nil)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestRateLimited(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{Config: func(c *issuer.Config) {
		c.Rate = issuer.RateConfig{PerIP: 8, PerIdentity: 3}
		c.ClientIPHeader = "Fly-Client-IP"
	}})
	from := func(address, token string) *http.Response {
		_, csr := issuertest.Key(t)
		body, err := json.Marshal(wire.IssueRequest{CSR: csr})
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequest("POST", i.URL+wire.PathCertificates, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Fly-Client-IP", address)
		resp, err := i.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	for n := range 4 {
		resp := from("192.0.2.1", i.GitHubToken(nil))
		if n < 3 && resp.StatusCode != 201 {
			t.Errorf("request %d of one identity: %d", n, resp.StatusCode)
		}
		if n == 3 && (resp.StatusCode != 429 || resp.Header.Get("Retry-After") == "") {
			t.Errorf("identity over its limit: %d, Retry-After %q", resp.StatusCode, resp.Header.Get("Retry-After"))
		}
	}
	if resp := from("192.0.2.1", i.FlyToken(nil)); resp.StatusCode != 201 {
		t.Errorf("another identity: %d", resp.StatusCode)
	}
	for range 3 {
		from("192.0.2.1", "garbage")
	}
	if resp := from("192.0.2.1", "garbage"); resp.StatusCode != 429 {
		t.Errorf("address over its limit: %d, before verification", resp.StatusCode)
	}
	if resp := from("192.0.2.2", "garbage"); resp.StatusCode != 401 {
		t.Errorf("another address: %d", resp.StatusCode)
	}
	if resp, err := i.Client().Get(i.URL + wire.PathHealth); err != nil || resp.StatusCode != 200 {
		t.Errorf("health is limited: %v %v", resp, err)
	}
}
