package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mayfly-ca/mayfly/client"
	"github.com/mayfly-ca/mayfly/issuer/idtokentest"
)

const (
	trustDomain = "bench.mayfly.example"
	serverName  = "engine.mayfly.example"
	clientID    = "spiffe://" + trustDomain + "/github/285964/1339936803"
	// relaysPerCertificate is roughly the number of relays of one job's
	// session.
	relaysPerCertificate = 5
	// descriptors is more than 10,000 relays need, here or in a server.
	// otherDescriptors is the number of descriptors that are not for relays.
	descriptors      = 1 << 16
	otherDescriptors = 300
)

const policy = `version: 1
trust_domain: ` + trustDomain + `
providers:
  github: {type: github, issuer: %q, unsafe_http: true}
  fly:    {type: fly, issuer: %q, unsafe_http: true}
engines:
  default: {endpoint: "tcp://127.0.0.1:8080", server_name: ` + serverName + `}
rules:
  - name: app-main
    provider: github
    match: {repository_owner_id: "285964", repository_id: "1339936803", ref: refs/heads/main, event_name: push}
    grant: {profile: client, engines: [default], ttl: 1h}
  - name: engine
    provider: fly
    match: {org_id: "11111111", app_id: "22222222"}
    grant: {profile: server, engines: [default], dns: [` + serverName + `], ttl: 24h}
`

// world holds an issuer, an engine, certificates, and the servers between
// them.
type world struct {
	say     func(format string, a ...any)
	most    int // relays at a time, at most
	dir     string
	module  string // the checkout
	github  *idtokentest.Provider
	fly     *idtokentest.Provider
	socket  *idtokentest.FlySocket
	issuer  *process
	url     string
	api     *client.Issuer
	engine  *engine
	roots   *x509.CertPool
	clients []*tls.Certificate
	servers []*server
	dialled atomic.Uint32
	logs    []string
}

func newWorld(ctx context.Context, o options, say func(string, ...any)) (*world, error) {
	most, err := raiseLimit()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "bench") // a short path, as a socket needs
	if err != nil {
		return nil, err
	}
	w := &world{say: say, dir: dir, most: most}
	err = w.setUp(ctx, o)
	if err != nil {
		err = w.withLogs(err)
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *world) setUp(ctx context.Context, o options) error {
	w.say("building mayfly-sidecar and mayfly-issuer")
	out, err := goCommand(ctx, "", "list", "-m", "-f", "{{.Dir}}", "github.com/mayfly-ca/mayfly")
	if err != nil {
		return fmt.Errorf("run it inside a clone of the repository: %w", err)
	}
	w.module = out
	if _, err := goCommand(ctx, w.module, "build", "-o", w.dir+"/", "./engine-sidecar/cmd/mayfly-sidecar", "./issuer/cmd/mayfly-issuer"); err != nil {
		return err
	}
	if err := w.startIssuer(ctx); err != nil {
		return err
	}
	if w.engine, err = listenEngine(w.path("engine.sock")); err != nil {
		return err
	}
	most := max(1, slices.Max(append(slices.Clone(o.idle), 1))/relaysPerCertificate)
	w.say("buying %d client certificates", most)
	if err := w.buy(ctx, most); err != nil {
		return err
	}
	return w.findServers(ctx, o)
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// raiseLimit raises the limit of descriptors of this process and the servers
// as far as allowed. It returns the number of relays that this allows. Each
// relay has two connections, each with one end here and one in the server.
func raiseLimit() (relays int, err error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, err
	}
	raised := unix.Rlimit{Cur: descriptors, Max: max(limit.Max, descriptors)}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &raised) == nil {
		limit = raised
	} else { // only root may raise the hard limit, and not on every system
		limit.Cur = min(limit.Max, descriptors)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			return 0, err
		}
	}
	return int(limit.Cur-otherDescriptors) / 2, nil
}

// startIssuer creates a CA and starts its issuer, with fake providers for
// GitHub and Fly.
func (w *world) startIssuer(ctx context.Context) error {
	var err error
	if w.github, err = idtokentest.New(idtokentest.Options{Type: idtokentest.GitHub, Defaults: map[string]any{
		"aud": "mayfly:" + trustDomain, "repository_owner_id": "285964", "repository_id": "1339936803", "ref": "refs/heads/main", "event_name": "push",
	}}); err != nil {
		return err
	}
	if w.fly, err = idtokentest.New(idtokentest.Options{Type: idtokentest.Fly, Defaults: map[string]any{"org_id": "11111111", "app_id": "22222222"}}); err != nil {
		return err
	}
	if w.socket, err = w.fly.ServeFlySocket(w.path("fly.sock"), nil); err != nil {
		return err
	}
	addr, err := freePort()
	if err != nil {
		return err
	}
	w.url = "https://" + addr
	program := w.path("mayfly-issuer")
	initialise := exec.CommandContext(ctx, program, "init", "--dir", w.path("ca"), "--trust-domain", trustDomain, "--issuer-url", w.url, "--engine-dns", serverName)
	initialise.Env = cleanEnv()
	if out, err := initialise.CombinedOutput(); err != nil {
		return fmt.Errorf("mayfly-issuer init: %w\n%s", err, out)
	}
	online := w.path("ca/issuer")
	config := fmt.Sprintf("listen: %s\npublic_url: %s\ntls: {mode: self}\nca: {root: root.crt, root_crl: root.crl, intermediate: intermediate.crt, key: intermediate.key}\nstore: store\npolicy: policy.yaml\nrate: {per_ip: 0, per_identity: 0}\n", addr, w.url)
	for name, text := range map[string]string{"issuer.yaml": config, "policy.yaml": fmt.Sprintf(policy, w.github.URL(), w.fly.URL())} {
		if err := os.WriteFile(filepath.Join(online, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	if w.issuer, err = w.start("issuer", program, "serve", "--config", filepath.Join(online, "issuer.yaml")); err != nil {
		return err
	}
	if w.api, err = client.NewIssuer(w.url, filepath.Join(online, "root.crt"), ""); err != nil {
		return err
	}
	return poll(ctx, 30*time.Second, func() error {
		if err := w.issuer.ended(); err != nil {
			return err
		}
		_, err := w.api.Info(ctx)
		return err
	})
}

// start runs a program. withLogs adds its log to an error.
func (w *world) start(name string, argv ...string) (*process, error) {
	log := w.path(name + ".log")
	if !slices.Contains(w.logs, log) {
		w.logs = append(w.logs, log)
	}
	return startProcess(log, argv...)
}

// minter is the token source of a job or of a machine.
type minter struct {
	provider *idtokentest.Provider
	claims   map[string]any
}

func (m minter) String() string { return "bench" }

func (m minter) Token(_ context.Context, audience string) (string, error) {
	claims := map[string]any{"aud": audience}
	for name, v := range m.claims {
		claims[name] = v
	}
	return m.provider.Mint(claims)
}

// buy requests n client certificates, each for its own run, and the servers'
// certificate.
func (w *world) buy(ctx context.Context, n int) error {
	mint := func(m minter, usage x509.ExtKeyUsage) (*client.Credential, error) {
		return w.api.Mint(ctx, client.MintRequest{Source: m, Audience: "mayfly:" + trustDomain, Engine: "default", Usage: usage})
	}
	own, err := mint(minter{w.fly, nil}, x509.ExtKeyUsageServerAuth)
	if err != nil {
		return fmt.Errorf("server certificate: %w", err)
	}
	w.roots = own.Roots()
	key, err := own.KeyPEM()
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		"chain.pem": own.ChainPEM(), "key.pem": key, "both.pem": slices.Concat(own.ChainPEM(), key), "roots.pem": own.TrustBundlePEM(),
	} {
		if err := os.WriteFile(w.path(name), data, 0o600); err != nil {
			return err
		}
	}
	w.clients = make([]*tls.Certificate, n)
	return each(16, n, func(i int) error {
		cred, err := mint(minter{w.github, map[string]any{"run_id": fmt.Sprint(1000 + i)}}, 0)
		if err != nil {
			return fmt.Errorf("client certificate: %w", err)
		}
		w.clients[i], err = cred.Certificate()
		return err
	})
}

func (w *world) close() {
	for _, s := range w.servers {
		s.stop()
	}
	if w.issuer != nil {
		w.issuer.stop()
	}
	if w.engine != nil {
		w.engine.close()
	}
	if w.socket != nil {
		_ = w.socket.Close()
	}
	for _, p := range []*idtokentest.Provider{w.github, w.fly} {
		if p != nil {
			p.Close()
		}
	}
	_ = os.RemoveAll(w.dir)
}

// withLogs adds the last lines of the programs' logs to an error.
func (w *world) withLogs(err error) error {
	var b strings.Builder
	for _, log := range w.logs {
		data, readErr := os.ReadFile(log)
		if readErr != nil || len(data) == 0 {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		fmt.Fprintf(&b, "\n%s:\n  %s", filepath.Base(log), strings.Join(lines[max(0, len(lines)-5):], "\n  "))
	}
	if b.Len() == 0 {
		return err
	}
	return fmt.Errorf("%w%s", err, b.String())
}

// each calls f for 0 to n-1, with the given number of workers, until a call
// fails.
func each(workers, n int, f func(i int) error) error {
	var next atomic.Int64
	errs := make(chan error, workers)
	for range workers {
		go func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := f(i); err != nil {
					next.Store(int64(n))
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	var all error
	for range workers {
		all = errors.Join(all, <-errs)
	}
	return all
}

// poll calls f until it succeeds.
func poll(ctx context.Context, most time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// freePort returns an address with a free port.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// goCommand runs the go command in dir without a workspace.
func goCommand(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(stdout.String()), nil
}
