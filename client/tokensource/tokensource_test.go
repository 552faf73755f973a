package tokensource

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	audience = "mayfly:ci.example.com"
	token    = "eyJh.eyJp.c2ln"
	secret   = "request-token-of-the-job"
)

// pipes serves h on pipes, so that a bubble's clock advances while a client waits.
func pipes(t *testing.T, h http.HandlerFunc) *http.Transport {
	t.Helper()
	ln := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
	srv := &http.Server{Handler: h}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = srv.Serve(ln)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-ended
	})
	return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		near, far := net.Pipe()
		select {
		case ln.conns <- far:
			return near, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}
}

type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	close(l.done)
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func answer(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// inTurn answers the n-th request with the n-th handler, and later requests with
// the last one.
func inTurn(h ...http.HandlerFunc) http.HandlerFunc {
	var n atomic.Int32
	return func(w http.ResponseWriter, r *http.Request) {
		h[min(int(n.Add(1)), len(h))-1](w, r)
	}
}

func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func hangUp(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// TestGitHub checks GitHub's token endpoint and the errors that a person reads. Time
// is the bubble's.
func TestGitHub(t *testing.T) {
	good := answer(200, `{"count":1,"value":"`+token+`"}`)
	pending := answer(403, `{"message":"Can't issue ID_TOKEN for job in 'Pending' state"}`)
	for _, tt := range []struct {
		name  string
		serve http.HandlerFunc
		says  string // empty means a token
		asked int
		most  time.Duration
		temp  bool
	}{
		{name: "answers", serve: good, asked: 1},
		{name: "not yet", serve: inTurn(pending, pending, good), asked: 3, most: 3 * time.Second},
		{name: "never", serve: pending, asked: 5, most: 10 * time.Second, says: "run it again", temp: true},
		{name: "fails twice", serve: inTurn(answer(500, ""), answer(503, ""), good), asked: 3, most: 3 * time.Second},
		{name: "fails for good", serve: answer(500, "oops"), asked: 5, most: 10 * time.Second, says: "githubstatus.com", temp: true},
		{name: "limits", serve: inTurn(answer(429, ""), good), asked: 2, most: time.Second},
		{name: "times out once", serve: inTurn(hang, good), asked: 2, most: 21 * time.Second},
		{name: "times out for good", serve: hang, asked: 5, most: fetchTotal, says: "no answer in time", temp: true},
		{name: "hangs up once", serve: inTurn(hangUp, good), asked: 2, most: time.Second},
		{name: "401", serve: answer(401, "who are you"), asked: 1, says: "id-token: write"},
		{name: "another 403", serve: answer(403, "no"), asked: 1, says: "id-token: write"},
		{name: "404", serve: answer(404, "nothing here"), asked: 1, says: "nothing here"},
		{name: "redirect", serve: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://elsewhere.example.com", http.StatusFound)
		}, asked: 1, says: "redirect"},
		{name: "garbage", serve: answer(200, "<html>"), asked: 1, says: "not JSON"},
		{name: "no token", serve: answer(200, `{}`), asked: 1, says: "empty"},
		{name: "a token that is none", serve: answer(200, `{"value":"a b.c.d"}`), asked: 1, says: "not a token"},
		{name: "too large", serve: answer(200, strings.Repeat("x", maxAnswer+1)), asked: 1, says: "larger than"},
		{name: "paints the terminal", serve: answer(404, "\x1b[31mred\u202e"), asked: 1, says: "404 Not Found: [31mred"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked atomic.Int32
				g, err := newGitHub("http://127.0.0.1/idtoken?api-version=2.0", secret)
				if err != nil {
					t.Fatal(err)
				}
				g.client = newClient(pipes(t, func(w http.ResponseWriter, r *http.Request) {
					asked.Add(1)
					q := r.URL.Query()
					if q.Get("audience") != audience || q.Get("api-version") != "2.0" || r.Header.Get("Authorization") != "bearer "+secret {
						t.Errorf("asked %s", r.URL)
					}
					tt.serve(w, r)
				}))
				g.http1 = g.client
				start := time.Now()
				got, err := g.Token(t.Context(), audience)
				if took := time.Since(start); took > tt.most {
					t.Errorf("took %v, at most %v", took, tt.most)
				}
				if n := int(asked.Load()); n != tt.asked {
					t.Errorf("asked %d times, want %d", n, tt.asked)
				}
				if tt.says == "" {
					if err != nil || got != token {
						t.Errorf("token %q, %v", got, err)
					}
					return
				}
				checkError(t, err, tt.says, tt.temp)
				if said := err.Error(); !strings.HasPrefix(said, "id token from ") || tt.asked == fetchAttempts && !strings.Contains(said, "(after 5 attempts)") {
					t.Errorf("it says %q", said)
				}
			})
		})
	}
}

func checkError(t *testing.T, err error, says string, temporary bool) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error is %T: %v", err, err)
	}
	if !strings.Contains(err.Error(), says) || e.Temporary != temporary {
		t.Errorf("temporary %v, says %q, want %q in it", e.Temporary, err, says)
	}
	if strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), token) || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("%q shows what it must not", err)
	}
}

// If the caller cancels, Token returns at once.
func TestFetchEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, err := newGitHub("http://127.0.0.1/", secret)
		if err != nil {
			t.Fatal(err)
		}
		g.client = newClient(pipes(t, hang))
		g.http1 = g.client
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if _, err := g.Token(ctx, audience); err == nil || time.Since(start) > time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

func TestNewGitHub(t *testing.T) {
	for url, ok := range map[string]bool{
		"https://run-actions-1.actions.githubusercontent.com/x?api-version=2.0": true,
		"http://127.0.0.1:1/x": true, "http://localhost:1": true,
		"http://example.com/x": false, "https://u:p@example.com": false, "x": false, "": false,
	} {
		if _, err := newGitHub(url, secret); (err == nil) != ok {
			t.Errorf("%q: %v", url, err)
		}
	}
	if _, err := newGitHub("https://example.com", ""); err == nil {
		t.Error("no request token, no error")
	}
}

// If GitHub grants no token, the error says what to change.
func TestGitHubHints(t *testing.T) {
	event := func(head string) string {
		name := filepath.Join(t.TempDir(), "event.json")
		body := fmt.Sprintf(`{"pull_request":{"head":{"repo":{"full_name":%q}},"base":{"repo":{"full_name":"o/r"}}}}`, head)
		if err := os.WriteFile(name, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for _, tt := range []struct {
		name, event, path, actor, says string
	}{
		{"no permission", "push", "", "octocat", "id-token: write"},
		{"pull request of a branch", "pull_request", event("o/r"), "octocat", "id-token: write"},
		{"pull request of a fork", "pull_request", event("x/r"), "octocat", "from forks"},
		{"pull request of a fork that is gone", "pull_request", event(""), "octocat", "from forks"},
		{"Dependabot", "pull_request", event("o/r"), "dependabot[bot]", "Dependabot"},
		{"event that cannot be read", "pull_request", "/does/not/exist", "octocat", "id-token: write"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for k, v := range map[string]string{
				"ACTIONS_ID_TOKEN_REQUEST_URL": "", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "",
				"GITHUB_EVENT_NAME": tt.event, "GITHUB_EVENT_PATH": tt.path, "GITHUB_ACTOR": tt.actor,
			} {
				t.Setenv(k, v)
			}
			_, err := GitHubActions()
			checkError(t, err, tt.says, false)
		})
	}
}

func TestFly(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "api")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body map[string]string
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || r.Method != http.MethodPost || r.URL.Path != "/v1/tokens/oidc" {
			t.Errorf("%s %s, %v", r.Method, r.URL, err)
		}
		if diff := cmp.Diff(map[string]string{"aud": audience}, body); diff != "" {
			t.Error(diff)
		}
		_, _ = io.WriteString(w, token+"\n")
	}))
	srv.Listener = ln
	srv.Start()
	defer srv.Close()
	if got, err := FlyMachine(socket).Token(t.Context(), audience); err != nil || got != token {
		t.Errorf("token %q, %v", got, err)
	}
	_, err = FlyMachine(socket+"x").Token(t.Context(), audience)
	checkError(t, err, "on Fly Machines only", false)
	_, err = FlyMachine(socket).Token(t.Context(), "sts.amazonaws.com")
	checkError(t, err, "another service", false)
}

// The source reads the file at each use, because Kubernetes replaces it.
func TestFile(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "token")
	put := func(s string) {
		if err := os.WriteFile(name, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	src := File(name)
	_, err := src.Token(t.Context(), audience)
	checkError(t, err, "for the audience "+audience, false)
	for _, s := range []string{token, "\n " + token + "\n", "x.y.z"} {
		put(s)
		if got, err := src.Token(t.Context(), audience); err != nil || got != strings.TrimSpace(s) {
			t.Errorf("token %q, %v", got, err)
		}
	}
	for _, s := range []string{"", "a.b", "a.b.c.d", "a.b.c\na.b.c", "a.b." + strings.Repeat("c", maxToken), "a.b.é"} {
		put(s)
		if _, err := src.Token(t.Context(), audience); err == nil {
			t.Errorf("%.20q passed for a token", s)
		}
	}
	put(token)
	_, err = src.Token(t.Context(), "mayfly:")
	checkError(t, err, "another service", false)
}

func TestExec(t *testing.T) {
	t.Parallel()
	sh := func(script string) Source {
		s, err := Exec("/bin/sh -c '" + script + "'")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if got, err := sh(`test "$MAYFLY_AUDIENCE" = "`+audience+`" && echo `+token).Token(t.Context(), audience); err != nil || got != token {
		t.Errorf("token %q, %v", got, err)
	}
	_, err := sh("echo not logged in >&2; exit 3").Token(t.Context(), audience)
	checkError(t, err, "not logged in", false)
	_, err = sh("echo hello").Token(t.Context(), audience)
	checkError(t, err, "one ID token", false)
	_, err = sh("yes "+token+" | head -c 1000000").Token(t.Context(), audience)
	checkError(t, err, "larger than", false)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = sh("exec sleep 60").Token(ctx, audience)
	checkError(t, err, "stopped", false)
	// There is no shell and no expansion.
	plain, err := Exec("echo $HOME;echo `id`")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(command{"echo", "$HOME;echo", "`id`"}, plain); diff != "" {
		t.Error(diff)
	}
}

func TestSplit(t *testing.T) {
	t.Parallel()
	for line, want := range map[string][]string{
		"a b\tc\n":                {"a", "b", "c"},
		`a 'b c' "d e"`:           {"a", "b c", "d e"},
		`a\ b`:                    {"a b"},
		`'' ""`:                   {"", ""},
		`"a\"b\\c\n"`:             {`a"b\c\n`},
		`'a\b'`:                   {`a\b`},
		`a"b"'c'`:                 {"abc"},
		"":                        nil,
		"   ":                     nil,
		`"a`:                      {"!"},
		`a\`:                      {"!"},
		"'":                       {"!"},
		strings.Repeat("a", 5000): {"!"},
	} {
		got, err := split(line)
		if (err != nil) != slices.Equal(want, []string{"!"}) {
			t.Errorf("%.20q: %v", line, err)
		}
		if err == nil && !slices.Equal(got, want) {
			t.Errorf("%.20q: %q, want %q", line, got, want)
		}
	}
}

// Quoted words are unchanged.
func FuzzSplit(f *testing.F) {
	f.Add("a b", "c'd")
	f.Add("", `"\`)
	f.Fuzz(func(t *testing.T, one, two string) {
		quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
		line := quote(one) + " " + quote(two)
		got, err := split(line)
		if err != nil {
			if len(line) <= 4<<10 {
				t.Fatal(err)
			}
			return
		}
		if diff := cmp.Diff([]string{one, two}, got); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestParse(t *testing.T) {
	clean := func(t *testing.T) {
		for _, k := range []string{
			"ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN", "GITHUB_ACTIONS", "GITHUB_EVENT_NAME",
			"GITLAB_CI", gitlabVariable, "FLY_MACHINE_ID", "FLY_API_SOCKET",
		} {
			t.Setenv(k, "")
		}
	}
	github := map[string]string{"ACTIONS_ID_TOKEN_REQUEST_URL": "https://example.com", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": secret}
	for _, tt := range []struct {
		spec string
		env  map[string]string
		want string // its name; empty means an error
	}{
		{"auto", nil, ""},
		{"", github, githubName},
		{"auto", github, githubName},
		{"auto", map[string]string{"GITHUB_ACTIONS": "true"}, ""},
		{"auto", map[string]string{gitlabVariable: token}, "variable MAYFLY_ID_TOKEN"},
		{"auto", map[string]string{"GITLAB_CI": "true"}, ""},
		{"auto", map[string]string{"FLY_MACHINE_ID": "1"}, "Fly Machine"},
		{"github", github, githubName},
		{"github", nil, ""},
		{"gitlab", map[string]string{gitlabVariable: token}, "variable MAYFLY_ID_TOKEN"},
		{"gitlab", nil, ""},
		{"fly", nil, "Fly Machine"},
		{"file:/run/token", nil, "file /run/token"},
		{"file:", nil, ""},
		{"file", nil, ""},
		{"env:TOKEN", nil, "variable TOKEN"},
		{"exec:get-token --now", nil, "command get-token"},
		{"exec:", nil, ""},
		{"exec:'", nil, ""},
		{"vault", nil, ""},
	} {
		t.Run(tt.spec, func(t *testing.T) {
			clean(t)
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			s, err := Parse(tt.spec)
			if tt.want == "" {
				if err == nil {
					t.Errorf("got %s", s)
				}
				return
			}
			if err != nil || s.String() != tt.want {
				t.Errorf("%v, %v", s, err)
			}
		})
	}
}

func TestEnv(t *testing.T) {
	t.Setenv("SOME_TOKEN", token)
	if got, err := Env("SOME_TOKEN").Token(t.Context(), audience); err != nil || got != token {
		t.Errorf("token %q, %v", got, err)
	}
	_, err := Env("NO_TOKEN").Token(t.Context(), audience)
	checkError(t, err, "not set", false)
}
