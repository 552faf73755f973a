package e2e

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// testRelease is the version of the tests' releases.
const testRelease = "v1.98.7"

// releaseHost serves a release as GitHub does: the first host redirects to a second
// host, with a signed URL.
type releaseHost struct {
	host   string // name and port of the host of releases and repositories
	action string // a copy of the action that pins this release
	git    string // folder of the repositories; empty until publish
	asset  string // name of this machine's program
	bytes  []byte // the program
	ca     string // PEM file with the root of both hosts

	mu sync.Mutex
	// answer, if set, is the handler of the second host.
	answer http.HandlerFunc
	asked  int
}

func needNode(t *testing.T) {
	t.Helper()
	_, err := exec.LookPath("node")
	need(t, err == nil, "the action is JavaScript: apt-get install nodejs")
}

// newReleaseHost makes a release with the project's own scripts, and serves it. The
// program is built for this machine and is also used for the other platforms.
func newReleaseHost(t *testing.T, action string) *releaseHost {
	t.Helper()
	needNode(t)
	h := &releaseHost{action: action, asset: "mayfly_" + testRelease + "_" + runtime.GOOS + "_" + runtime.GOARCH}
	dist := t.TempDir()
	must(t, "sh", "../../client/action/release.sh", testRelease, dist, runtime.GOOS+"/"+runtime.GOARCH)
	var err error
	if h.bytes, err = os.ReadFile(filepath.Join(dist, h.asset)); err != nil {
		t.Fatal(err)
	}
	for _, platform := range []string{"linux_amd64", "linux_arm64", "darwin_amd64", "darwin_arm64"} {
		if err := os.WriteFile(filepath.Join(dist, "mayfly_"+testRelease+"_"+platform), h.bytes, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	copyTree(t, "../../client/action", action)
	must(t, "node", filepath.Join(action, "pin.js"), testRelease, dist)
	must(t, "node", filepath.Join(action, "pin.js"), "--check", testRelease, dist)
	h.serve(t)
	return h
}

func (h *releaseHost) serve(t *testing.T) {
	t.Helper()
	assets := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		h.asked++
		answer := h.answer
		h.mu.Unlock()
		switch {
		case r.URL.RawQuery != "sig=signed-secret":
			http.Error(w, "unsigned", http.StatusForbidden)
		case answer != nil:
			answer(w, r)
		default:
			w.Write(h.bytes)
		}
	}))
	t.Cleanup(assets.Close)
	host := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/mayfly-ca/mayfly/releases/download/"+testRelease+"/"+h.asset:
			http.Redirect(w, r, assets.URL+"/object?sig=signed-secret", http.StatusFound)
		case h.git != "" && strings.HasPrefix(r.URL.Path, "/mayfly-ca/"):
			h.serveGit(w, r)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(host.Close)
	h.ca = filepath.Join(t.TempDir(), "ca.pem")
	writeFile(t, h.ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: host.Certificate().Raw})))
	h.host = host.Listener.Addr().String()
	h.pin(t, func(c *checksums) { c.Base = strings.Replace(c.Base, "https://github.com", host.URL, 1) })
}

// publish makes the host serve the action as the repository mayfly-ca/mayfly. The
// tag v1 is moved to the release in the same way as in release.yml.
func (h *releaseHost) publish(t *testing.T) {
	t.Helper()
	script, err := filepath.Abs("../../.github/major-tag.sh")
	if err != nil {
		t.Fatal(err)
	}
	clone, folder := filepath.Join(h.action, "..", ".."), t.TempDir()
	remote := filepath.Join(folder, "mayfly-ca", "mayfly")
	must(t, "git", "init", "-q", "--bare", "--initial-branch", "main", remote)
	for _, args := range [][]string{
		{"init", "-q"}, {"add", "-A"}, {"-c", "user.name=e2e", "-c", "user.email=e2e@example.com", "commit", "-q", "-m", testRelease}, {"tag", testRelease},
		{"remote", "add", "origin", remote}, {"push", "-q", "origin", "HEAD:refs/heads/main", testRelease},
	} {
		must(t, "git", append([]string{"-C", clone}, args...)...)
	}
	must(t, "sh", "-c", `cd "$0" && "$1" "$2"`, clone, script, testRelease)
	h.git = folder
}

// serveGit answers the git clients of git and act, as GitHub does.
func (h *releaseHost) serveGit(w http.ResponseWriter, r *http.Request) {
	path, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	(&cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(path)), "git-http-backend"), Root: "/",
		Env: []string{"GIT_PROJECT_ROOT=" + h.git, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	}).ServeHTTP(w, r)
}

// checksums is client/action/checksums.json.
type checksums struct {
	Base     string                       `json:"base"`
	Latest   string                       `json:"latest"`
	Releases map[string]map[string]string `json:"releases"`
}

// pin changes the pinned values in the copy of the action.
func (h *releaseHost) pin(t *testing.T, change func(*checksums)) {
	t.Helper()
	path := filepath.Join(h.action, "checksums.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var c checksums
	if err := json.Unmarshal(data, &c); err != nil {
		t.Fatal(err)
	}
	change(&c)
	if data, err = json.Marshal(c); err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, string(data))
}

// behave sets the handler of the second host, and resets the count of requests.
func (h *releaseHost) behave(answer http.HandlerFunc) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answer, h.asked = answer, 0
}

func (h *releaseHost) requests() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.asked
}

func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// install runs the action's main step in mode none. It returns the log, the version
// that the installed program prints, and the error.
func (h *releaseHost) install(t *testing.T, version string, env ...string) (log, installed string, err error) {
	t.Helper()
	r := newRunner(t, append([]string{"NODE_EXTRA_CA_CERTS=" + h.ca, "RUNNER_TOOL_CACHE="}, env...)...)
	r.action = h.action
	log, err = r.node(t, "main.js", map[string]string{"mode": "none", "version": version})
	path, _ := os.ReadFile(filepath.Join(r.dir, "GITHUB_PATH"))
	if dir := strings.TrimSpace(string(path)); dir != "" {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("PATH gets a folder that holds %v, %v", entries, err)
		}
		installed = must(t, filepath.Join(dir, "mayfly"), "version")
	}
	if post, perr := r.node(t, "post.js", nil); perr != nil {
		t.Errorf("post.js: %v\n%s", perr, post)
	}
	left, _ := filepath.Glob(filepath.Join(r.dir, "mayfly-*"))
	if len(left) > 0 {
		t.Errorf("the post step left %v", left)
	}
	return log, installed, err
}

func TestActionProgram(t *testing.T) {
	t.Parallel()
	h := newReleaseHost(t, filepath.Join(t.TempDir(), "client", "action"))
	t.Run("downloaded", func(t *testing.T) { testDownload(t, h) })
	t.Run("cached", func(t *testing.T) { testToolCache(t, h) })
	t.Run("in order", func(t *testing.T) { testPlaces(t, h) })
}

// The program comes from a release whose checksum the action pins, through GitHub's
// redirects. Only the pinned bytes are ever run.
func testDownload(t *testing.T, h *releaseHost) {
	declared := func(n int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(n))
			w.Write(h.bytes[:len(h.bytes)/2])
		}
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", code) }
	}
	machine := func(what string) string { // as if this machine had another platform
		path := filepath.Join(t.TempDir(), "machine.js")
		writeFile(t, path, what)
		return "NODE_OPTIONS=--require=" + path
	}
	var flaky sync.Once
	for _, tt := range []struct {
		name    string
		version string
		answer  http.HandlerFunc
		env     []string
		asked   int
		want    []string // empty: it is installed
	}{
		{name: "pinned by the action", asked: 1},
		{name: "named", version: testRelease, asked: 1},
		{name: "passing trouble", version: testRelease, asked: 2, answer: func(w http.ResponseWriter, r *http.Request) {
			served := true
			flaky.Do(func() { served = false; status(503)(w, r) })
			if served {
				w.Write(h.bytes)
			}
		}},
		{name: "other bytes", asked: 1, want: []string{"has SHA-256", "is pinned", "not run"},
			answer: func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "#!/bin/sh\necho owned\n") }},
		{name: "one bit", asked: 1, want: []string{"has SHA-256"}, answer: func(w http.ResponseWriter, _ *http.Request) {
			other := append([]byte(nil), h.bytes...)
			other[len(other)/2] ^= 1
			w.Write(other)
		}},
		{name: "absent", asked: 1, answer: status(404), want: []string{"answers 404", h.asset, "version: path"}},
		{name: "down", asked: 3, answer: status(502), want: []string{"answers 502", "3 attempts"}},
		{name: "truncated", asked: 3, answer: declared(len(h.bytes)), want: []string{"download", "3 attempts"}},
		{name: "truncated, undeclared", asked: 1, want: []string{"has SHA-256"},
			answer: func(w http.ResponseWriter, _ *http.Request) { w.Write(h.bytes[:len(h.bytes)/2]) }},
		{name: "endless", asked: 1, want: []string{"more than 67108864 bytes"}, answer: func(w http.ResponseWriter, _ *http.Request) {
			for piece := make([]byte, 1<<20); ; {
				if _, err := w.Write(piece); err != nil {
					return
				}
			}
		}},
		{name: "redirect to http", asked: 1, want: []string{"is not https"}, answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+r.Host+"/object?sig=signed-secret", http.StatusFound)
		}},
		{name: "redirect for ever", asked: 5, want: []string{"more than 5 redirects"}, answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/object?sig=signed-secret", http.StatusFound)
		}},
		{name: "redirect nowhere", asked: 1, answer: status(304), want: []string{"answers 304"}},
		{name: "another TLS root", env: []string{"NODE_EXTRA_CA_CERTS="}, want: []string{"certificate"}},
		{name: "unpinned version", version: "v1.0.0", want: []string{"pins no checksum", "mayfly_v1.0.0_"}},
		{name: "unknown architecture", version: testRelease, want: []string{"no program for", "s390x"},
			env: []string{machine("Object.defineProperty(process, 'arch', {value: 's390x'})")}},
		{name: "unknown system", version: testRelease, want: []string{"no program for win32"},
			env: []string{machine("Object.defineProperty(process, 'platform', {value: 'win32'})")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h.behave(tt.answer)
			log, installed, err := h.install(t, tt.version, tt.env...)
			if ok := len(tt.want) == 0; ok != (err == nil) || ok != strings.HasPrefix(installed, "mayfly "+testRelease+"\n") {
				t.Errorf("main.js: %v, installed %q\n%s", err, installed, log)
			}
			for _, want := range append(tt.want, map[bool]string{true: "release " + testRelease, false: "::error"}[len(tt.want) == 0]) {
				if !strings.Contains(log, want) {
					t.Errorf("the log lacks %q:\n%s", want, log)
				}
			}
			if got := h.requests(); got != tt.asked {
				t.Errorf("the release's host was asked %d times, want %d", got, tt.asked)
			}
			if strings.Contains(log, "signed-secret") {
				t.Errorf("the signed address is in the log:\n%s", log)
			}
		})
	}
}

// The tool cache saves the download. The action uses a cached file only if it has
// the pinned bytes.
func testToolCache(t *testing.T, h *releaseHost) {
	cache := t.TempDir()
	program := func() string {
		found, _ := filepath.Glob(filepath.Join(cache, "mayfly", strings.TrimPrefix(testRelease, "v"), "*", "mayfly"))
		if len(found) != 1 {
			t.Fatalf("the cache holds %v", found)
		}
		return found[0]
	}
	for _, tt := range []struct {
		name   string
		before func()
		asked  int
		want   string
	}{
		{"empty", func() {}, 1, "release " + testRelease},
		{"filled", func() {}, 0, "from the tool cache"},
		{"changed by another job", func() { writeFile(t, program(), "#!/bin/sh\necho owned\n") }, 1, "is not the pinned"},
		{"healed", func() {}, 0, "from the tool cache"},
		{"not writable", func() {
			if err := os.RemoveAll(filepath.Join(cache, "mayfly")); err != nil {
				t.Fatal(err)
			}
			writeFile(t, filepath.Join(cache, "mayfly"), "a file in the way")
		}, 1, "the tool cache was not written"},
	} {
		h.behave(nil)
		tt.before()
		log, installed, err := h.install(t, "", "RUNNER_TOOL_CACHE="+cache)
		if err != nil || !strings.HasPrefix(installed, "mayfly "+testRelease+"\n") || !strings.Contains(log, tt.want) {
			t.Errorf("%s: %v, installed %q, log lacks %q\n%s", tt.name, err, installed, tt.want, log)
		}
		if got := h.requests(); got != tt.asked {
			t.Errorf("%s: the release's host was asked %d times, want %d", tt.name, got, tt.asked)
		}
	}
}

// Without a version, the sources are tried in order. With a named source, only that
// one is tried.
func testPlaces(t *testing.T, h *releaseHost) {
	h.behave(nil)
	program := func(name string) string {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	folder := func(name, script string) string {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, name), "#!/bin/sh\n"+script+"\n")
		if err := os.Chmod(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	bare := folder("node", `exec `+program("node")+` "$@"`) // without mayfly and go
	inPath := folder("mayfly", "echo mayfly of PATH")
	// The action makes go build the action's own checkout.
	compiler := folder("go", `[ -f client/action/action.yml ] && printf '#!/bin/sh\necho mayfly of the source\n' >"$4" && `+program("chmod")+` 700 "$4"`)
	join := func(dirs ...string) string {
		return "PATH=" + strings.Join(dirs, string(filepath.ListSeparator))
	}
	pin := func(on bool) {
		h.pin(t, func(c *checksums) {
			if c.Latest = ""; on {
				c.Latest = testRelease
			}
		})
	}
	for _, tt := range []struct {
		name, version string
		pinned        bool
		path          string
		want          string // the program's output, or the error
	}{
		{"release first", "", true, join(bare, inPath, compiler), "mayfly " + testRelease},
		{"then PATH", "", false, join(bare, inPath, compiler), "mayfly from PATH: " + inPath},
		{"then source", "", false, join(bare, compiler), "mayfly of the source"},
		{"nothing left", "", false, join(bare), "no Go to build it with"},
		{"PATH alone", "path", true, join(bare, inPath, compiler), "mayfly from PATH: " + inPath},
		{"PATH alone, without", "path", true, join(bare, compiler), "PATH has no mayfly"},
		{"source alone", "source", true, join(bare, inPath, compiler), "mayfly of the source"},
	} {
		pin(tt.pinned)
		log, installed, _ := h.install(t, tt.version, tt.path)
		if !strings.Contains(installed+log, tt.want) {
			t.Errorf("%s: installed %q, want %q\n%s", tt.name, installed, tt.want, log)
		}
	}
}

// A release is not pinned if one of its programs is missing or empty.
func TestPinRefuses(t *testing.T) {
	t.Parallel()
	needNode(t)
	dist := t.TempDir()
	file := filepath.Join(t.TempDir(), "checksums.json")
	const before = `{"base":"https://example.com","latest":"","releases":{}}`
	writeFile(t, file, before)
	pin := func(args ...string) string {
		out, err := exec.CommandContext(t.Context(), "node", append([]string{"../../client/action/pin.js"}, args...)...).CombinedOutput()
		if err == nil {
			t.Errorf("pin.js %v: no error\n%s", args, out)
		}
		return string(out)
	}
	for _, platform := range []string{"linux_amd64", "linux_arm64", "darwin_amd64"} {
		writeFile(t, filepath.Join(dist, "mayfly_v1.2.3_"+platform), platform)
	}
	if out := pin("v1.2.3", dist, file); !strings.Contains(out, "mayfly_v1.2.3_darwin_arm64") {
		t.Errorf("one is missing: %s", out)
	}
	writeFile(t, filepath.Join(dist, "mayfly_v1.2.3_darwin_arm64"), "")
	if out := pin("v1.2.3", dist, file); !strings.Contains(out, "0 bytes") {
		t.Errorf("one is empty: %s", out)
	}
	writeFile(t, filepath.Join(dist, "mayfly_v1.2.3_darwin_arm64"), "darwin_arm64")
	pin("1.2.3", dist, file)
	pin("--check", "v1.2.3", dist, file)
	if got, _ := os.ReadFile(file); string(got) != before {
		t.Errorf("a refusal changed the file: %s", got)
	}
	must(t, "node", "../../client/action/pin.js", "v1.2.3", dist, file)
	must(t, "node", "../../client/action/pin.js", "--check", "v1.2.3", dist, file)
	writeFile(t, filepath.Join(dist, "mayfly_v1.2.3_linux_arm64"), "another")
	if out := pin("--check", "v1.2.3", dist, file); !strings.Contains(out, "mayfly_v1.2.3_linux_arm64 is") {
		t.Errorf("one is another: %s", out)
	}
}
