package main

import (
	"bytes"
	"debug/elf"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// given explains how to give these tests an engine. .ci/run cannot install one: its
// image is in a registry, and its sources are not a tagged module.
const given = `no Dagger engine was given. Give one that runs:
  _EXPERIMENTAL_DAGGER_RUNNER_HOST  its address, a tunnel's for example
or a command, which is started behind mayfly-sidecar on a machine of fly/local (as root):
  MAYFLY_TEST_ENGINE_CMD            such as "dagger-engine --oci-cni-pool-size 2"
  MAYFLY_TEST_ENGINE_SOCKET         such as /run/dagger/engine.sock
and, where no registry and no download can be reached, as tarballs and paths:
  _EXPERIMENTAL_DAGGER_CLI_BIN, PIPELINE_BASE_IMAGE, PIPELINE_POSTGRES_IMAGE, PIPELINE_BAZEL_IMAGE`

// TestEngine runs the pipeline on a given engine. Without an engine, it only tests
// that this program reports the missing one.
func TestEngine(t *testing.T) {
	command := os.Getenv("MAYFLY_TEST_ENGINE_CMD")
	if command == "" && os.Getenv("_EXPERIMENTAL_DAGGER_RUNNER_HOST") == "" {
		t.Run("is missing", testNoEngine)
		t.Log(given)
		return
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	e := &testEngine{root: root}
	if command != "" {
		e.start(t, command, os.Getenv("MAYFLY_TEST_ENGINE_SOCKET"))
	}
	t.Run("publish and pull back", e.testPublish)
	t.Run("wrong password", e.testWrongPassword)
	t.Run("unreachable registry", e.testUnreachableRegistry)
	t.Run("failing test", e.testFailingTest)
	t.Run("deploy", e.testDeploy)
	if os.Getenv("PIPELINE_BAZEL_IMAGE") != "" {
		t.Run("bazel", e.testBazel)
	}
	if command != "" {
		t.Run("stopped in the middle", func(t *testing.T) { e.testEnds(t, syscall.SIGTERM, "engine is shutting down") })
		t.Run("killed in the middle", func(t *testing.T) { e.testEnds(t, syscall.SIGKILL, "was lost in the middle") })
	}
	t.Run("build", e.testBuild)
	t.Run("publish this", e.testPublishThis)
	t.Run("unit and integration tests", e.testTest)
	if command != "" {
		t.Run("cache outlives a stop", e.testCacheOutlivesStop)
	}
}

// testNoEngine: an engine that does not answer, and a missing engine, are reported
// at once.
func testNoEngine(t *testing.T) {
	for _, name := range []string{"MAYFLY_ISSUER", "DAGGER_SESSION_PORT", "_EXPERIMENTAL_DAGGER_RUNNER_HOST"} {
		t.Setenv(name, "") // t.Setenv restores it afterwards
		os.Unsetenv(name)
	}
	nowhere := filepath.Join(t.TempDir(), "engine.sock")
	for _, c := range []struct {
		name, cli string
		args      []string
		want      string
	}{
		{"nobody listens", "/bin/false", []string{"--runner-host", "unix://" + nowhere}, "no engine answers at unix://" + nowhere},
		{"none was named", "/bin/false", nil, "No engine was named: MAYFLY_ISSUER"},
		{"no CLI", filepath.Join(t.TempDir(), "dagger"), nil, "dagger"},
	} {
		t.Setenv("_EXPERIMENTAL_DAGGER_CLI_BIN", c.cli)
		var said bytes.Buffer
		code := run(t.Context(), append(c.args, "build", "--out", t.TempDir()), io.Discard, &said)
		if code != 1 || !strings.Contains(lastLines(said.String()), c.want) {
			t.Errorf("%s: exit code %d, want 1 and %q in\n%s", c.name, code, c.want, said.String())
		}
	}
}

// lastLines returns the last ten lines, which a person reads.
func lastLines(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}

// testEngine is the given engine. If it is a command, testEngine also has
// fly/local's machine that runs it.
type testEngine struct {
	root string
	dir  string // of fly/local --keep; empty if there is no command
}

// start runs the whole system with the engine's command, and sets the environment
// of a job.
func (e *testEngine) start(t *testing.T, command, socket string) {
	t.Helper()
	e.dir = t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(e.dir, "local"), "./fly/local")
	build.Dir = e.root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(filepath.Join(e.dir, "local"), "--keep", "--dir", filepath.Join(e.dir, "keep"), "--engine-cmd", command, "--engine-socket", socket)
	cmd.Dir = e.root
	said := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	t.Cleanup(func() {
		if t.Failed() {
			machine, _ := os.ReadFile(filepath.Join(e.dir, "keep", "state", "machine.log"))
			t.Logf("machine:\n%s", lastLines(string(machine)))
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		t.Logf("fly/local:\n%s", said.String())
	})
	deadline := time.After(5 * time.Minute)
	for {
		if _, err := os.Stat(filepath.Join(e.dir, "keep", "env")); err == nil {
			break
		}
		select {
		case <-ended:
			t.Fatalf("fly/local ended:\n%s", said.String())
		case <-deadline:
			t.Fatalf("fly/local is not ready:\n%s", said.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
	for _, name := range []string{"MAYFLY_ISSUER", "MAYFLY_CA_FILE", "ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"} {
		t.Setenv(name, e.env(t, name))
	}
	t.Setenv("_EXPERIMENTAL_DAGGER_RUNNER_HOST", "")
}

// env returns the current value of name in DIR/env.
func (e *testEngine) env(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", `. "$0" && printenv "$1"`, filepath.Join(e.dir, "keep", "env"), name).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// result is the outcome of one run of this program.
type result struct {
	code           int
	stdout, stderr string
	took           time.Duration
}

// pipeline runs this program in a checkout.
func (e *testEngine) pipeline(t *testing.T, dir string, args ...string) result {
	t.Helper()
	return e.watch(t, dir, nil, args...)
}

// watch runs this program in a checkout and passes its progress to seen as it
// arrives.
func (e *testEngine) watch(t *testing.T, dir string, seen func(progress string), args ...string) result {
	t.Helper()
	t.Chdir(dir)
	var stdout bytes.Buffer
	stderr := &lockedBuffer{seen: seen}
	begin := time.Now()
	code := run(t.Context(), args, &stdout, stderr)
	r := result{code, stdout.String(), stderr.String(), time.Since(begin)}
	t.Logf("pipeline %s: exit code %d in %s", strings.Join(args, " "), code, r.took.Round(100*time.Millisecond))
	return r
}

// mustFail checks that the run failed and that its last lines contain the causes.
func (r result) mustFail(t *testing.T, causes ...string) {
	t.Helper()
	if r.code != 1 {
		t.Errorf("exit code %d, want 1", r.code)
	}
	for _, cause := range causes {
		if !strings.Contains(lastLines(r.stderr), cause) {
			t.Errorf("the last ten lines lack %q:\n%s", cause, lastLines(r.stderr))
		}
	}
	t.Logf("a person sees:\n%s", lastLines(r.stderr))
}

func (r result) mustPass(t *testing.T) {
	t.Helper()
	if r.code != 0 {
		t.Fatalf("exit code %d:\n%s", r.code, r.stderr)
	}
}

// small makes a checkout of the same shape as this one that compiles at once.
func small(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	all := map[string]string{
		"go.mod":                 "module example.com/small\n\ngo 1.26\n",
		"fly/issuer/issuer.yaml": "listen: \":8080\"\n",
	}
	for _, program := range programs {
		all[filepath.Join(program, "main.go")] = "package main\n\nfunc main() {}\n"
	}
	for path, text := range files {
		all[path] = text
	}
	for path, text := range all {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// testBuild builds this repository for both platforms: static programs and OCI
// tarballs.
func (e *testEngine) testBuild(t *testing.T) {
	out := t.TempDir()
	e.pipeline(t, e.root, "build", "--out", out).mustPass(t)
	e.checkBuild(t, out)
}

func (e *testEngine) checkBuild(t *testing.T, out string) {
	t.Helper()
	for platform, machine := range map[string]elf.Machine{"linux-amd64": elf.EM_X86_64, "linux-arm64": elf.EM_AARCH64} {
		for _, program := range programs {
			file, err := elf.Open(filepath.Join(out, platform, filepath.Base(program)))
			if err != nil {
				t.Fatal(err)
			}
			if file.Machine != machine {
				t.Errorf("%s/%s is for %v", platform, program, file.Machine)
			}
			if libraries, err := file.ImportedLibraries(); err != nil || len(libraries) != 0 {
				t.Errorf("%s/%s is not static: %v, %v", platform, program, libraries, err)
			}
			file.Close()
		}
		if info, err := os.Stat(filepath.Join(out, "mayfly-"+platform+".tar")); err != nil || info.Size() < 1<<20 {
			t.Errorf("the tarball of %s: %v, %v", platform, info, err)
		}
	}
}

// testPublish pushes a commit's image, pulls it by the reported digest, and checks
// its contents. It does so on a branch and on main, which also gets the tag latest.
// No output contains the password.
func (e *testEngine) testPublish(t *testing.T) {
	r := startRegistry(t)
	t.Setenv("TEST_REGISTRY_PASSWORD", registryPassword)
	const repository = "team/mayfly"
	image := r.host + "/" + repository
	for _, branch := range []string{"feature/x", "main"} {
		dir := small(t, nil)
		command(t, dir, "git", "init", "--quiet", "--initial-branch", branch)
		command(t, dir, "git", "remote", "add", "origin", "https://git.example.com/team/small")
		command(t, dir, "git", "add", "--all")
		command(t, dir, "git", "-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "--quiet", "--message", "first")
		got := e.pipeline(t, dir, "publish", "--image", image, "--tag", "v1.2.3",
			"--registry-user", registryUser, "--registry-password", "env:TEST_REGISTRY_PASSWORD")
		got.mustPass(t)
		e.checkBuild(t, filepath.Join(dir, "dist"))
		if strings.Contains(got.stdout+got.stderr, registryPassword) {
			t.Error("the registry's password is in the output")
		}
		file, err := os.ReadFile(filepath.Join(dir, "dist", "digest"))
		if err != nil {
			t.Fatal(err)
		}
		ref := strings.TrimSpace(string(file))
		if !strings.HasPrefix(ref, image+"@sha256:") || !strings.HasSuffix(strings.TrimSpace(got.stdout), ref) {
			t.Errorf("digest file %q, printed %q", ref, got.stdout)
		}
		checkSBOMs(t, filepath.Join(dir, "dist"), "linux-amd64", "v1.2.3")
		checkSBOMs(t, filepath.Join(dir, "dist"), "linux-arm64", "v1.2.3")
		r.checkPublished(t, repository, strings.TrimPrefix(ref, image+"@"), currentRevision(os.Getenv))
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// testPublishThis publishes this repository's own image, pulls it back by digest
// and runs it.
func (e *testEngine) testPublishThis(t *testing.T) {
	r := startRegistry(t)
	t.Setenv("TEST_REGISTRY_PASSWORD", registryPassword)
	out, platform := t.TempDir(), "linux-"+runtime.GOARCH
	got := e.pipeline(t, e.root, "publish", "--out", out, "--platforms", "linux/"+runtime.GOARCH, "--tag", "v0.0.0-test",
		"--image", r.host+"/team/mayfly", "--registry-user", registryUser, "--registry-password", "env:TEST_REGISTRY_PASSWORD")
	got.mustPass(t)
	checkSBOMs(t, out, platform, "v0.0.0-test")
	_, digest, _ := strings.Cut(strings.TrimSpace(string(read(t, filepath.Join(out, "digest")))), "@")
	root := r.unpack(t, "team/mayfly", digest)
	read(t, filepath.Join(root, "etc", "mayfly", "issuer.yaml"))
	program := filepath.Join(root, "usr", "local", "bin", "mayfly-issuer")
	if digestOf(read(t, program)) != digestOf(read(t, filepath.Join(out, platform, "mayfly-issuer"))) {
		t.Error("what was published is not what was built")
	}
	said, err := exec.CommandContext(t.Context(), program, "version").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(said), "mayfly-issuer ") {
		t.Errorf("mayfly-issuer version: %v, %s", err, said)
	}
}

// publishSmall publishes a small checkout. A digest file of an older run is there
// already, and must not be mistaken for this run's.
func (e *testEngine) publishSmall(t *testing.T, image string) result {
	t.Helper()
	dir := small(t, nil)
	digest := filepath.Join(dir, "dist", "digest")
	if err := os.MkdirAll(filepath.Dir(digest), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(digest, []byte("of a run before\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got := e.pipeline(t, dir, "publish", "--platforms", "linux/amd64", "--image", image,
		"--registry-user", registryUser, "--registry-password", "env:TEST_REGISTRY_PASSWORD")
	if _, err := os.Stat(digest); (err == nil) != (got.code == 0) {
		t.Errorf("exit code %d, and the digest file: %v", got.code, err)
	}
	if strings.Contains(got.stdout, "sha256:") != (got.code == 0) {
		t.Errorf("exit code %d, and printed: %s", got.code, got.stdout)
	}
	return got
}

// testTest runs this repository's own test step: unit tests of some packages, and
// the integration tests against the services.
func (e *testEngine) testTest(t *testing.T) {
	got := e.pipeline(t, e.root, "test", "--test-packages", "./client/wire ./ca/identity ./issuer/internal/policy")
	got.mustPass(t)
	for _, want := range []string{"--- PASS: TestIntegrationReady", "--- PASS: TestIntegrationFeed", "--- PASS: TestIntegrationGarbageToken"} {
		if !strings.Contains(got.stderr, want) {
			t.Errorf("the progress lacks %q", want)
		}
	}
}

// testDeploy: a deployment outside main is refused before the program connects to
// an engine.
func (e *testEngine) testDeploy(t *testing.T) {
	dir := small(t, nil)
	args := []string{"deploy", "--image", "127.0.0.1:1/r", "--fly-app", "a"}
	e.pipeline(t, dir, args...).mustFail(t, "deploy runs on refs/heads/main only")
	if got := e.pipeline(t, dir, append(args, "--dry-run")...); got.code != 0 || !strings.Contains(got.stdout, "would be refused") {
		t.Errorf("dry run: exit code %d, %s", got.code, got.stdout)
	}
}

// testBazel builds the example workspace twice, the second time from the cache.
func (e *testEngine) testBazel(t *testing.T) {
	out, workspace := t.TempDir(), t.TempDir()
	if err := os.CopyFS(workspace, os.DirFS(filepath.Join(e.root, "pipeline", "testdata", "bazel"))); err != nil {
		t.Fatal(err)
	}
	// A Bazel before 6 needs this file; a later one ignores it.
	if err := os.WriteFile(filepath.Join(workspace, "WORKSPACE"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		e.pipeline(t, e.root, "build", "--builder", "bazel", "--bazel-workspace", workspace, "--out", out).mustPass(t)
		text, err := os.ReadFile(filepath.Join(out, "bazel", "hello.txt"))
		if err != nil || !strings.HasPrefix(string(text), "hello from bazel on\n") {
			t.Fatalf("hello.txt: %q, %v", text, err)
		}
	}
}

// lockedBuffer collects the output of several goroutines.
type lockedBuffer struct {
	mu   sync.Mutex
	kept bytes.Buffer
	seen func(string)
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kept.Write(p)
	if b.seen != nil {
		b.seen(b.kept.String())
	}
	return len(p), nil
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.kept.String()
}
