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

const workflow = `name: build
on: push
permissions:
  id-token: write
  contents: read
jobs:
  build:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v5
      - id: mayfly
        uses: ./client/action
        with:
          issuer: ${{ env.ISSUER }}
          ca-file: ${{ env.CA_FILE }}
          version: path
          export-env: 'false'
      - env:
          BUILDKIT_HOST: ${{ steps.mayfly.outputs.buildkit-host }}
          SERIAL: ${{ steps.mayfly.outputs.serial }}
        run: |
          echo "serial $SERIAL"
          "$BUILDCTL" build --progress plain --frontend dockerfile.v0 --local context=context --local dockerfile=context --output type=local,dest=out
          ./out/artifact
`

// A workflow that uses the action, run as GitHub runs it: a build goes through
// the tunnel, and the post step reports what went through.
func TestActionInAWorkflow(t *testing.T) {
	needRoot(t)
	node, err := exec.LookPath("node")
	need(t, err == nil, "the action is JavaScript: apt-get install nodejs")
	s := startStack(t)
	repo := t.TempDir()
	copyTree(t, "../../client/action", filepath.Join(repo, "client", "action"))
	copyTree(t, filepath.Join(s.dir, "state", "context"), filepath.Join(repo, "context"))
	writeFile(t, filepath.Join(repo, ".github", "workflows", "build.yml"), workflow)
	for _, args := range [][]string{{"init", "-q"}, {"add", "-A"}, {"-c", "user.name=e2e", "-c", "user.email=e2e@example.com", "commit", "-q", "-m", "e2e"}} {
		if out, err := exec.Command("git", append([]string{"-C", repo}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("git %s: %v\n%s", args, err, out)
		}
	}
	lint(t, repo)
	args := []string{"run", act, "push", "-P", "ubuntu-latest=-self-hosted", "-C", repo}
	for name, value := range map[string]string{
		"ISSUER": s.env["MAYFLY_ISSUER"], "CA_FILE": s.env["MAYFLY_CA_FILE"], "BUILDCTL": buildctl(t),
		"ACTIONS_ID_TOKEN_REQUEST_URL": s.env["ACTIONS_ID_TOKEN_REQUEST_URL"], "ACTIONS_ID_TOKEN_REQUEST_TOKEN": s.env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"],
	} {
		args = append(args, "--env", name+"="+value)
	}
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Env = append(os.Environ(), "GOFLAGS=", "HOME="+goHome(t), "XDG_CACHE_HOME="+t.TempDir(), "XDG_CONFIG_HOME="+t.TempDir(),
		"PATH="+s.env["MAYFLY_BIN"]+string(filepath.ListSeparator)+filepath.Dir(node)+string(filepath.ListSeparator)+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("act: %v\n%s", err, out)
	}
	for _, want := range []string{"hello from mayfly: built in container", "rule: app-main", "connections: 1", "ended by: stopped", "time to wake: "} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the workflow's log lacks %q\n%s", want, out)
		}
	}
	if strings.Contains(string(out), s.env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"]) {
		t.Error("the runner's request token is in the log")
	}
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
