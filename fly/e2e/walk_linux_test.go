package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mayfly-ca/mayfly/issuer/idtokentest"
)

// walkVariable marks the process that TestReadmeWalk runs in namespaces of its
// own, and walkCgroup names the cgroup of its BuildKit's containers.
const (
	walkVariable = "MAYFLY_TEST_WALK"
	walkCgroup   = "MAYFLY_TEST_WALK_CGROUP"
)

// TestReadmeWalk follows the README's section "Set it up" as it is written, on a
// machine that has nothing but the programs: it runs each command, with the
// trust anchor that init prints, and ends with a build and with an admin who is
// logged in. The hosts that the README names exist in the network namespace.
func TestReadmeWalk(t *testing.T) {
	needNetns(t)
	if os.Getenv(walkVariable) != "" {
		walkReadme(t)
		return
	}
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
		os.Args[0], "-test.run", "^TestReadmeWalk$", "-test.v")
	cgroup := fmt.Sprintf("mayfly-walk-%d", os.Getpid())
	removeCgroups(t, cgroup)
	cmd.Env = append(os.Environ(), walkVariable+"="+t.TempDir(), walkCgroup+"="+cgroup, "BUILDKIT_TOOLS="+engineTools(t))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if testing.Verbose() {
		t.Logf("%s", out) // what a stranger sees
	}
}

// engineTools returns a folder with the engine's programs, and the program that
// the build runs, by their plain names.
func engineTools(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"buildkitd", "buildctl"} {
		if err := os.Symlink(engineTool(t, name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"runc", "demo"} {
		if err := os.Symlink(filepath.Join(programsWithRunc(t), name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// walk is a stranger's machine, which plays all hosts of the README.
type walk struct {
	dir    string // where the stranger works
	env    []string
	anchor string
}

// The hosts of the README, each with an address that only the namespace has. A
// provider's address is public, since the issuer refuses others.
var walkHosts = map[string]string{
	"issuer.example.com":                  "11.0.0.1",
	"engine.example.com":                  "11.0.0.2",
	"token.actions.githubusercontent.com": "11.0.0.3",
	"accounts.google.com":                 "11.0.0.4",
	"metadata.google.internal":            "169.254.169.254",
}

func walkReadme(t *testing.T) {
	w := &walk{dir: filepath.Join(os.Getenv(walkVariable), "clone"), env: os.Environ()}
	w.machine(t)
	w.providers(t)
	run := readmeSection(t, "## Set it up")
	if len(run) != 6 {
		t.Fatalf("the section has %d blocks of commands, want build, init, policy, issuer, engine, admin", len(run))
	}
	w.shell(t, strings.Replace(run[0], "go build", "go -C "+repository(t)+" build", 1), "-o bin/", "-o "+w.dir+"/bin/")
	w.env = append(w.env, "PATH="+filepath.Join(w.dir, "bin")+":"+os.Getenv("BUILDKIT_TOOLS")+":"+os.Getenv("PATH"))
	said := w.shell(t, run[1])
	if w.anchor = regexp.MustCompile(`sha256:[0-9a-f]{64}`).FindString(said); w.anchor == "" {
		t.Fatalf("init prints no trust anchor:\n%s", said)
	}
	w.shell(t, run[2])
	w.serve(t, run[3], "issuer.example.com:443")
	w.serve(t, run[4], "engine.example.com:8080")
	w.build(t)
	w.logIn(t, w.shell(t, run[5]))
}

// readmeSection returns the shell blocks of a section of the README.
func readmeSection(t *testing.T, heading string) []string {
	t.Helper()
	data, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(data), heading+"\n")
	if !found {
		t.Fatalf("the README has no %q", heading)
	}
	section, _, _ := strings.Cut(rest, "\n## ")
	var blocks []string
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(section, -1) {
		blocks = append(blocks, block[1])
	}
	return blocks
}

func repository(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// machine gives the namespaces a loopback with all addresses, and folders that
// end with them: an /etc that knows the hosts, /run and BuildKit's state.
func (w *walk) machine(t *testing.T) {
	t.Helper()
	state := os.Getenv(walkVariable)
	script := `set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$0"
mkdir -p "$0/upper" "$0/work" "$0/clone" "$0/run"
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$0/upper,workdir=$0/work" /etc
mount -t tmpfs tmpfs /run
mkdir -p "$0/lib/buildkit"
mount --bind "$0/lib" /var/lib
mkdir -p /etc/buildkit
printf '[worker.oci]\n  defaultCgroupParent = "/%s"\n' "$1" >/etc/buildkit/buildkitd.toml
ip link set lo up
`
	for host, addr := range walkHosts {
		script += "ip addr add " + addr + "/32 dev lo\necho '" + addr + " " + host + "' >>/etc/hosts\n"
	}
	for _, host := range []string{"token.actions.githubusercontent.com", "accounts.google.com"} { // port 443 of all addresses is the issuer's
		script += "iptables -w -t nat -A OUTPUT -d " + walkHosts[host] + " -p tcp --dport 443 -j DNAT --to-destination " + walkHosts[host] + ":4443\n"
	}
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", script, state, os.Getenv(walkCgroup)).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// providers serves GitHub, Google and the VM's metadata under their own names.
func (w *walk) providers(t *testing.T) {
	t.Helper()
	ca, certify := walkCA(t)
	file := filepath.Join(w.dir, "..", "ca.pem")
	writeFile(t, file, ca)
	w.env = append(w.env, "SSL_CERT_FILE="+file)

	github := w.provider(t, idtokentest.GitHub, "token.actions.githubusercontent.com", certify, nil)
	job := github.NewJob(map[string]any{"repository_owner_id": "285964", "repository_id": "1339936803", "ref": "refs/heads/main", "event_name": "push"})
	w.env = append(w.env, "ACTIONS_ID_TOKEN_REQUEST_URL="+job.RequestURL, "ACTIONS_ID_TOKEN_REQUEST_TOKEN="+job.RequestToken)

	google := w.provider(t, idtokentest.OIDC, "accounts.google.com", certify, map[string]any{"sub": "112233445566778899000"})
	serveAt(t, "metadata.google.internal:80", nil, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if r.URL.Path != "/computeMetadata/v1/instance/service-accounts/default/identity" || r.Header.Get("Metadata-Flavor") != "Google" || q.Get("format") != "full" {
			http.Error(rw, "forbidden", http.StatusForbidden)
			return
		}
		token, err := google.Mint(map[string]any{"aud": q.Get("audience"), "azp": "112233445566778899000"})
		if err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = io.WriteString(rw, token)
	}))
}

// provider serves one provider at https://host.
func (w *walk) provider(t *testing.T, kind idtokentest.Type, host string, certify func(string) tls.Certificate, defaults map[string]any) *idtokentest.Provider {
	t.Helper()
	p, err := idtokentest.New(idtokentest.Options{Type: kind, Origin: "https://" + host, Defaults: defaults})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	serveAt(t, host+":4443", &tls.Config{Certificates: []tls.Certificate{certify(host)}}, p)
	return p
}

func serveAt(t *testing.T, addr string, conf *tls.Config, handler http.Handler) {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", net.JoinHostPort(walkHosts[host], port))
	if err != nil {
		t.Fatal(err)
	}
	if conf != nil {
		ln = tls.NewListener(ln, conf)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(ln) }()
	t.Cleanup(func() { server.Close(); <-done })
}

// walkCA makes the public CA of this little internet: its PEM, and a function
// that certifies a host.
func walkCA(t *testing.T) (string, func(host string) tls.Certificate) {
	t.Helper()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	root := key()
	now := time.Now()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "public CA"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	sign := func(template *x509.Certificate, public *ecdsa.PublicKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, template, ca, public, root)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	der := sign(ca, &root.PublicKey)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), func(host string) tls.Certificate {
		own := key()
		leaf := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), DNSNames: []string{host}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
		return tls.Certificate{Certificate: [][]byte{sign(leaf, &own.PublicKey)}, PrivateKey: own}
	}
}

// shell runs a block of the README with replacements made, and returns its output.
func (w *walk) shell(t *testing.T, block string, replacements ...string) string {
	t.Helper()
	cmd := w.command(t, block, replacements...)
	out, err := cmd.CombinedOutput()
	t.Logf("%s%s", block, out)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func (w *walk) command(t *testing.T, block string, replacements ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-euc", strings.NewReplacer(slices.Concat([]string{"sha256:...", w.anchor}, replacements)...).Replace(block))
	cmd.Dir, cmd.Env = w.dir, w.env
	return cmd
}

// serve runs a block whose last command is a server until the test ends, and
// waits until addr accepts connections.
func (w *walk) serve(t *testing.T, block, addr string) {
	t.Helper()
	var log bytes.Buffer
	cmd := w.command(t, block)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		if cmd.Process.Signal(syscall.Signal(0)) == nil {
			_ = unix.Kill(-cmd.Process.Pid, unix.SIGTERM)
			<-ended
		}
		t.Logf("%s%s", block, log.String())
	})
	for deadline := time.Now().Add(time.Minute); ; {
		if conn, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
			conn.Close()
			return
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("ended: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not accept connections", addr)
		}
	}
}

// build is the job: the command that the README shows for one without the action.
func (w *walk) build(t *testing.T) {
	t.Helper()
	blocks := readmeSection(t, "## In your workflow")
	if len(blocks) != 1 {
		t.Fatalf("the section shows %d commands", len(blocks))
	}
	job := *w
	job.dir = filepath.Join(w.dir, "job")
	program, err := os.ReadFile(filepath.Join(os.Getenv("BUILDKIT_TOOLS"), "demo"))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(job.dir, "demo"), string(program))
	writeFile(t, filepath.Join(job.dir, "Dockerfile"), "FROM scratch AS build\nCOPY --chmod=755 demo /demo\nRUN [\"/demo\", \"build\", \"/artifact\"]\nFROM scratch\nCOPY --from=build /artifact /artifact\n")
	job.env = append(slices.Clone(w.env), "MAYFLY_ISSUER=https://issuer.example.com", "MAYFLY_TRUST_ANCHOR="+w.anchor)
	job.shell(t, strings.TrimSpace(blocks[0])+" --output type=local,dest=out\n")
	if said := job.shell(t, "./out/artifact\n"); !strings.Contains(said, "hello from mayfly: built in container") {
		t.Errorf("the build's result says %q", said)
	}
}

// logIn opens the link that admin-link printed and presses its button, as a
// person does in a browser, and wants the admin's pages.
func (w *walk) logIn(t *testing.T, said string) {
	t.Helper()
	link := regexp.MustCompile(`https://issuer\.example\.com/link\?code=\S+`).FindString(said)
	u, err := url.Parse(link)
	if err != nil || link == "" {
		t.Fatalf("admin-link prints no link: %v\n%s", err, said)
	}
	roots := x509.NewCertPool()
	pem, err := os.ReadFile(filepath.Join(w.dir, "ca", "issuer", "root.crt"))
	if err != nil || !roots.AppendCertsFromPEM(pem) {
		t.Fatalf("no root: %v", err)
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Jar: jar, Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	defer browser.CloseIdleConnections()
	resp, err := browser.PostForm("https://issuer.example.com/link", url.Values{"code": {u.Query().Get("code")}})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	resp, err = browser.Get("https://issuer.example.com/certificates")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(page), "actions-tester") {
		t.Errorf("an admin's list: %s, %v; want the build's certificate\n%s", resp.Status, err, page)
	}
}
