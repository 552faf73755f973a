package cli_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/internal/cli"
	"github.com/mayfly-ca/mayfly/client/wire"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"mayfly": func() {
			os.Exit(cli.Run(context.Background(), os.Args[1:], cli.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
		},
		"dialer": func() { os.Exit(dialer(os.Args[1:])) },
	})
}

// outcome is the output and the exit code of a command.
type outcome struct {
	stdout, stderr string
	code           int
}

// run runs mayfly as a separate process.
func (s *stand) run(args ...string) outcome {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(s.tb.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "mayfly", args...)
	cmd.Env = s.env
	return finish(s.tb, cmd)
}

func finish(tb testing.TB, cmd *exec.Cmd) outcome {
	tb.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		tb.Fatal(err)
	}
	return outcome{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

func (o outcome) check(t *testing.T, code int, stderr ...string) {
	t.Helper()
	if o.code != code {
		t.Errorf("exit code %d, want %d\nstdout: %s\nstderr: %s", o.code, code, o.stdout, o.stderr)
	}
	for _, s := range stderr {
		if !strings.Contains(o.stderr, s) {
			t.Errorf("stderr lacks %q:\n%s", s, o.stderr)
		}
	}
	if code != 0 && !strings.Contains(o.stderr, "mayfly: hint: ") && code < 126 {
		t.Errorf("no hint:\n%s", o.stderr)
	}
	for _, secret := range []string{"TOKEN-SIGNATURE", "job-secret", "PRIVATE KEY"} {
		if strings.Contains(o.stdout+o.stderr, secret) {
			t.Errorf("the output holds a secret (%s):\n%s%s", secret, o.stdout, o.stderr)
		}
	}
}

// TestWhatAPersonSees checks the message and the exit code of every failure.
func TestWhatAPersonSees(t *testing.T) {
	t.Parallel()
	const reached = "through the tunnel"
	down := func(s *stand) string { // an address without a listener
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			s.tb.Fatal(err)
		}
		defer ln.Close()
		return ln.Addr().String()
	}
	for _, tt := range []struct {
		name    string
		break_  func(s *stand)
		code    int
		stderr  []string
		reaches bool
	}{
		{name: "all is well", code: 0, stderr: []string{"by rule app-main for default"}, reaches: true},

		{name: "token endpoint 403 pending, for good", code: 1, break_: func(s *stand) {
			s.token = answer(403, "text/plain", "Can't issue ID_TOKEN for job in 'Pending' state")
		}, stderr: []string{"id token from", "403", "Pending"}},
		{name: "token endpoint 403", code: 1, break_: func(s *stand) { s.token = answer(403, "text/plain", "no") },
			stderr: []string{"id token from", "403", "id-token: write"}},
		{name: "token endpoint 500", code: 1, break_: func(s *stand) { s.token = answer(500, "text/plain", "oops") },
			stderr: []string{"id token from", "500", "attempts"}},
		{name: "token endpoint garbage", code: 1, break_: func(s *stand) { s.token = answer(200, "text/html", "<html>") },
			stderr: []string{"id token from"}},
		{name: "token endpoint redirects", code: 1, break_: func(s *stand) {
			s.token = func(w http.ResponseWriter, r *http.Request) bool {
				http.Redirect(w, r, "/elsewhere", http.StatusFound)
				return true
			}
		}, stderr: []string{"id token from", "redirect"}},
		{name: "token endpoint floods", code: 1, break_: func(s *stand) {
			s.token = answer(200, "application/json", `{"value":"`+strings.Repeat("x", 1<<20)+`"}`)
		}, stderr: []string{"id token from", "larger than"}},
		{name: "token endpoint by http elsewhere", code: 1, break_: func(s *stand) {
			s.env = append(s.env, "ACTIONS_ID_TOKEN_REQUEST_URL=http://tokens.example.com/token")
		}, stderr: []string{"id token from", "not an https URL"}},
		{name: "token endpoint down", code: 1, break_: func(s *stand) { s.tokens.Close() },
			stderr: []string{"id token from", "refused"}},
		{name: "no permission", code: 1, break_: func(s *stand) { s.env = append(s.env, "ACTIONS_ID_TOKEN_REQUEST_URL=", "GITHUB_ACTIONS=true") },
			stderr: []string{"id-token: write"}},

		{name: "issuer down", code: 4, break_: func(s *stand) { s.env = append(s.env, "MAYFLY_ISSUER=http://"+down(s)) },
			stderr: []string{"issuer http://127.0.0.1", "connection refused"}},
		{name: "issuer not named", code: 2, break_: func(s *stand) { s.env = append(s.env, "MAYFLY_ISSUER=") },
			stderr: []string{"no issuer is named", "MAYFLY_ISSUER"}},
		{name: "issuer off loopback by http", code: 2, break_: func(s *stand) { s.env = append(s.env, "MAYFLY_ISSUER=http://mayfly.example.com") },
			stderr: []string{"https"}},
		{name: "issuer 401", code: 1, break_: func(s *stand) { s.issue = problem(wire.ProblemBadToken, "audience is another") },
			stderr: []string{"audience is another", "401", "mayfly doctor"}},
		{name: "issuer 403 denied", code: 3, break_: func(s *stand) {
			s.issue = problem(wire.ProblemDenied, "no rule admits this token", "app-main", "ref")
		}, stderr: []string{"no rule admits this token", "policy.yaml", `- name: "acme-app-main"`}},
		{name: "issuer grants several engines", code: 2, break_: func(s *stand) {
			s.issue = problem(wire.ProblemSeveralEngines, "rule app-main grants several engines: default, arm")
		}, stderr: []string{"rule app-main grants several engines: default, arm", "--engine"}},
		{name: "issuer 403 blocked", code: 3, break_: func(s *stand) { s.issue = problem(wire.ProblemBlocked, "blocked until noon") },
			stderr: []string{"blocked until noon", "mayfly blocks list"}},
		{name: "issuer 409", code: 1, break_: func(s *stand) { s.issue = problem(wire.ProblemReplay, "token was used before") },
			stderr: []string{"token was used before", "a token of its own"}},
		{name: "issuer 429", code: 4, break_: func(s *stand) { s.issue = problem(wire.ProblemRateLimited, "slow down") },
			stderr: []string{"slow down", "try again"}},
		{name: "issuer 503", code: 4, break_: func(s *stand) { s.issue = problem(wire.ProblemUnavailable, "the store is away") },
			stderr: []string{"the store is away", "try again"}},
		{name: "issuer 500", code: 1, break_: func(s *stand) { s.issue = problem(wire.ProblemInternal, "") },
			stderr: []string{"500", "issuer's log"}},
		{name: "issuer answers a page", code: 1, break_: func(s *stand) { s.issue = answer(404, "text/html", "<html>") },
			stderr: []string{"not a mayfly issuer (404 Not Found)", "--issuer"}},
		{name: "issuer answers another page", code: 4, break_: func(s *stand) { s.api = answer(200, "text/html", "<html>") },
			stderr: []string{"not a mayfly issuer", "correct --issuer"}},
		{name: "issuer redirects", code: 4, break_: func(s *stand) {
			s.api = func(w http.ResponseWriter, r *http.Request) bool {
				http.Redirect(w, r, "https://elsewhere.example.com"+r.URL.Path, http.StatusPermanentRedirect)
				return true
			}
		}, stderr: []string{"redirect, which is refused", "https://elsewhere.example.com"}},
		{name: "issuer floods", code: 4, break_: func(s *stand) {
			s.issue = answer(201, "application/json", strings.Repeat(" ", wire.MaxResponseBytes+1))
		},
			stderr: []string{"is larger than"}},
		{name: "issuer of an unknown CA", code: 4, break_: func(s *stand) {
			other := httptest.NewTLSServer(http.NotFoundHandler())
			s.tb.Cleanup(other.Close)
			s.env = append(s.env, "MAYFLY_ISSUER="+other.URL)
		}, stderr: []string{"does not verify", "--ca-file"}},
		{name: "issuer signs another key", code: 1, break_: func(s *stand) { s.issue = s.signAnotherKey },
			stderr: []string{"certificate is for another key"}},
		{name: "issuer has another root", code: 1, break_: func(s *stand) {
			s.env = append(s.env, "MAYFLY_TRUST_ANCHOR=sha256:"+strings.Repeat("ab", 32))
		}, stderr: []string{"its root is not the one of the trust anchor"}},
		{name: "issuer grants another engine", code: 1, break_: func(s *stand) { s.leaf.Engines = []string{"other"} },
			stderr: []string{`engine "default" is not in the certificate`}},
		{name: "tokens are to be for others", code: 2, break_: func(s *stand) { s.env = append(s.env, "MAYFLY_AUDIENCE=sts.amazonaws.com") },
			stderr: []string{`audience "sts.amazonaws.com" does not begin with "mayfly:"`, "leave --audience"}},
		{name: "issuer asks for tokens of others", code: 1, break_: func(s *stand) {
			s.api = func(w http.ResponseWriter, r *http.Request) bool {
				return r.URL.Path == wire.PathInfo && answer(200, "application/json", `{"trust_domain":"ci.example.com","audience":"sts.amazonaws.com"}`)(w, r)
			}
		}, stderr: []string{"sts.amazonaws.com", "refused"}},

		{name: "engine asleep", code: 5, break_: func(s *stand) { s.engine.Close() },
			stderr: []string{"waiting for engine default", "did not answer within", "ending the command"}},
		{name: "engine frozen", code: 5, break_: func(s *stand) { s.frozen = true },
			stderr: []string{"did not answer within", "ending the command"}},
		{name: "engine refuses: revoked", code: 5, break_: func(s *stand) { s.verdict = wire.ReasonRevoked },
			stderr: []string{"engine default: certificate revoked, serial ", "mayfly certs show"}},
		{name: "engine refuses: wrong engine", code: 5, break_: func(s *stand) { s.verdict = wire.ReasonWrongEngine },
			stderr: []string{"certificate is not granted for this engine", "--engine"}},
		{name: "engine refuses: expired", code: 5, break_: func(s *stand) { s.verdict = wire.ReasonExpired },
			stderr: []string{"certificate expired", "clocks"}},
		{name: "engine refuses: feed stale, for good", code: 5, break_: func(s *stand) { s.verdict = wire.ReasonFeedStale },
			stderr: []string{"no fresh revocation list", "does not reach the issuer"}},
		{name: "engine refuses: draining, for good", code: 5, break_: func(s *stand) { s.verdict = wire.ReasonDraining },
			stderr: []string{"about to stop", "run it again"}},
		{name: "engine trusts another root", code: 5, break_: func(s *stand) {
			s.startEngineTrusting(clienttest.Leaf{ID: "/engine/default/fly/1/m", DNS: []string{standServer}, Usage: x509.ExtKeyUsageServerAuth}, clienttest.New(s.tb, standDomain).Roots())
		}, stderr: []string{"trusts the root of another issuer", "the same issuer"}},
		{name: "engine does not speak TLS", code: 5, break_: func(s *stand) {
			other := httptest.NewServer(http.NotFoundHandler())
			s.tb.Cleanup(other.Close)
			s.endpoint = "tcp://" + other.Listener.Addr().String()
		}, stderr: []string{"it does not speak TLS"}},
		{name: "engine cuts: expired", code: 5, break_: func(s *stand) { s.cut = wire.ReasonExpired },
			stderr: []string{"certificate expired", "it ended the connection"}},
		{name: "engine refuses: limit, for good", code: 5, break_: func(s *stand) { s.verdict = wire.ReasonLimit },
			stderr: []string{"limit"}},
		{name: "engine cuts: revoked", code: 5, break_: func(s *stand) { s.cut = wire.ReasonRevoked },
			stderr: []string{"engine default: certificate revoked, serial ", "it ended the connection", "ending the command"}},
		{name: "engine is another", code: 5, break_: func(s *stand) {
			s.startEngine(clienttest.Leaf{ID: "/engine/other/fly/1/m", Engines: []string{"other"}, DNS: []string{standServer}, Usage: x509.ExtKeyUsageServerAuth})
		}, stderr: []string{"is not engine default"}},
		{name: "engine has another name", code: 5, break_: func(s *stand) {
			s.startEngine(clienttest.Leaf{ID: "/engine/default/fly/1/m", DNS: []string{"other.example.com"}, Usage: x509.ExtKeyUsageServerAuth})
		}, stderr: []string{"is not engine default"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newStand(t)
			if tt.break_ != nil {
				s.set(func() { tt.break_(s) })
			}
			command := []string{"exec", "--no-wait", "--wake-timeout", "2s", "--", "dialer", "retry"}
			if tt.reaches {
				command[len(command)-1] = "echo"
			}
			o := s.run(command...)
			t.Logf("exit code %d\n%s", o.code, o.stderr) // -v shows the output
			o.check(t, tt.code, tt.stderr...)
			if got := strings.Contains(o.stdout, reached); got != tt.reaches {
				t.Errorf("reached the engine: %v, want %v\n%s%s", got, tt.reaches, o.stdout, o.stderr)
			}
		})
	}
}

// silent takes a request and never answers it.
func silent(_ http.ResponseWriter, r *http.Request) bool {
	<-r.Context().Done()
	return true
}

// signAnotherKey answers with a certificate for another key than the requested one.
func (s *stand) signAnotherKey(w http.ResponseWriter, _ *http.Request) bool {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.tb.Error(err)
		return false
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		s.tb.Error(err)
		return false
	}
	body, err := json.Marshal(wire.IssueRequest{CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))})
	if err != nil {
		s.tb.Error(err)
		return false
	}
	s.sign(w, body)
	return true
}

// TestPendingPasses checks that mayfly waits for a transient error of the token endpoint.
func TestPendingPasses(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	var asked atomic.Int32
	s.set(func() {
		s.token = func(w http.ResponseWriter, r *http.Request) bool {
			if asked.Add(1) > 1 {
				return false
			}
			return answer(403, "text/plain", "Can't issue ID_TOKEN for job in 'Pending' state")(w, r)
		}
	})
	s.run("exec", "--", "dialer", "echo").check(t, 0)
}

// waitFor waits until ready returns true.
func waitFor(t *testing.T, ready func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ready() {
			return
		}
	}
	t.Fatal("it did not come")
}
