package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/fly/flytest"
	"github.com/mayfly-ca/mayfly/issuer"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// Addresses of the three machines of a distant system.
const (
	issuerAddr = "127.50.0.1" // the issuer certifies itself only for loopback
	engineAddr = "10.77.0.1"
	runnerAddr = "10.77.0.2"
	statusAddr = "127.0.0.1:9091"         // on the engine's machine
	edgeName   = "example-engine.fly.dev" // fly.edge.toml's app
)

// distant is an issuer, an engine's machine and a runner, each in its own network
// namespace. Cables that a test can cut join them. Each device has the name of its
// destination.
//
//	runner --toEngine--------toRunner-- engine
//	   \--toIssuer--[issuer]--toIssuer----/
type distant struct {
	t                      *testing.T
	issuer                 *issuertest.Issuer
	issuerNet, engine, job *netns
	machine                *flytest.Machine
	proxy                  *flytest.Proxy // nil if no proxy is in front of the machine
	sidecarLog             *transcript
	forwarded              map[string]bool
	bin                    string // folder of the programs
	work                   string // the build's context
}

// distantOptions configure a distant. The zero value has no proxy.
type distantOptions struct {
	proxy bool     // Fly's proxy is in front of the machine, as in fly.toml
	edge  bool     // and terminates TLS, as in fly.edge.toml
	env   []string // for the sidecar
}

// file returns the path of the machine's fly.toml.
func (o distantOptions) file() string {
	if o.edge {
		return "engine/fly.edge.toml"
	}
	return "buildkit/fly.toml"
}

func newDistant(t *testing.T, o distantOptions) *distant {
	t.Helper()
	needNetns(t)
	d := &distant{t: t, sidecarLog: &transcript{t: t}, forwarded: map[string]bool{}, bin: programsWithRunc(t), work: t.TempDir()}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the machine said:\n%s", d.sidecarLog)
		}
	})
	d.issuerNet, d.engine, d.job = newNetns(t), newNetns(t), newNetns(t)
	link(d.issuerNet, "toEngine", "127.50.1.1", d.engine, "toIssuer", "127.50.1.2")
	link(d.issuerNet, "toRunner", "127.50.2.1", d.job, "toIssuer", "127.50.2.2")
	link(d.engine, "toRunner", engineAddr, d.job, "toEngine", runnerAddr)
	d.issuerNet.run("ip", "addr", "add", issuerAddr+"/32", "dev", "lo")
	d.engine.run("ip", "route", "add", issuerAddr, "via", "127.50.1.1", "src", "127.50.1.2")
	d.job.run("ip", "route", "add", issuerAddr, "via", "127.50.2.1", "src", "127.50.2.2")

	endpoint := "tcp://" + engineAddr + ":8080"
	if o.edge {
		endpoint = "edge://" + edgeName + ":443"
	}
	d.issuer = issuertest.Start(t, issuertest.Options{
		Endpoint: endpoint,
		Config:   func(c *issuer.Config) { c.Listen = issuerAddr + ":0" },
	})
	d.issuerNet.forward(hostOf(d.issuer.URL))
	d.startMachine(o)
	context := map[string]string{"Dockerfile": "FROM scratch\nCOPY demo /demo\nRUN [\"/demo\", \"tick\"]\n"}
	for name, text := range context {
		writeFile(t, filepath.Join(d.work, name), text)
	}
	if err := os.Link(filepath.Join(d.bin, "demo"), filepath.Join(d.work, "demo")); err != nil {
		t.Fatal(err)
	}
	return d
}

// startMachine makes the engine's machine from the deployed file.
func (d *distant) startMachine(o distantOptions) {
	t := d.t
	t.Helper()
	dir, err := os.MkdirTemp("", "distant") // short enough for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	listen, protocol := engineAddr+":8080", "off"
	if o.proxy || o.edge {
		listen, protocol = "127.0.0.1:8081", "required"
	}
	buildkit := buildkitCommand(t, d.bin, dir)
	sidecar := append([]string{filepath.Join(d.bin, "mayfly-sidecar"), "run", "--"}, buildkit...)
	d.machine, err = flytest.NewMachine(flytest.MachineConfig{
		App: load(t, o.file()), Command: d.engine.command(sidecar...), OIDC: d.issuer.Fly,
		Addresses: map[int]string{8080: listen}, Stdout: d.sidecarLog, Stderr: d.sidecarLog,
		Env: append([]string{
			"MAYFLY_SIDECAR_ISSUER=" + d.issuer.URL, "MAYFLY_SIDECAR_CA_FILE=" + d.issuer.CAFile,
			"MAYFLY_SIDECAR_TRUST_ANCHOR=" + d.issuer.TrustAnchor, "MAYFLY_SIDECAR_ENGINE=" + issuertest.Engine,
			"MAYFLY_SIDECAR_LISTEN=" + listen, "MAYFLY_SIDECAR_PROXY_PROTOCOL=" + protocol,
			"MAYFLY_SIDECAR_ENGINE_SOCKET=" + filepath.Join(dir, "engine.sock"), "MAYFLY_SIDECAR_TOKEN_SOURCE=fly",
			"MAYFLY_SIDECAR_DRAIN_TIMEOUT=1s", "MAYFLY_SIDECAR_STATUS_LISTEN=" + statusAddr,
		}, o.env...),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := d.machine.Stop(ctx); err != nil {
			t.Error(err)
		}
		if err := d.machine.Close(); err != nil {
			t.Error(err)
		}
	})
	if !o.proxy && !o.edge {
		if err := d.machine.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		return
	}
	d.engine.within(func() {
		d.proxy, err = flytest.NewProxy(flytest.ProxyConfig{
			Machine: d.machine, Listen: map[int]string{8080: engineAddr + ":8080", 443: engineAddr + ":443"}, IdleStop: -1, Dial: d.engine.dial,
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.proxy.Close() })
}

// buildkitCommand returns the command of a BuildKit that listens on
// dir/engine.sock.
func buildkitCommand(t *testing.T, bin, dir string) []string {
	t.Helper()
	config := filepath.Join(dir, "buildkitd.toml")
	writeFile(t, config, fmt.Sprintf("[worker.oci]\ndefaultCgroupParent = %q\n[worker.containerd]\nenabled = false\n", "/mayfly-"+filepath.Base(dir)))
	removeCgroups(t, "mayfly-"+filepath.Base(dir))
	return []string{engineTool(t, "buildkitd"), "--config", config, "--addr", "unix://" + filepath.Join(dir, "engine.sock"),
		"--root", filepath.Join(dir, "state"), "--oci-worker-snapshotter", "overlayfs",
		"--oci-worker=true", "--oci-worker-binary", filepath.Join(bin, "runc"), "--otel-socket-path", filepath.Join(dir, "otel.sock")}
}

// removeCgroups removes, at the test's end, the cgroups of this name that
// BuildKit's containers leave behind.
func removeCgroups(t *testing.T, name string) {
	t.Cleanup(func() {
		for _, pattern := range []string{"", "*/", "*/*/"} {
			found, _ := filepath.Glob("/sys/fs/cgroup/" + pattern + name)
			for _, group := range found {
				removeCgroup(group)
			}
		}
	})
}

// ready returns the answer of the sidecar's /readyz.
func (d *distant) ready() string {
	d.t.Helper()
	transport := &http.Transport{DialContext: d.engine.dial, DisableKeepAlives: true}
	res, err := (&http.Client{Transport: transport, Timeout: patience}).Get("http://" + statusAddr + "/readyz")
	if err != nil {
		d.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return strings.TrimSpace(string(body))
}

// removeCgroup removes a control group and those below it.
func removeCgroup(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, entry := range entries {
		if entry.IsDir() {
			removeCgroup(filepath.Join(dir, entry.Name()))
		}
	}
	_ = syscall.Rmdir(dir)
}

// run is a job on the runner's machine: a build through the tunnel, with a step
// that ticks for ten minutes.
type run struct {
	cmd   *exec.Cmd
	out   *transcript
	ended <-chan struct{}
}

// build starts a build with its own run id. flags are mayfly's.
func (d *distant) build(runID string, flags ...string) *run {
	d.t.Helper()
	ended := make(chan struct{})
	r := &run{out: &transcript{t: d.t, over: ended}, ended: ended}
	argv := append(d.job.command(d.named(filepath.Join(d.bin, "mayfly"), "exec")...), flags...)
	argv = append(argv, "--", engineTool(d.t, "buildctl"), "build", "--progress", "plain", "--no-cache",
		"--frontend", "dockerfile.v0", "--local", "context="+d.work, "--local", "dockerfile="+d.work)
	r.cmd = exec.Command(argv[0], argv[1:]...)
	r.cmd.Env = d.environ(runID)
	r.cmd.Stdout, r.cmd.Stderr = r.out, r.out
	r.cmd.WaitDelay = 2 * time.Second
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := r.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	go func() {
		defer close(ended)
		_ = r.cmd.Wait() // ProcessState has the result
	}()
	d.t.Cleanup(func() {
		r.kill()
		<-r.ended
		if d.t.Failed() {
			d.t.Logf("run %s said:\n%s", runID, r.out)
		}
	})
	return r
}

// environ returns the environment of a job's steps.
func (d *distant) environ(runID string) []string {
	runner := d.issuer.GitHub.NewJob(map[string]any{"run_id": runID})
	if host := hostOf(runner.RequestURL); !d.forwarded[host] {
		d.forwarded[host] = true
		d.job.forward(host)
	}
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + d.work, "MAYFLY_ISSUER=" + d.issuer.URL, "MAYFLY_CA_FILE=" + d.issuer.CAFile,
		"ACTIONS_ID_TOKEN_REQUEST_URL=" + runner.RequestURL, "ACTIONS_ID_TOKEN_REQUEST_TOKEN=" + runner.RequestToken,
	}
	if roots := d.edgeRoots(); roots != "" {
		env = append(env, "SSL_CERT_FILE="+roots)
	}
	return env
}

// named returns a command line that runs argv with its own /etc/hosts, which knows
// the edge by its name.
func (d *distant) named(argv ...string) []string {
	hosts := filepath.Join(d.work, "hosts")
	writeFile(d.t, hosts, engineAddr+" "+edgeName+"\n")
	return append([]string{"unshare", "--mount", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, hosts}, argv...)
}

// edgeRoots returns a file with the CA of the edge's certificate, or "" without an
// edge. The runner uses it as the system's roots.
func (d *distant) edgeRoots() string {
	if d.proxy == nil || d.proxy.EdgeRoots() == nil {
		return ""
	}
	file := filepath.Join(d.work, "edge.pem")
	writeFile(d.t, file, string(d.proxy.EdgeRoots()))
	return file
}

// kill ends the job as if its machine was taken away.
func (r *run) kill() { _ = syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL) }

// wait waits for the job's end and returns its exit code.
func (r *run) wait(most time.Duration) int {
	r.out.t.Helper()
	select {
	case <-r.ended:
	case <-time.After(most):
		r.out.t.Fatalf("the job does not end:\n%s", r.out)
	}
	return r.cmd.ProcessState.ExitCode()
}

// transcript collects a program's output, so that a test can wait for it.
type transcript struct {
	t    *testing.T
	over <-chan struct{} // closed when the program has ended; may be nil
	mu   sync.Mutex
	text bytes.Buffer
	news chan struct{}
}

// Write implements io.Writer.
func (s *transcript) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.news != nil {
		close(s.news)
		s.news = nil
	}
	return s.text.Write(p)
}

// String returns all output so far.
func (s *transcript) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// position returns the length of the output so far, for awaitAfter.
func (s *transcript) position() int { return len(s.String()) }

// await waits until one line of the output contains all parts.
func (s *transcript) await(most time.Duration, parts ...string) string {
	s.t.Helper()
	return s.awaitAfter(0, most, parts...)
}

// awaitAfter is await for the output after a position.
func (s *transcript) awaitAfter(position int, most time.Duration, parts ...string) string {
	s.t.Helper()
	late := time.After(most)
	for {
		s.mu.Lock()
		text := s.text.String()
		if s.news == nil {
			s.news = make(chan struct{})
		}
		news := s.news
		s.mu.Unlock()
		for line := range strings.Lines(text[position:]) {
			if strings.HasSuffix(line, "\n") && hasAll(line, parts) {
				return line
			}
		}
		select {
		case <-news:
			continue
		case <-s.over:
		case <-late:
		}
		if s.position() == len(text) {
			s.t.Fatalf("nobody said %q:\n%s", parts, text)
		}
	}
}

func hasAll(s string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

// hostOf returns a URL's host:port.
func hostOf(url string) string {
	_, rest, _ := strings.Cut(url, "://")
	host, _, _ := strings.Cut(rest, "/")
	return host
}
