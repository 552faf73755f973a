package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mayfly-ca/mayfly/client"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/idtokentest"
)

const (
	trustDomain = "ci.example.com"
	serverName  = "engine.example.com"
	// endpoint is the placeholder in the policy for the sidecar's address.
	endpoint = "127.0.0.1:1"
)

// stand is an issuer with its token providers, and starts sidecars. It owns
// them all: close ends them.
type stand struct {
	dir     string
	bin     string // folder of the programs
	o       options
	issuer  *process
	url     string
	roots   *x509.CertPool
	github  *idtokentest.Provider
	fly     *idtokentest.Provider
	staff   *idtokentest.Provider
	flyAPI  string
	http    *http.Client
	closers []func()
}

// newStand starts an issuer whose server certificates last for serverTTL.
func newStand(ctx context.Context, o options, serverTTL time.Duration) (*stand, error) {
	s := &stand{o: o}
	if err := s.start(ctx, serverTTL); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *stand) close() {
	for i := len(s.closers) - 1; i >= 0; i-- {
		s.closers[i]()
	}
}

// programsVariable names the folder of prebuilt programs. Tests use it to
// build the programs once for several measures.
const programsVariable = "MAYFLY_TEST_PROGRAMS"

func buildPrograms(ctx context.Context, dir string) error {
	build := exec.CommandContext(ctx, "go", "build", "-o", dir+"/",
		"github.com/mayfly-ca/mayfly/issuer/cmd/mayfly-issuer", "github.com/mayfly-ca/mayfly/engine-sidecar/cmd/mayfly-sidecar")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}

func (s *stand) start(ctx context.Context, serverTTL time.Duration) (err error) {
	if err := raiseFiles(s.o.count); err != nil {
		return err
	}
	if s.dir, err = os.MkdirTemp("", "enforce"); err != nil { // a short path, as a socket needs
		return err
	}
	s.closers = append(s.closers, func() { os.RemoveAll(s.dir) })
	if s.bin = os.Getenv(programsVariable); s.bin == "" {
		s.bin = s.dir
		if err := buildPrograms(ctx, s.bin); err != nil {
			return err
		}
	}
	for kind, p := range map[idtokentest.Type]**idtokentest.Provider{idtokentest.GitHub: &s.github, idtokentest.Fly: &s.fly, idtokentest.People: &s.staff} {
		if *p, err = idtokentest.New(idtokentest.Options{Type: kind, ClientID: "mayfly"}); err != nil {
			return err
		}
		s.closers = append(s.closers, func() { (*p).Close() })
	}
	// The sidecar hides this folder from the engine.
	s.flyAPI = filepath.Join(s.dir, "fly", "api")
	if err := os.Mkdir(filepath.Dir(s.flyAPI), 0o700); err != nil {
		return err
	}
	socket, err := s.fly.ServeFlySocket(s.flyAPI, nil)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, func() { socket.Close() })
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	s.url = "https://" + addr
	initialise := exec.CommandContext(ctx, s.bin+"/mayfly-issuer", "init", "--dir", s.dir+"/ca", "--trust-domain", trustDomain,
		"--issuer-url", s.url, "--engine-dns", serverName)
	if out, err := initialise.CombinedOutput(); err != nil {
		return fmt.Errorf("mayfly-issuer init: %w\n%s", err, out)
	}
	if err := s.configure(addr, serverTTL); err != nil {
		return err
	}
	if err := s.trust(); err != nil {
		return err
	}
	s.closers = append(s.closers, func() { s.issuer.stop() })
	return s.serve(ctx)
}

const policyText = `version: 1
trust_domain: %s
providers:
  github: {type: github, issuer: "%s", unsafe_http: true}
  fly: {type: fly, issuer: "%s", unsafe_http: true}
  staff: {type: people, issuer: "%s", client_id: mayfly, unsafe_http: true}
engines:
  default: {endpoint: "tcp://%s", server_name: %s}
rules:
  - name: jobs
    provider: github
    match: {repository_owner_id: "%v", repository_id: "%v", event_name: [push]}
    grant: {profile: client, engines: [default], ttl: 1h}
  - name: engine
    provider: fly
    match: {org_id: "%v", app_id: "%v"}
    grant: {profile: server, engines: [default], dns: ["%s"], ttl: %v}
  - name: admins
    provider: staff
    match: {sub: "%v"}
    grant: {role: admin}
`

// configure writes the issuer's two files. All requests come from one machine,
// so the rate limits are off.
func (s *stand) configure(addr string, serverTTL time.Duration) error {
	job, machine, person := s.github.Claims(nil), s.fly.Claims(nil), s.staff.Claims(nil)
	policy := fmt.Sprintf(policyText, trustDomain, s.github.URL(), s.fly.URL(), s.staff.URL(), endpoint, serverName,
		job["repository_owner_id"], job["repository_id"], machine["org_id"], machine["app_id"], serverName, serverTTL, person["sub"])
	online := s.dir + "/ca/issuer"
	config := fmt.Sprintf("listen: %q\npublic_url: %q\ntls: {mode: self}\nca: {root: root.crt, root_crl: root.crl, intermediate: intermediate.crt, key: intermediate.key}\n"+
		"store: store\npolicy: policy.yaml\nrate: {per_ip: 0, per_identity: 0}\n", addr, s.url)
	return errors.Join(os.WriteFile(online+"/policy.yaml", []byte(policy), 0o600), os.WriteFile(online+"/issuer.yaml", []byte(config), 0o600))
}

// trust creates the HTTP client that trusts the new root.
func (s *stand) trust() error {
	data, err := os.ReadFile(s.caFile())
	if err != nil {
		return err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return errors.New("no root certificate")
	}
	s.roots = x509.NewCertPool()
	s.roots.AppendCertsFromPEM(data)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.roots, MinVersion: tls.VersionTLS13}, ForceAttemptHTTP2: true}
	s.http = &http.Client{Transport: transport, Timeout: time.Minute}
	s.closers = append(s.closers, transport.CloseIdleConnections)
	return nil
}

func (s *stand) caFile() string { return s.dir + "/ca/issuer/root.crt" }

// serve starts or restarts the issuer, and waits until it is ready.
func (s *stand) serve(ctx context.Context) (err error) {
	if s.issuer, err = startProcess(s.o.verbose, nil, s.bin+"/mayfly-issuer", "serve", "--log-format", "text", "--config", s.dir+"/ca/issuer/issuer.yaml"); err != nil {
		return err
	}
	for {
		res, err := s.http.Get(s.url + wire.PathReady)
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
		if !pause(ctx, 20*time.Millisecond) {
			return ctx.Err()
		}
		if s.issuer.over() {
			return fmt.Errorf("mayfly-issuer serve ended:\n%s", s.issuer.said())
		}
	}
}

// revoke revokes one certificate as an admin.
func (s *stand) revoke(serial string) error {
	token, err := s.staff.Mint(nil)
	if err != nil {
		return err
	}
	body, err := json.Marshal(wire.RevokeRequest{Serial: serial, Block: wire.BlockNone, Reason: "measured"})
	if err != nil {
		return err
	}
	req, err := http.NewRequest(http.MethodPost, s.url+wire.PathRevocations, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := s.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 4096))
		return fmt.Errorf("revoke: %s: %s", res.Status, text)
	}
	return nil
}

// sidecar is a running sidecar.
type sidecar struct {
	*process
	addr, status string
}

// startSidecar starts a sidecar and waits until it listens. engine returns the
// engine's command for a socket.
func (s *stand) startSidecar(ctx context.Context, engine func(socket string) []string, env ...string) (*sidecar, error) {
	socket := s.dir + "/engine.sock"
	status, err := freeAddr()
	if err != nil {
		return nil, err
	}
	environ := append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir,
		"MAYFLY_SIDECAR_ISSUER=" + s.url, "MAYFLY_SIDECAR_CA_FILE=" + s.caFile(), "MAYFLY_SIDECAR_ENGINE=default",
		"MAYFLY_SIDECAR_LISTEN=127.0.0.1:0", "MAYFLY_SIDECAR_STATUS_LISTEN=" + status, "MAYFLY_SIDECAR_ENGINE_SOCKET=" + socket,
		"MAYFLY_SIDECAR_TOKEN_SOURCE=fly", "MAYFLY_SIDECAR_FLY_API_SOCKET=" + s.flyAPI, "MAYFLY_SIDECAR_DRAIN_TIMEOUT=1ms",
		fmt.Sprintf("MAYFLY_SIDECAR_UNSAFE_NO_ISOLATION=%v", os.Geteuid() != 0),
	}, env...)
	p, err := startProcess(s.o.verbose, environ, append([]string{s.bin + "/mayfly-sidecar", "run", "--"}, engine(socket)...)...)
	if err != nil {
		return nil, err
	}
	line, err := p.await(ctx, `"listening"`)
	if err != nil {
		p.stop()
		return nil, err
	}
	return &sidecar{process: p, addr: field(line, "addr"), status: status}, nil
}

// field returns a text field of a JSON log line.
func field(line, name string) string {
	var fields map[string]any
	_ = json.Unmarshal([]byte(line), &fields)
	text, _ := fields[name].(string)
	return text
}

// job is the token source of one run.
type job struct {
	provider *idtokentest.Provider
	run      string
}

// Token implements tokensource.Source.
func (j job) Token(_ context.Context, audience string) (string, error) {
	return j.provider.Mint(map[string]any{"aud": audience, "run_id": j.run})
}

// String returns the source's name.
func (j job) String() string { return "job " + j.run }

// client returns a job's client that connects to the given sidecar.
func (s *stand) client(ctx context.Context, at *sidecar, run string) (*client.Client, error) {
	return client.New(ctx, client.Config{
		Issuer: s.url, CAFile: s.caFile(), Source: job{s.github, run}, WakeTimeout: time.Minute,
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == endpoint {
				addr = at.addr
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
	})
}

// process is a program with methods that wait for its output.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}

	mu   sync.Mutex
	text bytes.Buffer
	came []arrival
	news chan struct{}
	also io.Writer
}

func startProcess(also io.Writer, env []string, argv ...string) (*process, error) {
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{}), news: make(chan struct{}), also: also}
	p.cmd.Env = env
	p.cmd.Stdout, p.cmd.Stderr = p, p
	p.cmd.WaitDelay = 5 * time.Second
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // the output and over have the result
	}()
	return p, nil
}

// Write implements io.Writer for the program's output.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.news)
	p.news = make(chan struct{})
	_, _ = p.also.Write(b)
	p.came = append(p.came, arrival{time.Now(), p.text.Len()})
	return p.text.Write(b)
}

// arrival is the time at which the output from a position on arrived.
type arrival struct {
	at   time.Time
	from int
}

// when returns when a text first arrived, or zero if it has not.
func (p *process) when(part string) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := bytes.Index(p.text.Bytes(), []byte(part))
	var last time.Time
	for _, a := range p.came {
		if i >= 0 && a.from <= i {
			last = a.at
		}
	}
	return last
}

func (p *process) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

// lines returns the complete lines that contain part.
func (p *process) lines(part string) []string {
	var found []string
	for line := range strings.Lines(p.said()) {
		if strings.HasSuffix(line, "\n") && strings.Contains(line, part) {
			found = append(found, line)
		}
	}
	return found
}

// await waits for the first line that contains part. awaitMore waits for one
// more than few such lines.
func (p *process) await(ctx context.Context, part string) (string, error) {
	return p.awaitMore(ctx, 0, part)
}

func (p *process) awaitMore(ctx context.Context, few int, part string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		p.mu.Lock()
		news := p.news
		p.mu.Unlock()
		if found := p.lines(part); len(found) > few {
			return found[few], nil
		}
		select {
		case <-news:
		case <-p.done:
			return "", fmt.Errorf("%s ended:\n%s", filepath.Base(p.cmd.Path), p.said())
		case <-ctx.Done():
			return "", fmt.Errorf("%s did not say %s: %w", filepath.Base(p.cmd.Path), part, ctx.Err())
		}
	}
}

func (p *process) over() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// stop ends the program with SIGTERM, and kills it after 20 s.
func (p *process) stop() {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
	}
}

func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// pause waits for d and reports whether ctx has not ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// raiseFiles lets this program and its children open two sockets for each of
// count relays, if the machine allows it.
func raiseFiles(count int) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	want := uint64(2*count + 200)
	if limit.Max < want {
		limit.Max = want // succeeds with the privilege to raise it
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("%d relays want %d open files (ulimit -Hn): %w", count, want, err)
	}
	return nil
}
