package issuer_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// eventually waits until f returns true. It calls f every 20 ms.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(20 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		<-tick.C
	}
}

// buffer is a log that may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestPolicyReload(t *testing.T) {
	t.Parallel()
	log := &buffer{}
	i := issuertest.Start(t, issuertest.Options{Log: log})
	text, err := os.ReadFile(i.PolicyFile)
	if err != nil {
		t.Fatal(err)
	}
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(i.PolicyFile, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	other := map[string]any{"ref": "refs/heads/dev"}
	_, err = i.Issue(i.GitHubToken(other))
	wantProblem(t, err, wire.ProblemDenied)

	// A bad file, and one of another trust domain, keep the old rules and log it.
	for n, bad := range []string{"version: 2\n", strings.ReplaceAll(string(text), "trust_domain: ci.", "trust_domain: evil."), ""} {
		write(bad)
		i.Reload()
		eventually(t, "the refusal in the log", func() bool {
			return strings.Count(log.String(), "policy not reloaded") >= n+1
		})
		if _, err := i.Issue(i.GitHubToken(nil)); err != nil {
			t.Fatalf("the old rules are gone: %v", err)
		}
		if w := i.Service.Server().Warnings(); len(w) != 1 || !strings.Contains(w[0], "policy") {
			t.Errorf("warnings %v", w)
		}
	}
	if evs := events(t, i, "policy_loaded"); len(evs) != 1 {
		t.Errorf("bad files are events of loading: %+v", evs)
	}

	// Polling alone loads a good file.
	write(strings.ReplaceAll(string(text), "refs/heads/main", "refs/heads/dev"))
	eventually(t, "the new rules", func() bool {
		_, err := i.Issue(i.GitHubToken(other))
		return err == nil
	})
	_, err = i.Issue(i.GitHubToken(nil))
	wantProblem(t, err, wire.ProblemDenied)
	eventually(t, "the event", func() bool { return len(events(t, i, "policy_loaded")) == 2 })
	if w := i.Service.Server().Warnings(); len(w) != 0 {
		t.Errorf("warnings %v", w)
	}
}

// TestGracefulStop checks that a shutdown answers what was accepted: running requests,
// new connections in the listener's queue, and waiting requests at once.
func TestGracefulStop(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	// One client for all, without keep-alive: every request is a connection.
	roots := i.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}, Timeout: time.Minute}
	_, header, _ := fetch(t, i, wire.PathCRL)
	number := strings.Trim(header.Get("ETag"), `"`)
	waited := make(chan int, 1)
	go func() {
		resp, err := client.Get(i.URL + wire.PathCRLWait + "?after=" + number)
		if err != nil {
			waited <- 0
			return
		}
		resp.Body.Close()
		waited <- resp.StatusCode
	}()
	eventually(t, "the held wait", func() bool { return strings.Contains(metrics(t, i), "mayfly_issuer_crl_waiters 1") })

	tokens := make(chan string, 512)
	for range cap(tokens) {
		tokens <- i.GitHubToken(nil)
	}
	_, csr := issuertest.Key(t)
	body := `{"csr":"` + strings.ReplaceAll(csr, "\n", `\n`) + `"}`
	var issued, refused atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for token := range tokens {
				req, err := http.NewRequest("POST", i.URL+wire.PathCertificates, strings.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("Authorization", "Bearer "+token)
				resp, err := client.Do(req)
				if err != nil {
					// After the end: the kernel did not connect it, so it was never
					// accepted.
					if op := (*net.OpError)(nil); !errors.As(err, &op) || op.Op != "dial" {
						t.Errorf("lost: %v", err)
					}
					refused.Add(1)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode != 201 {
					t.Errorf("status %d", resp.StatusCode)
				}
				issued.Add(1)
			}
		})
	}
	eventually(t, "some certificates", func() bool { return issued.Load() > 20 })
	if err := i.Stop(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if status := <-waited; status != 204 {
		t.Errorf("the held wait got %d, want 204 at once", status)
	}
	t.Logf("issued %d, then refused %d", issued.Load(), refused.Load())
	i.Restart()
	var list wire.List[wire.Certificate]
	if err := i.Call("GET", wire.PathCertificates+"?limit=500", i.ViewerToken(), nil, &list); err != nil {
		t.Fatal(err)
	}
	if int64(len(list.Items)) < issued.Load() {
		t.Errorf("%d recorded, %d issued", len(list.Items), issued.Load())
	}
}

func metrics(t *testing.T, i *issuertest.Issuer) string {
	t.Helper()
	resp, err := http.Get("http://" + i.Service.MetricsAddr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("metrics: %d %v", resp.StatusCode, err)
	}
	return string(body)
}

// checkRoutes checks that pages have their patterns as labels, and that all other
// paths share one label.
func checkRoutes(t *testing.T, i *issuertest.Issuer) {
	t.Helper()
	for _, path := range []string{
		"/", "/login", "/login/a", "/login/b", "/certificates", "/certificates/00", "/certificates/11?serial=1", "/assets/no", "/assets/none",
		"/certificates/00/more", "/assets", "/no", "/v1/no", "/v1/certificates/00",
	} {
		fetch(t, i, path)
	}
	count := make(map[string]int)
	for line := range strings.Lines(metrics(t, i)) {
		if _, rest, ok := strings.Cut(line, "mayfly_issuer_http_request_duration_seconds_count{"); ok {
			_, rest, _ = strings.Cut(rest, `route="`)
			route, value, _ := strings.Cut(rest, `"} `)
			n, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				t.Fatal(err)
			}
			count[route] += n
		}
	}
	for route, want := range map[string]int{
		"/": 1, "/login": 1, "/login/{provider}": 2, "/certificates": 1, "/certificates/{serial}": 2, "/assets/": 2, "/v1/certificates/{serial}": 1, "none": 3,
	} {
		if count[route] < want {
			t.Errorf("route %s counts %d, want %d: %v", route, count[route], want, count)
		}
		delete(count, route)
	}
	for route := range count {
		if !strings.HasPrefix(route, "/v1/") && route != "/healthz" && route != "/readyz" {
			t.Errorf("route %s", route)
		}
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	if _, err := i.Issue(i.GitHubToken(nil)); err != nil {
		t.Fatal(err)
	}
	_, err := i.Issue(i.GitHubToken(map[string]any{"repository_id": "1"}))
	wantProblem(t, err, wire.ProblemDenied)
	text := metrics(t, i)
	for _, want := range []string{
		`mayfly_issuer_certificates_issued_total{profile="client",provider="github",repeated="false"} 1`,
		`mayfly_issuer_denials_total{reason="repository_id"} 1`,
		`mayfly_issuer_problems_total{problem="denied"} 1`,
		`mayfly_issuer_ca_expiry_seconds{certificate="intermediate"} 3.15`,
		`mayfly_issuer_crl_age_seconds `,
		`mayfly_issuer_sessions_live 0`,
		`mayfly_issuer_policy_stale 0`,
		`mayfly_issuer_store_duration_seconds_count{operation="record"} 1`,
		`mayfly_issuer_http_request_duration_seconds_count{code="201",route="/v1/certificates"} 1`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	checkRoutes(t, i)
	// promlint checks Prometheus' conventions on names, units and help.
	faults, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		t.Errorf("metric %s: %s", f.Metric, f.Text)
	}
	if status, _, _ := fetch(t, i, "/metrics"); status != 404 {
		t.Errorf("/metrics at the API: %d", status)
	}
}

// TestHostileClaims checks that an untrusted claim cannot move the cursor, begin a
// line or change the direction of text: in the log, in a problem, or in an event for a
// terminal.
func TestHostileClaims(t *testing.T) {
	t.Parallel()
	log := &buffer{}
	i := issuertest.Start(t, issuertest.Options{Log: log})
	hostile := "evil\x1b[2J\r\ntime=now level=INFO msg=forged \u202egnp.exe<script>"
	token := i.GitHubToken(map[string]any{"ref": hostile, "actor": hostile, "sub": hostile, "repository": hostile})
	_, err := i.Issue(token)
	p := wantProblem(t, err, wire.ProblemDenied)
	if p.Claim != "ref" || strings.ContainsAny(p.Detail, "\x1b\r\n\u202e") {
		t.Errorf("detail %q", p.Detail)
	}
	if _, err := i.Issue(i.GitHubToken(map[string]any{"actor": hostile, "sub": hostile, "run_id": hostile})); err != nil {
		t.Logf("hostile run_id: %v", err)
	}
	wantProblem(t, i.Call("GET", wire.PathCertificates+"?%0d%0aforged=1", i.ViewerToken(), nil, nil), wire.ProblemBadRequest)
	text := log.String()
	if strings.ContainsAny(text, "\x1b\r\u202e") || strings.Contains(text, "\ntime=now") {
		t.Errorf("the log was written to by a claim: %q", text)
	}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "time=") {
			t.Errorf("a line of the log begins with %q", line)
		}
	}
	if !strings.Contains(text, `problem=denied`) {
		t.Error("the denial is not in the log")
	}
	for _, part := range strings.Split(token, ".") {
		if strings.Contains(text, part) {
			t.Error("the log holds a part of the token")
		}
	}
}

// TestStoreIsNeverMade is ATTACKS 52: serve never creates a store, and never uses
// another CA's.
func TestStoreIsNeverMade(t *testing.T) {
	i := issuertest.Start(t, issuertest.Options{})
	other := issuertest.Start(t, issuertest.Options{})
	cfg := i.Config
	cfg.PublicURL, cfg.MetricsListen = "https://127.0.0.1:1", ""

	open := func(path string) error {
		t.Helper()
		c := cfg
		c.Store = path
		svc, err := issuer.Open(t.Context(), c)
		if err == nil {
			svc.Close()
		}
		return err
	}
	missing := filepath.Join(t.TempDir(), "store")
	if err := open(missing); !errors.Is(err, store.ErrMissing) || wire.Hint(err) == "" {
		t.Errorf("missing store: %v", err)
	}
	empty := filepath.Join(t.TempDir(), "store")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(empty); !errors.Is(err, store.ErrMissing) {
		t.Errorf("empty store: %v", err)
	}
	if err := open(other.Config.Store); !errors.Is(err, store.ErrOtherRoot) || wire.Hint(err) == "" {
		t.Errorf("another root's store: %v", err)
	}
	if err := open(i.Config.Store); err != nil {
		t.Errorf("its own store: %v", err)
	}

	for name, until := range map[string]string{
		"stale": time.Now().Add(-time.Second).Format(time.RFC3339),
		"far":   time.Now().Add(2 * time.Hour).Format(time.RFC3339),
		"bad":   "tomorrow",
	} {
		t.Setenv(issuer.CreateStoreEnv, until)
		if err := open(missing); !errors.Is(err, store.ErrMissing) || !strings.Contains(err.Error(), issuer.CreateStoreEnv) {
			t.Errorf("%s: %v", name, err)
		}
	}
	t.Setenv(issuer.CreateStoreEnv, time.Now().Add(10*time.Minute).Format(time.RFC3339))
	if err := open(other.Config.Store); !errors.Is(err, store.ErrOtherRoot) {
		t.Errorf("another root's store, with the exception: %v", err)
	}
	if err := open(missing); err != nil {
		t.Errorf("the exception: %v", err)
	}
	t.Setenv(issuer.CreateStoreEnv, "")
	if err := open(missing); err != nil {
		t.Errorf("the store that was made: %v", err)
	}
}

func TestReadiness(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	if status, _, body := fetch(t, i, wire.PathReady); status != 200 || !strings.Contains(string(body), `"warnings":[]`) {
		t.Errorf("ready: %d %s", status, body)
	}
	if status, _, body := fetch(t, i, wire.PathHealth); status != 200 || string(body) != "ok\n" {
		t.Errorf("health: %d %s", status, body)
	}
	i.Service.Server().Drain()
	if status, _, _ := fetch(t, i, wire.PathReady); status != 503 {
		t.Errorf("ready while stopping: %d", status)
	}
	if status, _, _ := fetch(t, i, wire.PathHealth); status != 200 {
		t.Errorf("health while stopping: %d", status)
	}
}

// TestTLSModes checks that tls.mode off is plain HTTP on loopback, and that the others
// accept only TLS 1.3.
func TestTLSModes(t *testing.T) {
	t.Parallel()
	plain := issuertest.Start(t, issuertest.Options{Config: func(c *issuer.Config) { c.TLS.Mode = issuer.TLSOff }})
	if !strings.HasPrefix(plain.URL, "http://") {
		t.Fatal(plain.URL)
	}
	if _, err := plain.Issue(plain.GitHubToken(nil)); err != nil {
		t.Error(err)
	}
	i := issuertest.Start(t, issuertest.Options{})
	roots := i.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	for version, allowed := range map[uint16]bool{tls.VersionTLS12: false, tls.VersionTLS13: true} {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(i.URL, "https://"), &tls.Config{RootCAs: roots, MaxVersion: version})
		if (err == nil) != allowed {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err == nil {
			_ = conn.Close()
		}
	}
}

// TestStepEndpoints checks the requests of step ca bootstrap, health and roots and of
// step crl inspect.
func TestStepEndpoints(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	fingerprint := strings.TrimPrefix(i.TrustAnchor, "sha256:")
	for _, prefix := range []string{"", "/1.0"} {
		for path, want := range map[string]struct {
			status int
			part   string
		}{
			"/health":                               {200, `{"status":"ok"}`},
			"/version":                              {200, `"version":"mayfly `},
			"/root/" + fingerprint:                  {200, `{"ca":"-----BEGIN CERTIFICATE`},
			"/root/" + strings.ToUpper(fingerprint): {200, `{"ca":"-----BEGIN CERTIFICATE`},
			"/root/" + strings.Repeat("0", 64):      {404, "not-found"},
			"/roots":                                {201, `{"crts":["-----BEGIN CERTIFICATE`},
			"/roots.pem":                            {200, "-----BEGIN CERTIFICATE"},
			"/provisioners":                         {200, `"provisioners":[]`},
			"/crl?pem":                              {200, "-----BEGIN X509 CRL"},
		} {
			if status, _, body := fetch(t, i, prefix+path); status != want.status || !strings.Contains(string(body), want.part) {
				t.Errorf("%s%s: %d %.80s", prefix, path, status, body)
			}
		}
		if _, _, der := fetch(t, i, prefix+"/crl"); len(revoked(t, der)) != 0 {
			t.Error("CRL of a new CA lists something")
		}
	}
}

func TestTrustBundle(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	_, header, body := fetch(t, i, wire.PathTrustBundle)
	if header.Get("Content-Type") != "application/x-pem-file" || !leafOf(t, string(body)).Equal(i.Root) {
		t.Errorf("PEM bundle: %v %s", header, body)
	}
	_, header, body = fetch(t, i, wire.PathTrustBundle, "Accept", "application/json")
	td := spiffeid.RequireTrustDomainFromString(issuertest.TrustDomain)
	b, err := spiffebundle.Parse(td, body)
	if err != nil || header.Get("Content-Type") != "application/json" {
		t.Fatalf("SPIFFE bundle: %v %v", header, err)
	}
	if roots := b.X509Authorities(); len(roots) != 1 || !roots[0].Equal(i.Root) {
		t.Errorf("SPIFFE bundle holds %d roots", len(roots))
	}
	if _, ok := b.SequenceNumber(); !ok {
		t.Error("no spiffe_sequence")
	}
	if hint, ok := b.RefreshHint(); !ok || hint != time.Hour {
		t.Errorf("refresh hint %v", hint)
	}
	var info wire.Info
	if err := i.Call("GET", wire.PathInfo, "", nil, &info); err != nil {
		t.Fatal(err)
	}
	if info.Audience != issuertest.Audience || info.CRLURL != i.URL+wire.PathCRL || len(info.Login) != 1 || info.Login[0].ClientID != issuertest.ClientID {
		t.Errorf("info %+v", info)
	}
}
