package e2e

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/issuer/webtest"
)

// An admin finds a running build's certificate by its repository, revokes it, and
// sees the session end on the page. The build stops and prints the reason. The test
// runs with and without JavaScript, with a real BuildKit behind the real sidecar.
func TestAdminEndsARunningBuild(t *testing.T) {
	t.Parallel()
	needRoot(t)
	webtest.Need(t) // the last part needs the revocations of the browser
	s := startStack(t)
	t.Run("without script", func(t *testing.T) {
		endRunningBuild(t, s, webtest.Start(t, webtest.Options{NoScript: true}), "nothing", `input[value="none"]`)
	})
	t.Run("with script", func(t *testing.T) {
		endRunningBuild(t, s, webtest.Start(t, webtest.Options{}), "script", `input[value="24h"]`)
	})
	t.Run("and the run stays out", func(t *testing.T) {
		build := s.longBuild(t)
		if said := build.wait(t); build.err == nil || !strings.Contains(said, "blocked") {
			t.Errorf("the blocked run's build: %v\n%s", build.err, said)
		}
	})
}

func endRunningBuild(t *testing.T, s *stack, b *webtest.Browser, name, block string) {
	issuer := s.env["MAYFLY_ISSUER"]
	build := s.longBuild(t)
	build.ticks(t)
	b.Do("log in", webtest.Open(issuer+"/login"), webtest.Click("#login-staff"), webtest.See("#sign-in"), webtest.Click("#sign-in"), webtest.See(".tiles"))
	repository := s.sessionOf(t, b)
	b.Pictures("building-"+name, issuer+"/sessions")
	b.Do("find by repository", webtest.Open(issuer+"/certificates?status=valid"), webtest.Type("#repository", repository), webtest.Click("#find"),
		webtest.See(`input[value="`+repository+`"]`), webtest.Click("a.serial"), webtest.See("#revoke"))
	if status := b.Text("#status"); status != "valid" {
		t.Errorf("status %q", status)
	}
	b.Do("ask", webtest.Click("#revoke"), webtest.See("#confirm"))
	if cuts := b.Text(".cuts"); cuts == "0 live connections" {
		t.Error("the question says that no connection is touched")
	}
	b.Picture("question-"+name, 1280)
	b.Do("revoke", webtest.Click(block), webtest.Type("#reason", "seen mining"), webtest.Click("#confirm"), webtest.See("#done"))
	b.Picture("revoked-"+name, 1280)
	b.Do("watch", webtest.Click("#done a"), webtest.See("h1"))
	if name == "script" {
		b.Do("see it end by itself", webtest.See("#nobody"))
	} else {
		s.reload(t, b, issuer+"/sessions", "No engine reports a connection")
	}
	b.Do("see how it ended", webtest.Open(issuer+"/sessions?ended=yes"), webtest.See("table"))
	if row := b.Text("tbody tr"); !strings.Contains(row, "ended") || !strings.Contains(row, "revoked") {
		t.Errorf("the session's row: %s", row)
	}
	b.Pictures("ended-"+name, issuer+"/sessions?ended=yes")
	if said := build.wait(t); build.err == nil || !strings.Contains(said, "revoked") {
		t.Errorf("the build: %v\n%s", build.err, said)
	}
}

// sessionOf waits until the page shows the build's session, and returns the
// session's repository.
func (s *stack) sessionOf(t *testing.T, b *webtest.Browser) string {
	t.Helper()
	s.reload(t, b, s.env["MAYFLY_ISSUER"]+"/sessions", "live")
	return b.Text(`td[data-label="Who"] strong`)
}

// reload loads a page again until it contains text.
func (s *stack) reload(t *testing.T, b *webtest.Browser, url, text string) {
	t.Helper()
	every := time.NewTicker(200 * time.Millisecond)
	defer every.Stop()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); <-every.C {
		b.Do("load", webtest.Open(url), webtest.See("h1"))
		if strings.Contains(b.Text("main"), text) {
			return
		}
	}
	t.Fatalf("%s never says %q: %s", url, text, b.Text("main"))
}

// longBuild is a build through mayfly exec that does not end in time without a cut.
type longBuild struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // valid after done

	mu      sync.Mutex
	said    bytes.Buffer
	ticking chan struct{} // closed when the output of its RUN step appears
	once    sync.Once
}

func (s *stack) longBuild(t *testing.T) *longBuild {
	t.Helper()
	files := filepath.Join(s.dir, "state", "context")
	b := &longBuild{done: make(chan struct{}), ticking: make(chan struct{})}
	b.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), filepath.Join(s.env["MAYFLY_BIN"], "mayfly"), "exec", "--", engineTool(t, "buildctl"), "build", "--progress", "plain",
		"--frontend", "dockerfile.v0", "--local", "context="+files, "--local", "dockerfile="+files, "--opt", "filename=Dockerfile.long", "--no-cache")
	b.cmd.Env = os.Environ()
	for _, name := range []string{"MAYFLY_ISSUER", "MAYFLY_CA_FILE", "ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"} {
		b.cmd.Env = append(b.cmd.Env, name+"="+s.env[name])
	}
	b.cmd.Stdout, b.cmd.Stderr = b, b
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		b.err = b.cmd.Wait()
		close(b.done)
	}()
	t.Cleanup(func() {
		_ = b.cmd.Process.Signal(syscall.SIGTERM) // in a passing test, it has ended
		<-b.done
	})
	return b
}

// Write receives the build's output.
func (b *longBuild) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, err := b.said.Write(p)
	if bytes.Contains(b.said.Bytes(), []byte("tick 2\n")) {
		b.once.Do(func() { close(b.ticking) })
	}
	return n, err
}

func (b *longBuild) output() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.said.String()
}

// ticks waits until the build's RUN step runs.
func (b *longBuild) ticks(t *testing.T) {
	t.Helper()
	select {
	case <-b.ticking:
	case <-b.done:
		t.Fatalf("the build ended: %v\n%s", b.err, b.output())
	case <-time.After(2 * time.Minute):
		t.Fatalf("the build does not run:\n%s", b.output())
	}
}

// wait waits for the build's end and returns its output.
func (b *longBuild) wait(t *testing.T) string {
	t.Helper()
	select {
	case <-b.done:
	case <-time.After(time.Minute):
		t.Fatalf("the build goes on:\n%s", b.output())
	}
	return b.output()
}
