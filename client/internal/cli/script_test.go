package cli_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// TestScripts runs whole commands and checks their messages when they fail.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Values["t"] = e.T()
			e.Values["asked"] = make(chan struct{}, 1)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"ends": ends, "stand": scriptStand, "job": scriptJob, "asked": scriptAsked},
	})
}

// ends runs a program and compares its exit code: ends CODE PROGRAM ARGS...
func ends(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	if err != nil || neg {
		ts.Fatalf("usage: ends CODE PROGRAM ARGS...")
	}
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// scriptStand starts a stand with one fault and sets the environment for it: stand
// FAULT.
func scriptStand(ts *testscript.TestScript, _ bool, args []string) {
	s := newStand(ts.Value("t").(testing.TB))
	f, ok := scriptFaults[args[0]]
	if !ok {
		ts.Fatalf("no fault %s", args[0])
	}
	s.set(func() { f(s) })
	if s.token != nil {
		answer := s.token
		s.set(func() {
			s.token = func(w http.ResponseWriter, r *http.Request) bool {
				ts.Value("asked").(chan struct{}) <- struct{}{}
				return answer(w, r)
			}
		})
	}
	useEnvironment(ts, s.env)
}

// scriptJob starts a real issuer, and a job whose token has these claims: job
// CLAIM=VALUE...
func scriptJob(ts *testscript.TestScript, _ bool, args []string) {
	tb := ts.Value("t").(testing.TB)
	i := issuertest.Start(tb, issuertest.Options{})
	claims := map[string]any{}
	for _, a := range args {
		name, value, _ := strings.Cut(a, "=")
		claims[name] = value
	}
	job := i.GitHub.NewJob(claims)
	useEnvironment(ts, append((&stand{env: newStand(tb).env}).env,
		"MAYFLY_ISSUER="+i.URL, "MAYFLY_CA_FILE="+i.CAFile, "MAYFLY_TRUST_ANCHOR="+i.TrustAnchor,
		"ACTIONS_ID_TOKEN_REQUEST_URL="+job.RequestURL, "ACTIONS_ID_TOKEN_REQUEST_TOKEN="+job.RequestToken))
}

// scriptAsked waits until a token has been requested.
func scriptAsked(ts *testscript.TestScript, _ bool, _ []string) {
	select {
	case <-ts.Value("asked").(chan struct{}):
	case <-time.After(20 * time.Second):
		ts.Fatalf("no token was asked for")
	}
}

func useEnvironment(ts *testscript.TestScript, env []string) {
	for _, name := range []string{"MAYFLY_CA_FILE", "MAYFLY_TRUST_ANCHOR", "MAYFLY_AUDIENCE", "MAYFLY_ENGINE"} {
		ts.Setenv(name, "")
	}
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		ts.Setenv(name, value)
	}
}

// scriptFaults are the possible faults. Each breaks one thing.
var scriptFaults = map[string]func(*stand){
	"nothing": func(*stand) {},
	// The issuer.
	"issuer-no-host":   func(s *stand) { s.env = append(s.env, "MAYFLY_ISSUER=https://mayfly.invalid") },
	"issuer-no-listen": func(s *stand) { s.issuer.Close() },
	"issuer-https": func(s *stand) { // and the URL says http
		s.env = append(s.env, "MAYFLY_ISSUER="+strings.Replace(ownTLS(s), "https:", "http:", 1))
	},
	"issuer-http": func(s *stand) {
		s.env = append(s.env, "MAYFLY_ISSUER="+strings.Replace(s.issuer.URL, "http:", "https:", 1))
	},
	"issuer-own-root":   func(s *stand) { s.env = append(s.env, "MAYFLY_ISSUER="+ownTLS(s)) },
	"issuer-page":       func(s *stand) { s.api = answer(404, "text/html", "<html>") },
	"issuer-server-row": func(s *stand) { s.leaf.Usage = x509.ExtKeyUsageServerAuth },
	"blocked":           func(s *stand) { s.issue = problem(wire.ProblemBlocked, "issuing is blocked until noon") },
	// The token.
	"token-slow": func(s *stand) { s.token = silent },
	"no-platform": func(s *stand) {
		s.env = append(s.env, "ACTIONS_ID_TOKEN_REQUEST_URL=", "GITHUB_ACTIONS=")
	},
	// The engine.
	"engine-no-host":   func(s *stand) { s.endpoint = "tcp://engine.invalid:8080" },
	"engine-no-listen": func(s *stand) { s.engine.Close() },
	"engine-frozen":    func(s *stand) { s.frozen = true },
	"engine-wrong-port": func(s *stand) {
		other := httptest.NewServer(http.NotFoundHandler())
		s.tb.Cleanup(other.Close)
		s.endpoint = "tcp://" + other.Listener.Addr().String()
	},
	"engine-another": func(s *stand) {
		s.startEngine(clienttest.Leaf{ID: "/engine/arm/fly/1/m", Engines: []string{"arm"}, DNS: []string{standServer}, Usage: x509.ExtKeyUsageServerAuth})
	},
	"engine-limit": func(s *stand) { s.verdict = wire.ReasonLimit },
}

// ownTLS serves the stand's issuer with a certificate of mayfly's own root and also
// sends that root. It returns the URL.
func ownTLS(s *stand) string {
	cert := s.ca.Issue(s.tb, clienttest.Leaf{DNS: []string{"localhost"}, Usage: x509.ExtKeyUsageServerAuth, NotAfter: time.Now().Add(time.Hour)})
	cert.Certificate = append(cert.Certificate, s.ca.Root.Certificate.Raw)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(s.serveIssuer))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // it would log the expected errors
	srv.StartTLS()
	s.tb.Cleanup(srv.Close)
	return strings.Replace(srv.URL, "127.0.0.1", "localhost", 1)
}
