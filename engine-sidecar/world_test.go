package sidecar_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
	sidecar "github.com/mayfly-ca/mayfly/engine-sidecar"
)

const (
	trustDomain = "ci.example.com"
	serverName  = "engine.example.com"
)

// fakeIssuer is an issuer that admits every client. The tests of package e2e
// use the real one.
type fakeIssuer struct {
	tb  testing.TB
	ca  *clienttest.CA
	srv *httptest.Server

	mu           sync.Mutex
	changed      chan struct{} // closed at each change of the feed
	feed         clienttest.Feed
	feedPEM      []byte
	down         bool   // answers 503 to everything
	frozen       bool   // answers 204 to every wait, even when the feed is newer
	denied       bool   // issues nothing
	earlier      bool   // acts as a version without statuses
	refusal      string // for every status
	statuses     []wire.SidecarStatus
	misreads     func(wire.SessionReport) bool // session reports that it cannot parse; nil means none
	ttl          time.Duration                 // of server certificates
	intermediate int                           // index of the one that signs them
	issued       []*x509.Certificate
	reports      []wire.SessionReport
	reportCalls  []reportCall
}

func newFakeIssuer(tb testing.TB) *fakeIssuer {
	tb.Helper()
	f := &fakeIssuer{tb: tb, ca: clienttest.New(tb, trustDomain), ttl: time.Hour, changed: make(chan struct{})}
	f.publish(func(*clienttest.Feed) {})
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.PathInfo, func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(wire.Info{TrustDomain: trustDomain, Audience: "mayfly:" + trustDomain})
	})
	mux.HandleFunc("POST "+wire.PathCertificates, f.issue)
	mux.HandleFunc("GET "+wire.PathCRLWait, f.wait)
	mux.HandleFunc("POST "+wire.PathSessions, f.sessions)
	f.srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		down := f.down
		f.mu.Unlock()
		if down {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	tb.Cleanup(func() { f.srv.CloseClientConnections(); f.srv.Close() })
	return f
}

// publish changes the feed and gives it the next number, unless change does.
func (f *fakeIssuer) publish(change func(*clienttest.Feed)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.feed.Number++
	f.feed.ThisUpdate = time.Now()
	f.feed.NextUpdate = time.Time{}
	f.feed.RootNextUpdate = time.Time{}
	change(&f.feed)
	f.feedPEM = f.ca.Feed(f.tb, f.feed)
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeIssuer) revoke(certs ...*x509.Certificate) {
	f.publish(func(feed *clienttest.Feed) {
		for _, c := range certs {
			feed.Revoked = append(feed.Revoked, c.SerialNumber)
		}
	})
}

func (f *fakeIssuer) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeIssuer) wait(w http.ResponseWriter, r *http.Request) {
	after, _ := strconv.ParseInt(r.URL.Query().Get("after"), 10, 64)
	for {
		f.mu.Lock()
		number, body, changed, frozen := f.feed.Number, f.feedPEM, f.changed, f.frozen
		f.mu.Unlock()
		if number != after && !frozen {
			_, _ = w.Write(body)
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		case <-time.After(200 * time.Millisecond):
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
}

func (f *fakeIssuer) issue(w http.ResponseWriter, r *http.Request) {
	var req wire.IssueRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	block, _ := pem.Decode([]byte(req.CSR))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.denied {
		w.Header().Set("Content-Type", wire.ProblemMediaType)
		w.WriteHeader(http.StatusForbidden)
		_ = json.NewEncoder(w).Encode(wire.Problem{Type: wire.ProblemPrefix + wire.ProblemDenied, Title: "denied", Detail: "no rule admits app_id 3", Status: 403, Claim: "app_id"})
		return
	}
	now := time.Now()
	cert := f.ca.Issue(f.tb, clienttest.Leaf{
		Intermediate: f.intermediate, ID: "/engine/default/fly/22/m1", DNS: []string{serverName}, Usage: x509.ExtKeyUsageServerAuth,
		Key: csr.PublicKey, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(f.ttl),
	})
	f.issued = append(f.issued, cert.Leaf)
	var chain, bundle bytes.Buffer
	for _, der := range cert.Certificate {
		_ = pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	for _, root := range f.ca.RootCertificates() {
		_ = pem.Encode(&bundle, &pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})
	}
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(wire.IssueResponse{
		Serial: mtls.Serial(cert.Leaf.SerialNumber), Certificate: chain.String(), TrustBundle: bundle.String(),
		CRL: string(f.feedPEM), NotBefore: cert.Leaf.NotBefore, NotAfter: cert.Leaf.NotAfter,
		RenewAfter: now.Add(f.ttl / 2), Identity: cert.Leaf.URIs[0].String(), Rule: "rule",
		Engines: []wire.Engine{{Name: "default", Endpoint: "tcp://" + serverName + ":8080", ServerName: serverName}},
	})
}

// sessions refuses a whole request where the real issuer does: when its body
// is too large or contains an invalid report.
func (f *fakeIssuer) sessions(w http.ResponseWriter, r *http.Request) {
	var req wire.SessionsRequest
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, wire.MaxBodyBytes)).Decode(&req)
	f.mu.Lock()
	defer f.mu.Unlock()
	status := http.StatusOK
	switch {
	case errors.As(err, new(*http.MaxBytesError)):
		status = http.StatusRequestEntityTooLarge
	case err != nil, f.earlier && req.Status != nil, len(req.Reports) > wire.MaxSessionReports, f.misreads != nil && slices.ContainsFunc(req.Reports, f.misreads):
		status = http.StatusBadRequest
	}
	f.reportCalls = append(f.reportCalls, reportCall{token: strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), status: status, reports: len(req.Reports)})
	if status != http.StatusOK {
		w.Header().Set("Content-Type", wire.ProblemMediaType)
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(wire.Problem{Type: wire.ProblemPrefix + wire.ProblemBadRequest, Title: "bad request", Status: status})
		return
	}
	f.reports = append(f.reports, req.Reports...)
	answer := wire.SessionsResponse{Accepted: len(req.Reports)}
	if req.Status != nil {
		f.statuses = append(f.statuses, *req.Status)
		answer.StatusRefused = f.refusal
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// reportCall is one POST of session reports.
type reportCall struct {
	token   string
	status  int // of the response
	reports int
}

// world holds an issuer, an engine and a running sidecar.
type world struct {
	tb     testing.TB
	issuer *fakeIssuer
	engine net.Listener
	cfg    sidecar.Config
	log    *lines

	addr   string
	status string
	stop   context.CancelFunc
	done   chan outcome
}

type outcome struct {
	exit int
	err  error
}

// lines collects a log.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, string(p))
	return len(p), nil
}

func (l *lines) has(parts ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.all {
		n := 0
		for _, p := range parts {
			if strings.Contains(line, p) {
				n++
			}
		}
		if n == len(parts) {
			return true
		}
	}
	return false
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.all, "")
}

// setUp creates an issuer, an engine and a configuration.
func setUp(tb testing.TB) *world {
	tb.Helper()
	dir, err := os.MkdirTemp("", "sidecar") // a short path, as a socket needs
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	w := &world{tb: tb, issuer: newFakeIssuer(tb), log: &lines{}, done: make(chan outcome, 1)}
	socket := filepath.Join(dir, "engine.sock")
	if w.engine, err = net.Listen("unix", socket); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { w.engine.Close() })
	token := filepath.Join(dir, "token")
	payload := base64.RawURLEncoding.EncodeToString([]byte(fmt.Sprintf(`{"exp":%d}`, time.Now().Add(time.Hour).Unix())))
	if err := os.WriteFile(token, []byte("e30."+payload+".c2ln"), 0o600); err != nil {
		tb.Fatal(err)
	}
	yaml := fmt.Sprintf("issuer: %s\nengine: default\nlisten: 127.0.0.1:0\nstatus_listen: 127.0.0.1:0\nengine_socket: %s\ntoken_source: file:%s\ndrain_timeout: 200ms\n",
		w.issuer.srv.URL, socket, token)
	if w.cfg, err = sidecar.ParseConfig([]byte(yaml), nil); err != nil {
		tb.Fatal(err)
	}
	return w
}

// echo serves every connection of the engine: it echoes all bytes, and
// supports half-close.
func (w *world) echo() {
	ln := w.engine
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

// run starts the sidecar and waits until it listens.
func (w *world) run() *world {
	w.tb.Helper()
	listening := make(chan [2]string, 8)
	w.launch(func(addr, status net.Addr) { listening <- [2]string{addr.String(), status.String()} })
	select {
	case a := <-listening:
		w.addr, w.status = a[0], a[1]
	case out := <-w.done:
		w.tb.Fatalf("sidecar ended: %d, %v\n%s", out.exit, out.err, w.log)
	case <-time.After(20 * time.Second):
		w.tb.Fatalf("sidecar does not listen\n%s", w.log)
	}
	return w
}

func (w *world) launch(listening func(addr, status net.Addr)) {
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	w.cfg.Program.Logger = slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.cfg.Program.Listening = listening
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		exit, err := sidecar.Run(ctx, w.cfg)
		w.done <- outcome{exit, err}
	}()
	w.tb.Cleanup(func() { cancel(); <-ended })
}

// start runs setUp and starts the sidecar with an echoing engine.
func start(tb testing.TB) *world {
	tb.Helper()
	w := setUp(tb)
	w.echo()
	return w.run()
}

// clientCert creates a client's certificate for this engine.
func (w *world) clientCert(change func(*clienttest.Leaf)) *tls.Certificate {
	w.tb.Helper()
	l := clienttest.Leaf{Run: "77/1/5"}
	if change != nil {
		change(&l)
	}
	w.issuer.mu.Lock()
	defer w.issuer.mu.Unlock()
	return w.issuer.ca.Issue(w.tb, l)
}

// clientConfig returns a client's configuration, which accepts any engine of
// the trust domain.
func (w *world) clientConfig(cert *tls.Certificate, alpn ...string) *tls.Config {
	w.tb.Helper()
	td := spiffeid.RequireTrustDomainFromString(trustDomain)
	return mtls.ClientConfig(clienttest.Source{Cert: cert, Pool: w.issuer.ca.Roots()}, td, serverName, alpn,
		func(mtls.Peer) error { return nil })
}

// dial connects with TLS and without a verdict.
func (w *world) dial(cert *tls.Certificate, alpn ...string) (*tls.Conn, error) {
	w.tb.Helper()
	tcp, err := net.Dial("tcp", w.addr)
	if err != nil {
		return nil, err
	}
	w.tb.Cleanup(func() { tcp.Close() })
	_ = tcp.SetDeadline(time.Now().Add(30 * time.Second))
	conn := tls.Client(tcp, w.clientConfig(cert, alpn...))
	return conn, conn.Handshake()
}

// open connects by mayfly/1 and returns the verdict's reason, "" for OK.
func (w *world) open(cert *tls.Certificate) (*tls.Conn, string) {
	w.tb.Helper()
	conn, err := w.dial(cert, wire.ALPNRelay)
	if err != nil {
		w.tb.Fatalf("dial: %v\n%s", err, w.log)
	}
	return conn, w.verdict(conn)
}

// verdict reads the line byte by byte, since the engine's bytes follow it.
func (w *world) verdict(conn net.Conn) string {
	w.tb.Helper()
	var line []byte
	for !bytes.HasSuffix(line, []byte("\n")) {
		var b [1]byte
		if _, err := conn.Read(b[:]); err != nil {
			w.tb.Fatalf("verdict after %q: %v\n%s", line, err, w.log)
		}
		line = append(line, b[0])
	}
	reason, err := wire.ParseVerdict(string(line))
	if err != nil {
		w.tb.Fatal(err)
	}
	return reason
}

// admitted opens a relay, which must be admitted and carry bytes.
func (w *world) admitted(cert *tls.Certificate) *tls.Conn {
	w.tb.Helper()
	conn, reason := w.open(cert)
	if reason != "" {
		w.tb.Fatalf("refused: %s\n%s", reason, w.log)
	}
	w.echoes(conn)
	return conn
}

// echoes checks that the relay carries bytes both ways.
func (w *world) echoes(conn net.Conn) {
	w.tb.Helper()
	if err := ping(conn); err != nil {
		w.tb.Fatalf("relay: %v\n%s", err, w.log)
	}
}

func ping(conn net.Conn) error {
	if _, err := conn.Write([]byte("ping")); err != nil {
		return err
	}
	var b [4]byte
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		return err
	}
	if string(b[:]) != "ping" {
		return fmt.Errorf("got %q", b)
	}
	return nil
}

// refusedWith opens a relay, which must be refused with the given reason.
func (w *world) refusedWith(cert *tls.Certificate, want string) {
	w.tb.Helper()
	conn, reason := w.open(cert)
	if reason != want {
		w.tb.Fatalf("verdict %q, want %q\n%s", reason, want, w.log)
	}
	if n, err := conn.Read(make([]byte, 1)); err != io.EOF {
		w.tb.Fatalf("after the refusal: %d bytes, %v", n, err)
	}
}

// cutOff waits until an idle relay ends, and returns the time until then.
func (w *world) cutOff(conn net.Conn) time.Duration {
	w.tb.Helper()
	began := time.Now()
	_, err := conn.Read(make([]byte, 1))
	var timeout net.Error
	if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		w.tb.Fatalf("relay lives: %v\n%s", err, w.log)
	}
	return time.Since(began)
}

func nameOf(tb testing.TB, conn *tls.Conn) string {
	tb.Helper()
	name, err := mtls.RelayName(conn.ConnectionState())
	if err != nil {
		tb.Fatal(err)
	}
	return name
}

// eventually polls until a condition is true.
func eventually(tb testing.TB, what string, f func() bool) {
	tb.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			tb.Fatalf("not in time: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// get sends a GET request to the status listener.
func (w *world) get(path string) (int, string) {
	w.tb.Helper()
	resp, err := http.Get("http://" + w.status + path)
	if err != nil {
		w.tb.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.tb.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func contains(s, part string) bool { return strings.Contains(s, part) }
