package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rhysd/actionlint"
	"go.yaml.in/yaml/v3"
)

// act runs workflows without GitHub and, in host mode, without Docker.
const act = "github.com/nektos/act@v0.2.89"

// workflows returns the workflows of a page that readers copy: each YAML block that
// begins with on:, by its heading.
func workflows(t *testing.T, page string) map[string]string {
	t.Helper()
	data, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	heading := ""
	for part := range strings.SplitSeq(string(data), "\n```") {
		if text, ok := strings.CutPrefix(part, "yaml\non: "); ok {
			found[heading] = "on: " + text + "\n"
			continue
		}
		for line := range strings.Lines(part) {
			if strings.HasPrefix(line, "#") {
				heading = strings.TrimSpace(strings.TrimLeft(line, "#"))
			}
		}
	}
	return found
}

// pages maps each page to its number of workflows.
var pages = map[string]int{"../../README.md": 1, "../../client/action/README.md": 4, "../README.md": 1}

// The pages' workflows are valid without a change.
func TestReadmeWorkflowsLint(t *testing.T) {
	t.Parallel()
	for page, want := range pages {
		repo := t.TempDir()
		must(t, "git", "init", "-q", repo)
		found := workflows(t, page)
		if len(found) != want {
			t.Errorf("%s has %d workflows, want %d", page, len(found), want)
		}
		for heading, text := range found {
			writeFile(t, filepath.Join(repo, ".github", "workflows", strings.ReplaceAll(heading, " ", "-")+".yml"), text)
		}
		lint(t, repo)
	}
}

// The pages give dagger-for-github only inputs of its action.yml, which actionlint
// does not check. The list is that of v8.4.1.
func TestReadmeDaggerForGitHub(t *testing.T) {
	t.Parallel()
	inputs := strings.Fields("version commit dagger-flags verb workdir cloud-token module args call shell check summary-path enable-github-summary")
	var workflow struct {
		Jobs map[string]struct {
			Steps []struct {
				Uses string
				With map[string]string
			}
		}
	}
	text := workflows(t, "../../client/action/README.md")["Dagger"]
	if err := yaml.Unmarshal([]byte(text), &workflow); err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, step := range workflow.Jobs["build"].Steps {
		if !strings.HasPrefix(step.Uses, "dagger/dagger-for-github@") {
			continue
		}
		found++
		if step.Uses != "dagger/dagger-for-github@v8.4.1" {
			t.Errorf("%s: compare the list of inputs with its action.yml", step.Uses)
		}
		for name := range step.With {
			if !slices.Contains(inputs, name) {
				t.Errorf("%s has no input %s", step.Uses, name)
			}
		}
	}
	if found != 1 {
		t.Errorf("the example has %d steps of dagger-for-github, want 1", found)
	}
}

// Until there is a release, the pages show what works without one.
func TestReadmeNamesARef(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../../client/action/checksums.json")
	if err != nil {
		t.Fatal(err)
	}
	var pinned checksums
	if err := json.Unmarshal(data, &pinned); err != nil {
		t.Fatal(err)
	}
	for page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		said := strings.Contains(string(text), "Until the first release") && strings.Contains(string(text), "client/action@main")
		if want := pinned.Latest == ""; said != want {
			t.Errorf("%s says what to use before the first release: %v, want %v", page, said, want)
		}
	}
}

// Jobs against a real engine: one stack serves all parts.
func TestJob(t *testing.T) {
	t.Parallel()
	needRoot(t)
	release := newReleaseHost(t, filepath.Join(t.TempDir(), "client", "action"))
	release.publish(t)
	s := startStack(t)
	t.Run("workflows", func(t *testing.T) { testWorkflows(t, s, release) })
	t.Run("files", func(t *testing.T) { testFiles(t, s) })
}

// The workflows of the pages, run as GitHub runs them. @v1 is fetched and downloads
// the program of its release, a build goes through the tunnel, and the post step
// reports the transferred bytes.
func testWorkflows(t *testing.T, s *stack, release *releaseHost) {
	_, err := exec.LookPath("docker")
	need(t, err == nil, "it builds with Docker's client: apt-get install docker-cli, or docker.io where there is none")
	for name, text := range map[string]string{
		"readme":   workflows(t, "../../README.md")["In your workflow"],
		"buildctl": workflows(t, "../../client/action/README.md")["buildctl"],
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testWorkflow(t, s, release, name, text)
		})
	}
}

// testWorkflow runs a workflow, with name as its job's name.
func testWorkflow(t *testing.T, s *stack, release *releaseHost, name, text string) {
	repo := t.TempDir()
	copyTree(t, filepath.Join(s.dir, "state", "context"), repo)
	dockerfile, err := os.ReadFile(filepath.Join(repo, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	// The engine must not find the step in its cache, where another job put it.
	writeFile(t, filepath.Join(repo, "Dockerfile"), strings.Replace(string(dockerfile), "ARG STAMP", "ENV JOB="+name, 1))
	text = strings.Replace(text, "https://issuer.example.com", s.env["MAYFLY_ISSUER"], 1)
	text = strings.Replace(text, "          trust-anchor: sha256:... # printed by mayfly-issuer init\n", "", 1) // the environment has the CA file
	text = strings.Replace(text, "  build:", "  "+name+":", 1)
	writeFile(t, filepath.Join(repo, ".github", "workflows", name+".yml"), text)
	must(t, "git", "-C", repo, "init", "-q")
	must(t, "git", "-C", repo, "add", "-A")
	must(t, "git", "-C", repo, "-c", "user.name=e2e", "-c", "user.email=e2e@example.com", "commit", "-q", "-m", "e2e")
	lint(t, repo)
	out, err := runAct(t, repo, s, release)
	if err != nil {
		t.Fatalf("act: %v\n%s", err, out)
	}
	for _, want := range []string{
		"mayfly from release " + testRelease, "waking engine default at ", `RUN ["/demo", "build", "/artifact"]`, "engine default proved its name",
		"who: ", "rule: app-main", "serial: ", "connections: ", "bytes sent: ", "ended by: the end of the job", "time to wake: ",
	} {
		if !strings.Contains(jobLog(out, name), want) && !(name == "readme" && want == "engine default proved its name") {
			t.Errorf("the log of job %s lacks %q\n%s", name, want, out)
		}
	}
	if !strings.Contains(out, "built in container") { // another job's result may be in the cache
		t.Errorf("nothing was built\n%s", out)
	}
	if strings.Contains(out, s.env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"]) {
		t.Error("the runner's request token is in the log")
	}
	if testing.Verbose() {
		t.Log(out) // output that a new user sees
	}
}

// jobLog returns act's output of one job: its lines begin with [workflow/job].
func jobLog(out, job string) string {
	var lines strings.Builder
	for line := range strings.Lines(out) {
		if name, _, _ := strings.Cut(line, "]"); strings.HasSuffix(strings.TrimSpace(name), "/"+job) {
			lines.WriteString(line)
		}
	}
	return lines.String()
}

// runAct runs the workflows of a repository for a push. The release's host replaces
// GitHub.
func runAct(t *testing.T, repo string, s *stack, release *releaseHost) (string, error) {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatal(err)
	}
	docker := t.TempDir() // Docker's client finds buildx in its plugins folder
	if err := os.Mkdir(filepath.Join(docker, "cli-plugins"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(tool(t, "buildx", "buildx"), filepath.Join(docker, "cli-plugins", "docker-buildx")); err != nil {
		t.Fatal(err)
	}
	args := []string{"run", act, "push", "-P", "ubuntu-latest=-self-hosted", "-C", repo, "--github-instance", release.host}
	for name, value := range map[string]string{
		"MAYFLY_CA_FILE": s.env["MAYFLY_CA_FILE"], "NODE_EXTRA_CA_CERTS": release.ca, "DOCKER_CONFIG": docker, "BUILDKIT_PROGRESS": "plain",
		"ACTIONS_ID_TOKEN_REQUEST_URL": s.env["ACTIONS_ID_TOKEN_REQUEST_URL"], "ACTIONS_ID_TOKEN_REQUEST_TOKEN": s.env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"],
	} {
		args = append(args, "--env", name+"="+value)
	}
	roots := filepath.Join(t.TempDir(), "roots.pem") // Go modules come from a public host
	public, _ := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	own, err := os.ReadFile(release.ca)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, roots, string(public)+"\n"+string(own))
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Env = append(append(os.Environ(), goCaches(t)...), "GOFLAGS=", "HOME="+t.TempDir(), "XDG_CACHE_HOME="+t.TempDir(), "XDG_CONFIG_HOME="+t.TempDir(), "SSL_CERT_FILE="+roots,
		"PATH="+strings.Join([]string{filepath.Dir(node), filepath.Dir(engineTool(t, "buildctl")), os.Getenv("PATH")}, string(filepath.ListSeparator)))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// goCaches returns variables with the Go caches, for a command with another HOME,
// below which act stores its programs.
func goCaches(t *testing.T) []string {
	t.Helper()
	var env []string
	for _, name := range []string{"GOCACHE", "GOMODCACHE", "GOPATH"} {
		out, err := exec.Command("go", "env", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		env = append(env, name+"="+strings.TrimSpace(string(out)))
	}
	return env
}

// lint checks the workflow, and so the action's metadata, with actionlint.
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
