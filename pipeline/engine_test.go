package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// given says how to give an engine to these tests. .ci/run cannot install one:
// its image is in a registry, and its sources are no tagged module.
const given = `no Dagger engine was given. Give one that runs:
  _EXPERIMENTAL_DAGGER_RUNNER_HOST  its address, a tunnel's for example
or a command, which is started behind mayfly-sidecar on a machine of fly/local (as root):
  MAYFLY_TEST_ENGINE_CMD            such as "dagger-engine --oci-cni-pool-size 2"
  MAYFLY_TEST_ENGINE_SOCKET         such as /run/dagger/engine.sock
and, where no registry and no download can be reached, as tarballs and paths:
  _EXPERIMENTAL_DAGGER_CLI_BIN, PIPELINE_BASE_IMAGE, PIPELINE_POSTGRES_IMAGE, PIPELINE_BAZEL_IMAGE`

// TestEngine runs the pipeline on the engine that is given. Without one its only
// part is that this program says what it lacks.
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

// testNoEngine: an engine that is not there, and none at all, are said at once.
func testNoEngine(t *testing.T) {
	for _, name := range []string{"MAYFLY_ISSUER", "DAGGER_SESSION_PORT", "_EXPERIMENTAL_DAGGER_RUNNER_HOST"} {
		t.Setenv(name, "") // and back afterwards
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

// lastLines are the ten that a person reads.
func lastLines(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}

// testEngine is the engine that was given; with a command, the machine of
// fly/local that it runs on.
type testEngine struct {
	root string
	dir  string // of fly/local --keep; empty without a command
}

// start runs the whole system with the engine's command in it, and takes over
// the environment of a job.
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

// env is what DIR/env says now.
func (e *testEngine) env(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", `. "$0" && printenv "$1"`, filepath.Join(e.dir, "keep", "env"), name).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// result is how one run of this program ended.
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

// watch runs it and shows its progress to a function as it comes.
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

// mustFail wants the cause where a person looks.
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

// small is a checkout of the same shape as this one that compiles in no time.
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

// testBuild builds this repository for both platforms: static programs, and OCI
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

// testRegistry is a registry on loopback that wants a password.
type testRegistry struct {
	host string // host:port

	mu     sync.Mutex
	writes int // requests that were let in and change something
}

const registryUser, registryPassword = "robot", "correct-horse-7391"

func startRegistry(t *testing.T) *testRegistry {
	t.Helper()
	r := &testRegistry{}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if user, password, _ := q.BasicAuth(); user != registryUser || password != registryPassword {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
			return
		}
		if q.Method != http.MethodGet && q.Method != http.MethodHead {
			r.mu.Lock()
			r.writes++
			r.mu.Unlock()
		}
		inner.ServeHTTP(w, q)
	}))
	t.Cleanup(server.Close)
	r.host = strings.TrimPrefix(server.URL, "http://")
	return r
}

// get pulls by OCI's distribution protocol, and holds what came against the
// digest that was asked for, if it was one.
func (r *testRegistry) get(t *testing.T, repository, kind, reference string) ([]byte, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.host+"/v2/"+repository+"/"+kind+"/"+reference, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.SetBasicAuth(registryUser, registryPassword)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", reference, answer.Status)
	}
	if got := digestOf(body); strings.HasPrefix(reference, "sha256:") && got != reference {
		t.Errorf("%s is %s", reference, got)
	}
	return body, nil
}

func digestOf(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

// decode pulls a JSON document by its digest.
func (r *testRegistry) decode(t *testing.T, repository, kind, digest string, into any) {
	t.Helper()
	data, err := r.get(t, repository, kind, digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatal(err)
	}
}

// testPublish pushes a commit's image, pulls it back by the digest that was told,
// and looks into it: on a branch, and on main, which is latest too. The password
// is in no output.
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

// checkSBOMs holds the documents of a platform's programs.
func checkSBOMs(t *testing.T, out, platform, version string) {
	t.Helper()
	for _, program := range programs {
		program = filepath.Base(program)
		checkSBOM(t, filepath.Join(out, platform, program), filepath.Join(out, "sbom", platform, program+".cdx.json"), version)
	}
}

// checkSBOM wants a document of the program's very bytes, with every module that
// is linked into it.
func checkSBOM(t *testing.T, program, sbom, version string) {
	t.Helper()
	var document struct {
		Format   string `json:"bomFormat"`
		Metadata struct {
			Component  struct{ Version, PURL string }
			Properties []struct{ Name, Value string }
		}
		Components []struct{ Name, Version string }
	}
	if err := json.Unmarshal(read(t, sbom), &document); err != nil {
		t.Fatal(err)
	}
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	arch := slices.IndexFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == "GOARCH" })
	if c := document.Metadata.Component; document.Format != "CycloneDX" || c.Version != version || !strings.Contains(c.PURL, "goarch="+info.Settings[arch].Value) {
		t.Errorf("%s: %s of %+v", sbom, document.Format, c)
	}
	hash := strings.TrimPrefix(digestOf(read(t, program)), "sha256:")
	if !slices.ContainsFunc(document.Metadata.Properties, func(p struct{ Name, Value string }) bool { return p.Value == hash }) {
		t.Errorf("%s is of other bytes than %s", sbom, program)
	}
	want, got := map[string]string{"std": info.GoVersion}, map[string]string{}
	for _, m := range info.Deps {
		want[m.Path] = m.Version
	}
	for _, c := range document.Components {
		got[c.Name] = c.Version
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: what is linked, and what it says:\n%s", sbom, diff)
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

// unpack pulls an image of one platform and gives the folder that holds its files.
func (r *testRegistry) unpack(t *testing.T, repository, digest string) string {
	t.Helper()
	var index v1.IndexManifest
	if r.decode(t, repository, "manifests", digest, &index); len(index.Manifests) == 1 {
		digest = index.Manifests[0].Digest.String()
	}
	var manifest v1.Manifest
	r.decode(t, repository, "manifests", digest, &manifest)
	root := t.TempDir()
	for _, l := range manifest.Layers {
		layer, err := r.get(t, repository, "blobs", l.Digest.String())
		if err != nil {
			t.Fatal(err)
		}
		untar := exec.CommandContext(t.Context(), "tar", "-xz", "-C", root)
		untar.Stdin = bytes.NewReader(layer)
		if said, err := untar.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, said)
		}
	}
	return root
}

// checkPublished pulls an image of both platforms by its digest. The working
// folder is the checkout that it was made from.
func (r *testRegistry) checkPublished(t *testing.T, repository, digest string, rev revision) {
	t.Helper()
	for _, tag := range []string{"v1.2.3", rev.tag()} {
		if tagged, err := r.get(t, repository, "manifests", tag); err != nil || digestOf(tagged) != digest {
			t.Errorf("tag %s is %s (%v), want %s", tag, digestOf(tagged), err, digest)
		}
	}
	if _, err := r.get(t, repository, "manifests", "latest"); (err == nil) != rev.main {
		t.Errorf("latest is pushed on main only: %v on %s", err, rev.ref)
	}
	var index v1.IndexManifest
	r.decode(t, repository, "manifests", digest, &index)
	platforms := map[string]bool{}
	for _, m := range index.Manifests {
		platforms[m.Platform.String()] = true
		r.checkImage(t, repository, m, rev)
	}
	if len(platforms) != 2 || !platforms["linux/amd64"] || !platforms["linux/arm64"] {
		t.Errorf("platforms: %v", platforms)
	}
}

// checkImage pulls all of one platform's image.
func (r *testRegistry) checkImage(t *testing.T, repository string, m v1.Descriptor, rev revision) {
	t.Helper()
	var manifest v1.Manifest
	r.decode(t, repository, "manifests", m.Digest.String(), &manifest)
	var config v1.ConfigFile
	r.decode(t, repository, "blobs", manifest.Config.Digest.String(), &config)
	if config.Architecture != m.Platform.Architecture {
		t.Errorf("%s: the configuration says %s", m.Platform, config.Architecture)
	}
	for label, want := range map[string]string{
		"org.opencontainers.image.title": "mayfly", "org.opencontainers.image.licenses": "Apache-2.0",
		"org.opencontainers.image.revision": rev.sha, "org.opencontainers.image.ref.name": rev.tag(), "org.opencontainers.image.source": rev.url,
	} {
		if got := config.Config.Labels[label]; got != want {
			t.Errorf("%s: label %s = %q, want %q", m.Platform, label, got, want)
		}
	}
	if fmt.Sprint(config.Config.Entrypoint) != "[/usr/local/bin/mayfly-issuer]" {
		t.Errorf("%s: entrypoint %v", m.Platform, config.Config.Entrypoint)
	}
	if len(manifest.Layers) == 0 {
		t.Errorf("%s: no layers", m.Platform)
	}
	for _, l := range manifest.Layers {
		if _, err := r.get(t, repository, "blobs", l.Digest.String()); err != nil {
			t.Errorf("%s: %v", m.Platform, err)
		}
	}
}

// publishSmall publishes a small checkout over an older run's digest file, which
// must not be left to be taken for this run's.
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

func (e *testEngine) testWrongPassword(t *testing.T) {
	r := startRegistry(t)
	t.Setenv("TEST_REGISTRY_PASSWORD", "wrong-battery-1042")
	got := e.publishSmall(t, r.host+"/team/mayfly")
	got.mustFail(t, "publish: push "+r.host+"/team/mayfly:", "401", "refuses robot")
	if strings.Contains(got.stdout+got.stderr, "wrong-battery-1042") {
		t.Error("the password is in the output")
	}
	if r.writes != 0 {
		t.Errorf("%d writes were let in", r.writes)
	}
	t.Setenv("TEST_REGISTRY_PASSWORD", registryPassword) // its allowed twin
	e.publishSmall(t, r.host+"/team/mayfly").mustPass(t)
}

func (e *testEngine) testUnreachableRegistry(t *testing.T) {
	closed := httptest.NewServer(nil)
	host := strings.TrimPrefix(closed.URL, "http://")
	closed.Close()
	t.Setenv("TEST_REGISTRY_PASSWORD", registryPassword)
	e.publishSmall(t, host+"/team/mayfly").mustFail(t, "publish: push "+host+"/team/mayfly:", "connection refused")
}

const failingTest = `package small

import "testing"

func TestArithmetic(t *testing.T) { t.Fatalf("two and two are %d", 5) }
`

func (e *testEngine) testFailingTest(t *testing.T) {
	dir := small(t, map[string]string{"small_test.go": failingTest})
	e.pipeline(t, dir, "test").mustFail(t, "test: unit tests", "two and two are 5", "FAIL")
}

// testTest runs this repository's own test step, unit tests of some packages
// and the integration tests against the services.
func (e *testEngine) testTest(t *testing.T) {
	got := e.pipeline(t, e.root, "test", "--test-packages", "./client/wire ./ca/identity ./issuer/policy")
	got.mustPass(t)
	for _, want := range []string{"--- PASS: TestIntegrationReady", "--- PASS: TestIntegrationFeed", "--- PASS: TestIntegrationGarbageToken"} {
		if !strings.Contains(got.stderr, want) {
			t.Errorf("the progress lacks %q", want)
		}
	}
}

// testDeploy is refused off main before the engine is asked.
func (e *testEngine) testDeploy(t *testing.T) {
	dir := small(t, nil)
	args := []string{"deploy", "--image", "127.0.0.1:1/r", "--fly-app", "a"}
	e.pipeline(t, dir, args...).mustFail(t, "deploy runs on refs/heads/main only")
	if got := e.pipeline(t, dir, append(args, "--dry-run")...); got.code != 0 || !strings.Contains(got.stdout, "would be refused") {
		t.Errorf("dry run: exit code %d, %s", got.code, got.stdout)
	}
}

// testBazel builds the example workspace twice; the second time from the cache.
func (e *testEngine) testBazel(t *testing.T) {
	out, workspace := t.TempDir(), t.TempDir()
	if err := os.CopyFS(workspace, os.DirFS(filepath.Join(e.root, "pipeline", "testdata", "bazel"))); err != nil {
		t.Fatal(err)
	}
	// A Bazel before 6 wants this file, a later one lets it be.
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

// testCacheOutlivesStop stops the machine as Fly does, and builds again: the
// engine starts on the connection, and compiles nothing.
func (e *testEngine) testCacheOutlivesStop(t *testing.T) {
	e.pipeline(t, e.root, "build", "--out", t.TempDir()).mustPass(t)
	e.stopMachine(t, syscall.SIGTERM)
	e.waitStopped(t)
	out := t.TempDir()
	got := e.pipeline(t, e.root, "build", "--out", out)
	got.mustPass(t)
	e.checkBuild(t, out)
	// Dagger says so of each step that it had.
	if !strings.Contains(got.stderr, "CACHED") {
		t.Errorf("nothing came from the cache:\n%s", got.stderr)
	}
}

func (e *testEngine) stopMachine(t *testing.T, signal syscall.Signal) {
	t.Helper()
	pid, err := strconv.Atoi(e.env(t, "SIDECAR_PID"))
	if err != nil {
		t.Fatalf("the machine does not run: %v", err)
	}
	if err := syscall.Kill(pid, signal); err != nil {
		t.Fatal(err)
	}
}

func (e *testEngine) waitStopped(t *testing.T) {
	t.Helper()
	deadline := time.After(5 * time.Minute)
	for e.env(t, "SIDECAR_PID") != "" {
		select {
		case <-deadline:
			t.Fatal("the machine does not stop")
		case <-time.After(100 * time.Millisecond):
		}
	}
}

const endlessTest = `package small

import (
	"testing"
	"time"
)

func TestEndless(t *testing.T) {
	println("the endless test runs")
	time.Sleep(time.Hour)
}
`

// testEnds ends the machine while a step runs: the run ends soon, and says why.
func (e *testEngine) testEnds(t *testing.T, signal syscall.Signal, cause string) {
	dir := small(t, map[string]string{"small_test.go": endlessTest})
	var once sync.Once
	got := e.watch(t, dir, func(progress string) {
		if strings.Contains(progress, "the endless test runs") {
			once.Do(func() { e.stopMachine(t, signal) })
		}
	}, "test", "--test-packages", "-v .") // with -v, and of one package, go test shows output as it comes
	got.mustFail(t, "pipeline: failed: test: unit tests: ", cause)
	e.waitStopped(t)
}

// lockedBuffer collects what several goroutines write.
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
