package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/client"
	"github.com/mayfly-ca/mayfly/client/tokensource"
)

// slowSource returns its error after a delay, like a platform that does not answer.
type slowSource struct {
	after time.Duration
	err   error
	asked atomic.Int32
}

func (s *slowSource) String() string { return "GitHub Actions" }

func (s *slowSource) Token(context.Context, string) (string, error) {
	s.asked.Add(1)
	time.Sleep(s.after)
	return "a.b.c", s.err
}

// dialSilent connects to a server that reads and never answers.
func dialSilent(context.Context, string, string) (net.Conn, error) {
	near, far := net.Pipe()
	go io.Copy(io.Discard, far)
	return near, nil
}

// TestSlow checks the messages if a token endpoint or an issuer does not answer. Each
// is tried for minutes, which take no time in the bubble. Package tokensource tests
// how often the endpoint is called.
func TestSlow(t *testing.T) {
	t.Parallel()
	timedOut := &tokensource.Error{Source: "GitHub Actions", Hint: "run it again", Temporary: true, Err: errors.New("no answer in time (after 5 attempts)")}
	for _, tt := range []struct {
		name   string
		source *slowSource
		asked  int32
		code   int
		stderr []string
	}{
		{"token endpoint", &slowSource{after: 90 * time.Second, err: timedOut}, 1, exitFailed,
			[]string{"GitHub Actions has given no ID token yet, still asking", "id token from", "attempts"}},
		{"issuer", &slowSource{}, 5, exitIssuer,
			[]string{"no certificate yet, trying again in", "issuer http://127.0.0.1:8080"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var stderr bytes.Buffer
				p := &program{terminal: newTerminal(Stdio{Err: &stderr}), globals: globals{Issuer: "http://127.0.0.1:8080"}}
				tun := &tunnel{p: p, source: &jobSource{Source: tt.source, p: p}}
				_, err := client.New(t.Context(), client.Config{
					Issuer: p.Issuer, Audience: "mayfly:ci.example.com", Source: tun.source, OneEngine: true, Dial: dialSilent, Progress: tun.onEvent,
				})
				if code := p.end(tun.explain(err)); code != tt.code {
					t.Errorf("exit code %d, want %d", code, tt.code)
				}
				if n := tt.source.asked.Load(); n != tt.asked {
					t.Errorf("%d tokens were asked for, want %d", n, tt.asked)
				}
				for _, want := range append(tt.stderr, "mayfly: hint: ") {
					if !strings.Contains(stderr.String(), want) {
						t.Errorf("no %q in\n%s", want, stderr.String())
					}
				}
			})
		})
	}
}
