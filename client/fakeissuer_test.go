package client

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// fakeIssuer implements the issuer's API for one engine.
type fakeIssuer struct {
	t    *testing.T
	ca   *clienttest.CA
	url  string
	http *http.Server

	mu      sync.Mutex
	engines []wire.Engine
	leaf    clienttest.Leaf
	ttl     time.Duration
	feed    clienttest.Feed
	info    wire.Info
	// answer, if it returns true, has answered the n-th POST for a certificate; n
	// starts at 1. spoil changes a correct answer.
	answer func(n int, w http.ResponseWriter, r *http.Request) bool
	spoil  func(*wire.IssueResponse)
	posts  int
	feeds  int
	away   bool // requests for the feed get 503
	tokens []string
}

func startIssuer(t *testing.T, n network, ca *clienttest.CA, engines ...wire.Engine) *fakeIssuer {
	t.Helper()
	ln := n.listen(t)
	i := &fakeIssuer{
		t: t, ca: ca, url: "http://" + ln.Addr().String(), engines: engines, ttl: time.Hour,
		info: wire.Info{TrustDomain: testDomain, Audience: "mayfly:" + testDomain},
		leaf: clienttest.Leaf{Run: "1/1/1"},
	}
	i.http = &http.Server{Handler: i.handler()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = i.http.Serve(ln)
	}()
	t.Cleanup(func() {
		_ = i.http.Close()
		<-done
	})
	return i
}

func (i *fakeIssuer) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.PathInfo, func(w http.ResponseWriter, _ *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		_ = json.NewEncoder(w).Encode(i.info)
	})
	mux.HandleFunc("GET "+wire.PathCRLWait, func(w http.ResponseWriter, _ *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.feeds++
		if i.away {
			problem(w, wire.ProblemUnavailable, "the store does not answer")
			return
		}
		_, _ = w.Write(i.ca.Feed(i.t, i.feed))
	})
	mux.HandleFunc("GET "+wire.PathTrustBundle, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.ca.Root.Certificate.Raw}))
	})
	mux.HandleFunc("POST "+wire.PathCertificates, i.issue)
	return mux
}

func (i *fakeIssuer) set(f func(*fakeIssuer)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f(i)
}

func (i *fakeIssuer) get(f func(*fakeIssuer) int) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return f(i)
}

func (i *fakeIssuer) issue(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.posts++
	i.tokens = append(i.tokens, r.Header.Get("Authorization"))
	n, answer := i.posts, i.answer
	i.mu.Unlock()
	if answer != nil && answer(n, w, r) {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	var req wire.IssueRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		problem(w, wire.ProblemBadRequest, err.Error())
		return
	}
	block, _ := pem.Decode([]byte(req.CSR))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || csr.CheckSignature() != nil {
		problem(w, wire.ProblemBadCSR, "bad csr")
		return
	}
	resp := i.certify(csr, req.Engine)
	if i.spoil != nil {
		i.spoil(&resp)
	}
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(resp)
}

func (i *fakeIssuer) certify(csr *x509.CertificateRequest, engine string) wire.IssueResponse {
	leaf := i.leaf
	now := time.Now()
	leaf.Key, leaf.NotBefore, leaf.NotAfter = csr.PublicKey, now.Add(-time.Minute), now.Add(i.ttl)
	engines := i.engines
	if engine != "" {
		engines = slices.DeleteFunc(slices.Clone(engines), func(e wire.Engine) bool { return e.Name != engine })
	}
	if leaf.Engines == nil {
		for _, e := range engines {
			leaf.Engines = append(leaf.Engines, e.Name)
		}
	}
	cert := i.ca.Issue(i.t, leaf)
	var chain strings.Builder
	for _, der := range cert.Certificate {
		_ = pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	f := i.feed
	return wire.IssueResponse{
		Serial: mtls.Serial(cert.Leaf.SerialNumber), Certificate: chain.String(),
		TrustBundle: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.ca.Root.Certificate.Raw})),
		CRL:         string(i.ca.Feed(i.t, f)),
		NotBefore:   cert.Leaf.NotBefore, NotAfter: cert.Leaf.NotAfter,
		RenewAfter: cert.Leaf.NotAfter.Add(-i.ttl / 2),
		Identity:   cert.Leaf.URIs[0].String(), Rule: "rule", Engines: engines,
	}
}

func problem(w http.ResponseWriter, name, detail string) {
	w.Header().Set("Content-Type", wire.ProblemMediaType)
	w.WriteHeader(wire.ProblemStatus(name))
	_ = json.NewEncoder(w).Encode(wire.Problem{Type: wire.ProblemPrefix + name, Title: name, Status: wire.ProblemStatus(name), Detail: detail})
}
