package cli_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// stand is an issuer, an engine's sidecar and a platform's token endpoint in this
// process. Each uses its real protocol, and a test can make it fail.
type stand struct {
	tb     testing.TB
	ca     *clienttest.CA
	issuer *httptest.Server
	tokens *httptest.Server
	engine net.Listener
	env    []string

	mu sync.Mutex
	// issue, token and api replace the usual answer if they return true.
	issue, token, api func(w http.ResponseWriter, r *http.Request) bool
	// spoil changes an answer that has a certificate.
	spoil func(*wire.IssueResponse)
	// endpoint is the engine's address in answers; empty means the real address.
	endpoint string
	// verdict is the reason of the engine's refusal; empty admits.
	verdict string
	// frozen makes the engine accept connections and send nothing.
	frozen bool
	// cut is the reason for which the engine cuts a relay as soon as it is held.
	cut string
	// held receives a value for each relay that a control connection holds.
	held  chan struct{}
	leaf  clienttest.Leaf // the leaf for clients
	calls []call
}

type call struct{ Method, Path, Query, Token, Body string }

const (
	standDomain = "ci.example.com"
	standServer = "engine.example.com"
)

func newStand(tb testing.TB) *stand {
	tb.Helper()
	s := &stand{tb: tb, ca: clienttest.New(tb, standDomain), held: make(chan struct{}, 64)}
	s.issuer = httptest.NewServer(http.HandlerFunc(s.serveIssuer))
	tb.Cleanup(s.issuer.Close)
	s.tokens = httptest.NewServer(http.HandlerFunc(s.serveToken))
	tb.Cleanup(s.tokens.Close)
	s.set(func() {
		s.startEngine(clienttest.Leaf{ID: "/engine/default/fly/1/m", DNS: []string{standServer}, Usage: x509.ExtKeyUsageServerAuth})
	})
	home := tb.TempDir()
	s.env = []string{
		"HOME=" + home, "XDG_CONFIG_HOME=" + filepath.Join(home, "config"), "TMPDIR=" + shortDir(tb), "XDG_RUNTIME_DIR=",
		"PATH=" + os.Getenv("PATH"), "MAYFLY_ISSUER=" + s.issuer.URL,
		"ACTIONS_ID_TOKEN_REQUEST_URL=" + s.tokens.URL + "/token?api-version=2.0", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=job-secret",
	}
	return s
}

// shortDir returns a temporary folder with a path short enough for a socket.
func shortDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("/tmp", "mfc")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// count returns the number of calls to the issuer with this path.
func (s *stand) count(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, c := range s.calls {
		if c.Path == path {
			n++
		}
	}
	return n
}

// set changes the stand under the lock under which its servers read it.
func (s *stand) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// answer returns a handler that always gives this answer.
func answer(status int, contentType, body string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		io.WriteString(w, body)
		return true
	}
}

func problem(name, detail string, more ...string) func(http.ResponseWriter, *http.Request) bool {
	p := wire.Problem{Type: wire.ProblemPrefix + name, Title: name, Status: wire.ProblemStatus(name), Detail: detail}
	if len(more) == 2 {
		p.Rule, p.Claim = more[0], more[1]
	}
	b, _ := json.Marshal(p)
	return answer(p.Status, wire.ProblemMediaType, string(b))
}

// standClaims are the claims of a push to main.
var standClaims = map[string]any{
	"iss": "https://token.actions.githubusercontent.com", "jti": "t1",
	"sub": "repo:acme/app:ref:refs/heads/main", "repository": "acme/app", "repository_id": "1339936803",
	"repository_owner_id": "285964", "ref": "refs/heads/main", "event_name": "push", "workflow_ref": "acme/app/.github/workflows/ci.yml@refs/heads/main",
}

// fakeToken returns a compact JWS whose signature is not valid.
func fakeToken(claims map[string]any, audience string) string {
	c := map[string]any{}
	for k, v := range claims {
		c[k] = v
	}
	now := time.Now()
	for k, v := range map[string]any{"iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(), "aud": audience} {
		if _, set := c[k]; !set {
			c[k] = v
		}
	}
	b, _ := json.Marshal(c)
	enc := base64.RawURLEncoding
	return enc.EncodeToString([]byte(`{"alg":"RS256"}`)) + "." + enc.EncodeToString(b) + "." + enc.EncodeToString([]byte("TOKEN-SIGNATURE"))
}

func (s *stand) serveToken(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	f := s.token
	s.mu.Unlock()
	if f != nil && f(w, r) {
		return
	}
	json.NewEncoder(w).Encode(map[string]any{"count": 1, "value": fakeToken(standClaims, r.URL.Query().Get("audience"))})
}

func (s *stand) serveIssuer(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	s.calls = append(s.calls, call{r.Method, r.URL.Path, r.URL.RawQuery, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), string(body)})
	issue, api := s.issue, s.api
	s.mu.Unlock()
	switch {
	case api != nil && api(w, r):
	case r.URL.Path == wire.PathHealth:
		w.WriteHeader(http.StatusOK)
	case r.URL.Path == wire.PathInfo:
		json.NewEncoder(w).Encode(wire.Info{TrustDomain: standDomain, Audience: "mayfly:" + standDomain})
	case r.URL.Path == wire.PathCRLWait:
		w.Write(s.ca.Feed(s.tb, clienttest.Feed{}))
	case r.URL.Path == wire.PathCertificates && r.Method == http.MethodPost:
		if issue == nil || !issue(w, r) {
			s.sign(w, body)
		}
	default:
		problem(wire.ProblemNotFound, "no such path")(w, r)
	}
}

func (s *stand) sign(w http.ResponseWriter, body []byte) {
	var req wire.IssueRequest
	json.Unmarshal(body, &req)
	blk, _ := pem.Decode([]byte(req.CSR))
	csr, err := x509.ParseCertificateRequest(blk.Bytes)
	if err != nil {
		problem(wire.ProblemBadCSR, err.Error())(w, nil)
		return
	}
	s.mu.Lock()
	leaf, endpoint, spoil := s.leaf, s.endpoint, s.spoil
	if endpoint == "" {
		endpoint = "tcp://" + s.engine.Addr().String()
	}
	s.mu.Unlock()
	leaf.Key, leaf.Rule, leaf.Run = csr.PublicKey, "app-main", "32291736541/1/96193868770"
	cert := s.ca.Issue(s.tb, leaf)
	resp := wire.IssueResponse{
		Serial: mtls.Serial(cert.Leaf.SerialNumber), NotBefore: cert.Leaf.NotBefore, NotAfter: cert.Leaf.NotAfter,
		RenewAfter: cert.Leaf.NotBefore.Add(cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore) / 2), Identity: cert.Leaf.URIs[0].String(), Rule: "app-main",
		Engines: []wire.Engine{{Name: "default", Endpoint: endpoint, ServerName: standServer}},
		CRL:     string(s.ca.Feed(s.tb, clienttest.Feed{})),
	}
	for _, der := range cert.Certificate {
		resp.Certificate += string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	resp.TrustBundle = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.ca.Root.Certificate.Raw}))
	if spoil != nil {
		spoil(&resp)
	}
	w.WriteHeader(http.StatusCreated)
	json.NewEncoder(w).Encode(resp)
}

// startEngine starts a sidecar with this certificate, in place of an earlier one. The
// caller calls it within set.
func (s *stand) startEngine(leaf clienttest.Leaf) { s.startEngineTrusting(leaf, s.ca.Roots()) }

// startEngineTrusting starts a sidecar that verifies clients against these roots.
func (s *stand) startEngineTrusting(leaf clienttest.Leaf, roots *x509.CertPool) {
	s.tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.tb.Fatal(err)
	}
	s.serveOn(ln, leaf, roots)
}

// serveOn makes the sidecar listen on ln.
func (s *stand) serveOn(ln net.Listener, leaf clienttest.Leaf, roots *x509.CertPool) {
	s.engine = ln
	src := clienttest.Source{Cert: s.ca.Issue(s.tb, leaf), Pool: roots}
	cfg := mtls.ServerConfig(src, s.ca.TrustDomain, func(mtls.Peer) error { return nil })
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			conn := tls.Server(c, cfg)
			wg.Go(func() { defer conn.Close(); s.serveEngine(conn) })
		}
	})
	s.tb.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
}

func (s *stand) serveEngine(c *tls.Conn) {
	s.mu.Lock()
	frozen, verdict := s.frozen, s.verdict
	s.mu.Unlock()
	if frozen {
		io.Copy(io.Discard, c.NetConn())
		return
	}
	if c.Handshake() != nil {
		return
	}
	io.WriteString(c, wire.Verdict(verdict))
	if verdict != "" {
		return
	}
	if c.ConnectionState().NegotiatedProtocol == wire.ALPNControl {
		s.serveControl(c)
		return
	}
	io.Copy(c, c)
}

func (s *stand) serveControl(c *tls.Conn) {
	lines := bufio.NewScanner(c)
	lines.Buffer(nil, wire.MaxControlLine)
	enc := json.NewEncoder(c)
	for lines.Scan() {
		var in wire.Control
		if json.Unmarshal(lines.Bytes(), &in) != nil {
			return
		}
		switch {
		case in.Ping > 0:
			enc.Encode(wire.Control{Pong: in.Ping})
		case in.Hold != nil:
			enc.Encode(wire.Control{Held: in.Hold})
			s.mu.Lock()
			cut := s.cut
			s.mu.Unlock()
			for _, name := range in.Hold {
				if cut != "" {
					enc.Encode(wire.Control{Cut: name, Reason: cut})
				}
			}
			s.held <- struct{}{}
		}
	}
}

// dialer is the command that tests run in a tunnel, in place of dagger.
//
//	dialer echo    sends a line through BUILDKIT_HOST and prints the answer
//	dialer retry   connects forever without output, as Dagger's client does
//	dialer env     prints its environment
//	dialer exit N  exits with code N
//	dialer read F  prints a file, with the permissions of its user
func dialer(args []string) int {
	network, address, _ := strings.Cut(os.Getenv("BUILDKIT_HOST"), "://")
	switch args[0] {
	case "env":
		for _, kv := range os.Environ() {
			fmt.Println(kv)
		}
	case "read":
		f, err := os.Open(args[1])
		if err != nil {
			fmt.Fprintln(os.Stderr, "dialer:", err)
			return 1
		}
		defer f.Close()
		if _, err := io.Copy(os.Stdout, f); err != nil {
			fmt.Fprintln(os.Stderr, "dialer:", err)
			return 1
		}
	case "exit":
		code := 0
		fmt.Sscan(args[1], &code)
		return code
	case "echo":
		c, err := net.Dial(network, address)
		if err != nil {
			fmt.Fprintln(os.Stderr, "dialer:", err)
			return 1
		}
		defer c.Close()
		fmt.Fprintln(c, "through the tunnel")
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			fmt.Fprintln(os.Stderr, "dialer:", err)
			return 1
		}
		fmt.Print(line)
	case "retry":
		for {
			if c, err := net.Dial(network, address); err == nil {
				io.Copy(io.Discard, c)
				c.Close()
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return 0
}
