package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rhysd/actionlint"
)

// act runs workflows without GitHub and, in host mode, without Docker.
const act = "github.com/nektos/act@v0.2.89"

// readmeWorkflow is what the README tells people to paste.
func readmeWorkflow(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(data), "## In your workflow\n\n```yaml\n")
	text, _, closed := strings.Cut(rest, "```\n")
	if !found || !closed {
		t.Fatal("the README has no workflow under its heading")
	}
	return text
}

// The README's workflow as it stands is a workflow.
func TestReadmeWorkflowLints(t *testing.T) {
	t.Parallel()
	repo := t.TempDir()
	must(t, "git", "init", "-q", repo)
	writeFile(t, filepath.Join(repo, ".github", "workflows", "build.yml"), readmeWorkflow(t))
	lint(t, repo)
}

// localWorkflow makes the README's workflow one for this machine: the action's
// path, the issuer, and, since there is no Docker here, buildctl.
func localWorkflow(t *testing.T, issuer string) string {
	t.Helper()
	text := readmeWorkflow(t)
	for _, change := range [][2]string{
		{"mayfly-ca/mayfly/client/action@v1", "./client/action"},
		{"https://issuer.example.com", issuer},
		{`docker buildx create --use --driver remote "$BUILDKIT_HOST"`, `"$BUILDCTL" build --progress plain --frontend dockerfile.v0 --local context=context --local dockerfile=context --output type=local,dest=out`},
		{"docker buildx build .", "./out/artifact"},
		{"          trust-anchor: sha256:... # printed by mayfly-issuer init\n", ""}, // the issuer's CA file is in the environment
	} {
		if strings.Count(text, change[0]) != 1 {
			t.Fatalf("the README's workflow has not one %q:\n%s", change[0], text)
		}
		text = strings.Replace(text, change[0], change[1], 1)
	}
	return text
}

// What a job does, against a real engine: one stack serves all of it.
func TestJob(t *testing.T) {
	needRoot(t)
	repo := t.TempDir()
	release := newReleaseHost(t, filepath.Join(repo, "client", "action"))
	s := startStack(t)
	t.Run("workflow", func(t *testing.T) { testWorkflow(t, s, release, repo) })
	t.Run("files", func(t *testing.T) { testFiles(t, s) })
}

// The workflow that the README shows, run as GitHub runs it: the action brings
// the program from a release, a build goes through the tunnel, and the post step
// reports what went through.
func testWorkflow(t *testing.T, s *stack, release *releaseHost, repo string) {
	copyTree(t, filepath.Join(s.dir, "state", "context"), filepath.Join(repo, "context"))
	writeFile(t, filepath.Join(repo, ".github", "workflows", "build.yml"), localWorkflow(t, s.env["MAYFLY_ISSUER"]))
	must(t, "git", "-C", repo, "init", "-q")
	must(t, "git", "-C", repo, "add", "-A")
	must(t, "git", "-C", repo, "-c", "user.name=e2e", "-c", "user.email=e2e@example.com", "commit", "-q", "-m", "e2e")
	lint(t, repo)
	out, err := runAct(t, repo, s, release)
	if err != nil {
		t.Fatalf("act: %v\n%s", err, out)
	}
	for _, want := range []string{
		"mayfly from release " + testRelease, "hello from mayfly: built in container",
		"who: ", "rule: app-main", "serial: ", "connections: 1", "bytes sent: 1.", "ended by: the end of the job", "time to wake: ",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the workflow's log lacks %q\n%s", want, out)
		}
	}
	if strings.Contains(out, s.env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"]) {
		t.Error("the runner's request token is in the log")
	}
	if testing.Verbose() {
		t.Log(out) // what a stranger sees
	}
}

// runAct runs the workflow of a repository for a push.
func runAct(t *testing.T, repo string, s *stack, release *releaseHost) (string, error) {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"run", act, "push", "-P", "ubuntu-latest=-self-hosted", "-C", repo}
	for name, value := range map[string]string{
		"MAYFLY_CA_FILE": s.env["MAYFLY_CA_FILE"], "BUILDCTL": engineTool(t, "buildctl"), "NODE_EXTRA_CA_CERTS": release.ca,
		"ACTIONS_ID_TOKEN_REQUEST_URL": s.env["ACTIONS_ID_TOKEN_REQUEST_URL"], "ACTIONS_ID_TOKEN_REQUEST_TOKEN": s.env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"],
	} {
		args = append(args, "--env", name+"="+value)
	}
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Env = append(os.Environ(), "GOFLAGS=", "HOME="+goHome(t), "XDG_CACHE_HOME="+t.TempDir(), "XDG_CONFIG_HOME="+t.TempDir(),
		"PATH="+filepath.Dir(node)+string(filepath.ListSeparator)+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// goHome keeps the Go caches where they are while HOME is the test's own: act
// keeps what it runs below HOME.
func goHome(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"GOCACHE", "GOMODCACHE", "GOPATH"} {
		out, err := exec.Command("go", "env", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv(name, strings.TrimSpace(string(out)))
	}
	return t.TempDir()
}

// lint holds the workflow, and by it the action's metadata, against actionlint.
func lint(t *testing.T, repo string) {
	t.Helper()
	var said strings.Builder
	linter, err := actionlint.NewLinter(&said, &actionlint.LinterOptions{WorkingDir: repo})
	if err != nil {
		t.Fatal(err)
	}
	found, err := linter.LintRepository(repo)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range found {
		t.Errorf("actionlint: %v", e)
	}
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(fmt.Errorf("write %s: %w", path, err))
	}
}
