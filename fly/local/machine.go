package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/fly/flytest"
)

// adminTokenEvery is how often the token in DIR/env is renewed. Admin calls need a
// token that was issued within the hour.
const adminTokenEvery = 30 * time.Minute

// machine is the Fly Machine of the engine, with the proxy that wakes it.
type machine struct {
	addr string // the proxy's host:port: the engine's endpoint
	fly  *flytest.Machine
}

// startMachine is the step "machine". It makes the machine, which stays stopped
// until the first connection.
func (s *stack) startMachine(ctx context.Context) (string, error) {
	module, err := moduleDir(ctx)
	if err != nil {
		return "", err
	}
	app, err := flytest.LoadApp(filepath.Join(module, "fly", "buildkit", "fly.toml"))
	if err != nil {
		return "", err
	}
	service := app.AllServices()[0]
	listen, err := freePort()
	if err != nil {
		return "", err
	}
	log, err := os.OpenFile(s.path("machine.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return "", err
	}
	s.closers = append(s.closers, log.Close)
	env, err := s.sidecarEnv(listen)
	if err != nil {
		return "", err
	}
	s.machine.fly, err = flytest.NewMachine(flytest.MachineConfig{
		App:       app,
		Command:   append([]string{s.program("mayfly-sidecar"), "run", "--"}, s.engine.command...),
		Env:       env,
		OIDC:      s.providers.fly,
		Addresses: map[int]string{service.InternalPort: listen},
		Stdout:    log,
		Stderr:    log,
	})
	if err != nil {
		return "", err
	}
	s.closers = append(s.closers, s.stopMachine)
	public := service.Ports[0].Port
	proxy, err := flytest.NewProxy(flytest.ProxyConfig{
		Machine: s.machine.fly, Listen: map[int]string{public: s.machine.addr}, IdleStop: time.Minute,
	})
	if err != nil {
		return "", err
	}
	s.closers = append(s.closers, proxy.Close)
	return fmt.Sprintf("%s at %s, stopped until the first connection", s.machine.fly.ID(), s.machine.addr), nil
}

// stopMachine stops the machine as Fly does, so that the engine's children end with
// it.
func (s *stack) stopMachine() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return errors.Join(s.machine.fly.Stop(ctx), s.machine.fly.Close())
}

// sidecarEnv configures the sidecar as fly.toml's [env] does on a machine.
func (s *stack) sidecarEnv(listen string) ([]string, error) {
	root, err := s.root()
	if err != nil {
		return nil, err
	}
	return []string{
		fmt.Sprintf("MAYFLY_SIDECAR_TRUST_ANCHOR=sha256:%x", sha256.Sum256(root.Raw)),
		"PATH=" + os.Getenv("PATH"),
		"HOME=" + s.dir,
		"TMPDIR=" + s.dir,
		"MAYFLY_SIDECAR_ISSUER=" + s.issuerURL,
		"MAYFLY_SIDECAR_CA_FILE=" + s.caFile,
		"MAYFLY_SIDECAR_ENGINE=" + s.settings.engine(),
		"MAYFLY_SIDECAR_LISTEN=" + listen,
		"MAYFLY_SIDECAR_PROXY_PROTOCOL=required",
		"MAYFLY_SIDECAR_TRUSTED_PROXIES=127.0.0.1",
		"MAYFLY_SIDECAR_ENGINE_SOCKET=" + s.engine.socket,
		"MAYFLY_SIDECAR_TOKEN_SOURCE=fly",
		"MAYFLY_SIDECAR_STATUS_LISTEN=127.0.0.1:0",
	}, nil
}

// root returns this run's root certificate.
func (s *stack) root() (*x509.Certificate, error) {
	data, err := os.ReadFile(s.caFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s holds no certificate", s.caFile)
	}
	return x509.ParseCertificate(block.Bytes)
}

// httpClient returns a client that trusts only this run's root.
func (s *stack) httpClient() (*http.Client, error) {
	root, err := s.root()
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	return &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true},
	}, nil
}

// writeEnv writes DIR/env, which means that all servers answer. It writes
// atomically, also each time the admin's token is renewed.
func (s *stack) writeEnv() error {
	token, err := s.providers.adminToken()
	if err != nil {
		return err
	}
	store, _ := s.settings.issuer["store"].(string)
	if name, ok := strings.CutPrefix(store, "env:"); ok {
		store = os.Getenv(name)
	}
	sidecar := ""
	if pid := s.machine.fly.PID(); pid > 0 {
		sidecar = fmt.Sprint(pid)
	}
	var b strings.Builder
	for _, kv := range [][2]string{
		{"MAYFLY_ISSUER", s.issuerURL},
		{"MAYFLY_CA_FILE", s.caFile},
		{"MAYFLY_AUDIENCE", "mayfly:" + s.settings.trustDomain()},
		{"MAYFLY_ADMIN_TOKEN", token},
		{"ACTIONS_ID_TOKEN_REQUEST_URL", s.providers.github.TokenRequestURL()},
		{"ACTIONS_ID_TOKEN_REQUEST_TOKEN", s.providers.github.TokenRequestToken()},
		{"GITHUB_OIDC", s.providers.github.URL()},
		{"FLY_OIDC", s.providers.fly.URL()},
		{"STAFF_OIDC", s.providers.staff.URL()},
		{"FLY_API_SOCKET", s.machine.fly.APISocket()},
		{"ENGINE_ADDR", s.machine.addr},
		{"ENGINE_SERVER_NAME", s.settings.serverName(s.settings.engine())},
		{"STORE", store},
		{"POLICY_FILE", filepath.Join(filepath.Dir(s.caFile), "policy.yaml")},
		{"MAYFLY_BIN", s.tools.bin},
		{"ISSUER_PID", fmt.Sprint(s.issuer.cmd.Process.Pid)},
		{"SIDECAR_PID", sidecar},
	} {
		fmt.Fprintf(&b, "export %s=%s\n", kv[0], shellQuote(kv[1]))
	}
	path := filepath.Join(s.options.dir, "env")
	if err := os.WriteFile(path+".new", []byte(b.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// shellQuote quotes v for a POSIX shell.
func shellQuote(v string) string {
	return "'" + strings.ReplaceAll(v, "'", `'\''`) + "'"
}

// stay keeps everything running until an interrupt. It restarts an issuer that
// died, and updates the admin's token and the process ids in DIR/env.
func (s *stack) stay(ctx context.Context) error {
	token := time.NewTicker(adminTokenEvery)
	defer token.Stop()
	look := time.NewTicker(time.Second)
	defer look.Stop()
	pid := s.machine.fly.PID()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.issuer.done:
			s.report.say("mayfly-issuer serve ended: %v; started again, as a platform does", s.issuer.err)
			if err := s.restartIssuer(ctx); err != nil {
				return err
			}
		case <-token.C:
		case <-look.C:
			if now := s.machine.fly.PID(); now == pid {
				continue
			} else {
				pid = now
			}
		}
		if err := s.writeEnv(); err != nil {
			return err
		}
	}
}
