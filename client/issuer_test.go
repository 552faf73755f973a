package client

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// always answers each POST for a certificate with the same problem.
func always(name, detail string) func(*world) {
	return func(w *world) {
		w.issuer.answer = func(_ int, w http.ResponseWriter, _ *http.Request) bool {
			problem(w, name, detail)
			return true
		}
	}
}

// first answers the first n POSTs with a problem.
func first(n int, name string, header ...string) func(*world) {
	return func(w *world) {
		w.issuer.answer = func(i int, w http.ResponseWriter, _ *http.Request) bool {
			if i > n {
				return false
			}
			for j := 0; j < len(header); j += 2 {
				w.Header().Set(header[j], header[j+1])
			}
			problem(w, name, "for now")
			return true
		}
	}
}

func raw(status int, media, body string) func(*world) {
	return func(w *world) {
		w.issuer.answer = func(_ int, w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", media)
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
			return true
		}
	}
}

// TestIssuerAnswers checks the result of New for an issuer's answers. Time is the bubble's.
func TestIssuerAnswers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		spoil  func(*world)
		status int // of a *wire.Problem; -1 for an issuer that is unreachable; 0 for success
		says   string
		tokens int // requests for tokens
		most   time.Duration
	}{
		{name: "created", tokens: 1},
		{name: "401", spoil: always(wire.ProblemBadToken, "token expired at noon"), status: 401, says: "token expired at noon", tokens: 1},
		{name: "403", spoil: always(wire.ProblemDenied, "claim ref is refs/heads/x"), status: 403, says: "claim ref is refs/heads/x", tokens: 1},
		{name: "403 blocked", spoil: always(wire.ProblemBlocked, "run 7"), status: 403, says: "run 7", tokens: 1},
		{name: "400", spoil: always(wire.ProblemBadCSR, "weak key"), status: 400, says: "weak key", tokens: 1},
		{name: "409, then another token", spoil: first(1, wire.ProblemReplay), tokens: 2, most: 2 * time.Second},
		{name: "409 for every token", spoil: always(wire.ProblemReplay, "used before"), status: 409, says: "used before", tokens: 2, most: 2 * time.Second},
		{name: "409 for the one token there is", spoil: func(w *world) {
			always(wire.ProblemReplay, "used before")(w)
			w.source.fixed = "a.b.c"
		}, status: 409, says: "used before", tokens: 2, most: 2 * time.Second},
		{name: "429 with a time", spoil: first(1, wire.ProblemRateLimited, "Retry-After", "7"), tokens: 2, most: 8 * time.Second},
		{name: "429 for good", spoil: always(wire.ProblemRateLimited, "slow down"), status: 429, says: "slow down", tokens: 5, most: time.Minute},
		{name: "429 with a time beyond all patience", spoil: first(9, wire.ProblemRateLimited, "Retry-After", "86400"), status: 429, tokens: 1},
		{name: "503 twice", spoil: first(2, wire.ProblemUnavailable), tokens: 3, most: 10 * time.Second},
		{name: "503 for good", spoil: always(wire.ProblemUnavailable, "the store is down"), status: 503, says: "the store is down", tokens: 5, most: time.Minute},
		{name: "500 of a proxy", spoil: raw(502, "text/html", "<h1>\x1b[31mBad Gateway"), status: 502, says: "Bad Gateway", tokens: 5, most: time.Minute},
		{name: "problem that paints the terminal", spoil: always(wire.ProblemDenied, "\x1b[31mred\u202e"), status: 403, says: "[31mred (403 denied)", tokens: 1},
		{name: "200 of another server", spoil: raw(200, "text/html", "<h1>hello"), status: 200, tokens: 1},
		{name: "201 with garbage", spoil: raw(201, "application/json", "{"), status: -1, says: "not a mayfly issuer", tokens: 1},
		{name: "redirect", spoil: func(w *world) {
			w.issuer.answer = func(_ int, w http.ResponseWriter, r *http.Request) bool {
				http.Redirect(w, r, "https://elsewhere.example.com/", http.StatusTemporaryRedirect)
				return true
			}
		}, status: -1, says: "redirect, which is refused, to https://elsewhere.example.com", tokens: 1},
		{name: "too large", spoil: func(w *world) {
			w.issuer.answer = func(_ int, w http.ResponseWriter, _ *http.Request) bool {
				w.WriteHeader(http.StatusCreated)
				_, _ = io.Copy(w, io.LimitReader(zeros{}, wire.MaxResponseBytes+1))
				return true
			}
		}, status: -1, says: "larger than", tokens: 1},
		{name: "hangs up once", spoil: func(w *world) {
			w.issuer.answer = func(n int, _ http.ResponseWriter, _ *http.Request) bool {
				if n == 1 {
					panic(http.ErrAbortHandler)
				}
				return false
			}
		}, tokens: 2, most: 2 * time.Second},
		{name: "slow for good", spoil: func(w *world) {
			w.issuer.answer = func(_ int, _ http.ResponseWriter, r *http.Request) bool {
				_, _ = io.Copy(io.Discard, r.Body) // else the server does not notice a hang-up
				<-r.Context().Done()
				return true
			}
		}, status: -1, says: "no answer in time", tokens: 5, most: mintTotal},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, &memory{})
				if tt.spoil != nil {
					tt.spoil(w)
				}
				start := time.Now()
				c, err := New(t.Context(), w.config())
				switch {
				case tt.status == 0:
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
				case tt.status == -1:
					as[*IssuerUnreachableError](t, err)
				default:
					if p := as[*wire.Problem](t, err); p.Status != tt.status {
						t.Errorf("%+v", p)
					}
				}
				if tt.says != "" && !strings.Contains(err.Error(), tt.says) {
					t.Errorf("says %q, want %q in it", err, tt.says)
				}
				if n := w.source.count(); n != tt.tokens {
					t.Errorf("%d tokens asked for, want %d", n, tt.tokens)
				}
				if took := time.Since(start); took > tt.most {
					t.Errorf("took %v, want at most %v", took, tt.most)
				}
			})
		})
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func TestIssuerDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &memory{})
		cfg := w.config()
		w.net.(*memory).refuse = true
		_, err := New(t.Context(), cfg)
		if u := as[*IssuerUnreachableError](t, err); u.Final || u.URL != w.issuer.url {
			t.Errorf("%+v", u)
		}
		// If the caller cancels, New returns at once.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if _, err := New(ctx, cfg); err == nil || time.Since(start) > time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

// The client checks each part of an answer against the certificate.
func TestAnswerIsChecked(t *testing.T) {
	t.Parallel()
	stranger := clienttest.New(t, testDomain)
	for _, tt := range []struct {
		name  string
		spoil func(*world)
		says  string
	}{
		{name: "whole"},
		{name: "another key", spoil: func(w *world) {
			w.issuer.leaf.Key = stranger.Root.Key.Public()
			w.issuer.spoil = w.swap(clienttest.Leaf{Run: "1"})
		}, says: "another key"},
		{name: "server certificate", spoil: func(w *world) { w.issuer.leaf = clienttest.Leaf{Usage: x509.ExtKeyUsageServerAuth} }, says: "admits this job as an engine"},
		{name: "another serial", spoil: response(func(r *wire.IssueResponse) { r.Serial = strings.Repeat("0", 32) }), says: "serial is not"},
		{name: "another identity", spoil: response(func(r *wire.IssueResponse) { r.Identity += "x" }), says: "identity is not"},
		{name: "another end", spoil: response(func(r *wire.IssueResponse) { r.NotAfter = r.NotAfter.Add(time.Hour) }), says: "times are not"},
		{name: "renewal after the end", spoil: response(func(r *wire.IssueResponse) { r.RenewAfter = r.NotAfter }), says: "renew_after"},
		{name: "another root's bundle", spoil: response(func(r *wire.IssueResponse) { r.TrustBundle = rootPEM(stranger) }), says: "not of the trust bundle"},
		{name: "no bundle", spoil: response(func(r *wire.IssueResponse) { r.TrustBundle = "" }), says: "trust bundle"},
		{name: "no chain", spoil: response(func(r *wire.IssueResponse) { r.Certificate = "x" }), says: "certificate"},
		{name: "no revocation list", spoil: response(func(r *wire.IssueResponse) { r.CRL = "" }), says: "revocation feed"},
		{name: "another's revocation list", spoil: func(w *world) {
			feed := string(stranger.Feed(w.t, clienttest.Feed{}))
			response(func(r *wire.IssueResponse) { r.CRL = feed })(w)
		}, says: "not signed by a known root"},
		{name: "a stale revocation list", spoil: func(w *world) { w.issuer.feed.ThisUpdate = time.Now().Add(-time.Hour) }, says: "next update"},
		{name: "a floor ahead", spoil: func(w *world) { w.issuer.feed.Floor = time.Now().Add(time.Hour) }, says: "before everything was revoked"},
		{name: "an engine that is not granted", spoil: response(func(r *wire.IssueResponse) {
			r.Engines = append(r.Engines, wire.Engine{Name: "other"})
		}), says: `engine "other" is not in the certificate`},
		{name: "not the engine that was asked for", spoil: response(func(r *wire.IssueResponse) { r.Engines = nil }), says: `not for engine "default"`},
		{name: "over before it came", spoil: func(w *world) { w.issuer.ttl = -time.Second }, says: "this machine's clock says"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, loopback{})
			if tt.spoil != nil {
				tt.spoil(w)
			}
			cfg := w.config()
			cfg.Engine = testEngine
			c, err := New(t.Context(), cfg)
			if err == nil {
				defer c.Close()
			}
			if tt.says == "" && err != nil || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)) {
				t.Errorf("error %v, want %q in it", err, tt.says)
			}
		})
	}
}

func response(change func(*wire.IssueResponse)) func(*world) {
	return func(w *world) { w.issuer.spoil = change }
}

// swap answers with a certificate for another key than the CSR's.
func (w *world) swap(l clienttest.Leaf) func(*wire.IssueResponse) {
	return func(r *wire.IssueResponse) {
		cert := w.ca.Issue(w.t, l)
		block, rest := pem.Decode([]byte(r.Certificate))
		block.Bytes = cert.Certificate[0]
		r.Certificate = string(pem.EncodeToMemory(block)) + string(rest)
		r.Serial = fmt.Sprintf("%032x", cert.Leaf.SerialNumber)
		r.NotBefore, r.NotAfter = cert.Leaf.NotBefore, cert.Leaf.NotAfter
		r.RenewAfter = r.NotAfter.Add(-time.Minute)
	}
}

func rootPEM(ca *clienttest.CA) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Root.Certificate.Raw}))
}

func anchorOf(ca *clienttest.CA) string {
	return fmt.Sprintf("sha256:%x", sha256.Sum256(ca.Root.Certificate.Raw))
}

// If a root is pinned, the client trusts no other root.
func TestTrustAnchor(t *testing.T) {
	t.Parallel()
	w := newWorld(t, loopback{})
	stranger := clienttest.New(t, testDomain)
	c := w.client(func(c *Config) { c.TrustAnchor = anchorOf(w.ca) })
	if _, err := c.Issuer().TrustBundle(t.Context()); err != nil {
		t.Error(err)
	}
	cfg := w.config()
	cfg.TrustAnchor = anchorOf(stranger)
	if _, err := New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "its root is not the one of the trust anchor") {
		t.Errorf("another root than the pinned one: %v", err)
	}
	// In a bundle with a second root, only the pinned root is trusted.
	w.issuer.set(func(i *fakeIssuer) { i.spoil = func(r *wire.IssueResponse) { r.TrustBundle += rootPEM(stranger) } })
	pinned := w.client(func(c *Config) { c.TrustAnchor = anchorOf(w.ca) })
	if roots := pinned.Credential().RootCertificates(); len(roots) != 1 || !roots[0].Equal(w.ca.Root.Certificate) {
		t.Errorf("%d roots are believed", len(roots))
	}
}

// TestIssuerTLS checks the verification of the issuer's own TLS certificate.
func TestIssuerTLS(t *testing.T) {
	t.Parallel()
	ca, stranger := clienttest.New(t, testDomain), clienttest.New(t, testDomain)
	file := func(ca *clienttest.CA) string {
		name := filepath.Join(t.TempDir(), "root.crt")
		if err := os.WriteFile(name, []byte(rootPEM(ca)), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for _, tt := range []struct {
		name         string
		cert         *clienttest.CA // whose certificate the issuer serves
		dns          string
		withRoot     bool
		file, anchor *clienttest.CA
		ok           bool
		hint         string // begins so
	}{
		{name: "system roots", cert: ca, hint: "set ca_file"},
		{name: "system roots, and the root sent", cert: ca, withRoot: true, hint: "set trust_anchor"},
		{name: "its root by file", cert: ca, file: ca, ok: true},
		{name: "another root by file", cert: ca, file: stranger, hint: "set ca_file"},
		{name: "its root pinned and sent", cert: ca, withRoot: true, anchor: ca, ok: true},
		{name: "its root pinned and not sent", cert: ca, anchor: ca, hint: "set ca_file"},
		{name: "another root pinned", cert: ca, withRoot: true, anchor: stranger, hint: "correct trust_anchor"},
		{name: "pinned, another name", cert: ca, dns: "other.example.com", withRoot: true, anchor: ca, hint: "correct the host in the issuer's URL"},
		{name: "by file and another pinned", cert: ca, file: ca, anchor: stranger, ok: true},
		{name: "by file, of another name", cert: ca, dns: "other.example.com", file: ca, hint: "correct the host in the issuer's URL"},
		{name: "stranger sends the pinned root along", cert: stranger, withRoot: true, anchor: ca, hint: "correct the issuer's URL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.dns == "" {
				tt.dns = "localhost"
			}
			cert := tt.cert.Issue(t, clienttest.Leaf{DNS: []string{tt.dns}, Usage: x509.ExtKeyUsageServerAuth})
			if tt.withRoot {
				cert.Certificate = append(cert.Certificate, ca.Root.Certificate.Raw)
			}
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, `{"trust_domain":"x"}`)
			}))
			srv.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
			srv.Config.ErrorLog = log.New(io.Discard, "", 0) // it would log the expected refusals
			srv.StartTLS()
			defer srv.Close()
			var caFile, anchor string
			if tt.file != nil {
				caFile = file(tt.file)
			}
			if tt.anchor != nil {
				anchor = anchorOf(tt.anchor)
			}
			_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
			i, err := NewIssuer("https://localhost:"+port, caFile, anchor)
			if err != nil {
				t.Fatal(err)
			}
			defer i.CloseIdleConnections()
			_, err = i.Info(t.Context())
			if tt.ok != (err == nil) {
				t.Fatalf("error %v", err)
			}
			if err != nil {
				u := as[*IssuerUnreachableError](t, err)
				if !u.Final || !strings.HasPrefix(Hint(err), tt.hint) {
					t.Errorf("%+v, hint %q", u, Hint(err))
				}
			}
		})
	}
}

func TestNewIssuerRefuses(t *testing.T) {
	t.Parallel()
	digest := strings.Repeat("0a", sha256.Size)
	for _, tt := range []struct {
		url, file, anchor string
		ok                bool
	}{
		{url: "https://issuer.example.com", ok: true},
		{url: "https://issuer.example.com/base/", ok: true},
		{url: "http://127.0.0.1:8443", ok: true},
		{url: "http://[::1]:8443", ok: true},
		{url: "http://localhost:8443", ok: true},
		{url: "https://issuer.example.com", anchor: "sha256:" + digest, ok: true},
		{url: ""},
		{url: "issuer.example.com"},
		{url: "http://issuer.example.com"},
		{url: "http://10.0.0.1"},
		{url: "http://localhost.example.com"},
		{url: "ftp://issuer.example.com"},
		{url: "https://"},
		{url: "https://user:pw@issuer.example.com"},
		{url: "https://issuer.example.com?x=1"},
		{url: "https://issuer.example.com#x"},
		{url: "https://issuer.example.com", anchor: digest},
		{url: "https://issuer.example.com", anchor: "sha256:" + digest[2:]},
		{url: "https://issuer.example.com", anchor: "sha1:" + digest},
		{url: "https://issuer.example.com", file: "/does/not/exist"},
		{url: "https://issuer.example.com", file: os.Args[0]},
	} {
		if _, err := NewIssuer(tt.url, tt.file, tt.anchor); (err == nil) != tt.ok {
			t.Errorf("%+v: %v", tt, err)
		} else if err != nil && strings.Contains(err.Error(), "pw") {
			t.Errorf("%q shows the password", err)
		}
	}
}

// Plain HTTP goes only to loopback addresses, whatever localhost resolves to.
func TestHTTPStaysOnLoopback(t *testing.T) {
	t.Parallel()
	for address, ok := range map[string]bool{"127.0.0.1:1": true, "[::1]:1": true, "10.0.0.1:1": false, "[2001:db8::1]:1": false, "x": false} {
		if err := loopbackOnly("tcp", address, nil); (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// WaitCRL returns nil for a 204. Report and Feed send and return the right data.
func TestIssuerCalls(t *testing.T) {
	t.Parallel()
	ca := clienttest.New(t, testDomain)
	serial := clienttest.Serial(t)
	mux := http.NewServeMux()
	var after url.Values
	mux.HandleFunc("GET /base"+wire.PathCRLWait, func(w http.ResponseWriter, r *http.Request) {
		after = r.URL.Query()
		if after.Get("after") == "5" {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		_, _ = w.Write(ca.Feed(t, clienttest.Feed{Number: 5, Revoked: []*big.Int{serial}}))
	})
	mux.HandleFunc("POST /base"+wire.PathSessions, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer tok" {
			problem(w, wire.ProblemBadToken, "no")
			return
		}
		_, _ = io.WriteString(w, `{"accepted":1}`)
	})
	srv := httptest.NewServer(mux)
	defer srv.Close()
	i, err := NewIssuer(srv.URL+"/base/", "", "")
	if err != nil {
		t.Fatal(err)
	}
	feed, err := i.Feed(t.Context(), ca.RootCertificates())
	if err != nil || feed.Number != 5 || feed.Len() != 1 || after.Get("after") != "0" {
		t.Errorf("feed %+v, %v", feed, err)
	}
	if b, err := i.WaitCRL(t.Context(), 5); b != nil || err != nil {
		t.Errorf("no change: %d bytes, %v", len(b), err)
	}
	if r, err := i.Report(t.Context(), "tok", wire.SessionsRequest{}); err != nil || r.Accepted != 1 {
		t.Errorf("report: %+v, %v", r, err)
	}
	if _, err := i.Report(t.Context(), "other", wire.SessionsRequest{}); as[*wire.Problem](t, err).Status != 401 {
		t.Errorf("report: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := i.Info(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// If the rule grants the other profile, the error names the rule and the change.
func TestOtherProfile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, loopback{})
	i, err := NewIssuer(w.issuer.url, "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer i.CloseIdleConnections()
	_, err = i.Mint(t.Context(), MintRequest{Source: w.source, Audience: "mayfly:" + testDomain, Usage: x509.ExtKeyUsageServerAuth})
	if err == nil || !strings.Contains(err.Error(), "of the policy admits this engine as a client") || !strings.Contains(Hint(err), "profile: server") {
		t.Errorf("%v\n%s", err, Hint(err))
	}
}
