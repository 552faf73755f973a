package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The names of the servers in the table.
const (
	mayfly     = "mayfly"
	bareGo     = "bare Go"
	ghostunnel = "ghostunnel"
	haproxy    = "haproxy"
	nginx      = "nginx"
)

var allServers = []string{mayfly, "bare", ghostunnel, haproxy, nginx}

// server is a relay under test. It may be started again.
type server struct {
	name    string
	version string
	addr    string // of the current start
	process *process
	launch  func(ctx context.Context, addr string) (*process, error)
}

// findServers starts the servers of o. One that is not installed is an error
// that says how to install it. Option --servers leaves it out.
func (w *world) findServers(ctx context.Context, o options) error {
	makers := map[string]func(context.Context) (*server, error){
		mayfly: w.mayfly, "bare": w.bare, ghostunnel: w.ghostunnel, haproxy: w.haproxy, nginx: w.nginx,
	}
	var missing error
	for _, name := range o.servers {
		maker := makers[name]
		if maker == nil {
			return fmt.Errorf("--servers: %q is none of %s", name, strings.Join(allServers, ", "))
		}
		s, err := maker(ctx)
		if err != nil {
			missing = errors.Join(missing, err)
			continue
		}
		w.servers = append(w.servers, s)
	}
	if missing != nil {
		return fmt.Errorf("%w\nor leave it out: name the others, as in --servers=%s,bare", missing, mayfly)
	}
	for _, s := range w.servers {
		if err := w.restart(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// restart starts s in a new process, and waits until it relays.
func (w *world) restart(ctx context.Context, s *server) error {
	s.stop()
	addr, err := freePort()
	if err != nil {
		return err
	}
	if s.process, err = s.launch(ctx, addr); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	s.addr = addr
	err = poll(ctx, 20*time.Second, func() error {
		if err := s.process.ended(); err != nil {
			return err
		}
		conn, err := w.dial(s, classical, 0)
		if err != nil {
			return err
		}
		defer conn.Close()
		return echo(conn, []byte("e"))
	})
	if err != nil {
		return fmt.Errorf("%s does not relay: %w", s.name, err)
	}
	return nil
}

func (s *server) stop() {
	if s.process != nil {
		s.process.stop()
		s.process = nil
	}
}

// mayfly returns the mayfly-sidecar program with a real issuer. Its limits
// allow thousands of clients from one host.
func (w *world) mayfly(context.Context) (*server, error) {
	program := w.path("mayfly-sidecar")
	launch := func(_ context.Context, addr string) (*process, error) {
		config := fmt.Sprintf("issuer: %s\nca_file: %s\nengine: default\nlisten: %s\nengine_socket: %s\nengine_probe: connect\nfly_api_socket: %s\ntoken_source: fly\ndrain_timeout: 0s\nlimits: {connections: 30000, connections_per_run: 30000, handshakes: 4096, handshake_rate: 1000000}\n",
			w.url, w.path("ca/issuer/root.crt"), addr, w.path("engine.sock"), w.path("fly.sock"))
		if err := os.WriteFile(w.path("sidecar.yaml"), []byte(config), 0o600); err != nil {
			return nil, err
		}
		return w.start(mayfly, program, "run", "--config", w.path("sidecar.yaml"))
	}
	return &server{name: mayfly, version: w.revision(), launch: launch}, nil
}

// revision returns the checkout's commit.
func (w *world) revision() string {
	out, err := exec.Command("git", "-C", w.module, "describe", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func (w *world) bare(context.Context) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	launch := func(_ context.Context, addr string) (*process, error) {
		return w.start("bare", self, bareCommand, addr, w.path("engine.sock"), w.path("chain.pem"), w.path("key.pem"), w.path("roots.pem"))
	}
	return &server{name: bareGo, version: goVersion(), launch: launch}, nil
}

func (w *world) ghostunnel(ctx context.Context) (*server, error) {
	w.say("ghostunnel: from the build cache, or built now (a minute)")
	dir := filepath.Join(w.module, "engine-sidecar", "bench", "ghostunnel")
	program, err := goCommand(ctx, dir, "tool", "-n", "ghostunnel")
	if err != nil {
		return nil, fmt.Errorf("ghostunnel does not build (it needs gcc, and the Go module proxy the first time): %w", err)
	}
	version, err := goCommand(ctx, dir, "list", "-m", "-f", "{{.Version}}", "github.com/ghostunnel/ghostunnel")
	if err != nil {
		return nil, err
	}
	launch := func(_ context.Context, addr string) (*process, error) {
		return w.start(ghostunnel, program, "server", "--listen", addr, "--target", "unix:"+w.path("engine.sock"),
			"--cert", w.path("chain.pem"), "--key", w.path("key.pem"), "--cacert", w.path("roots.pem"), "--allow-uri", clientID)
	}
	return &server{name: ghostunnel, version: version, launch: launch}, nil
}

const haproxyConfig = `global
  maxconn %d
  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
defaults
  mode tcp
  timeout connect 10s
  timeout client 1h
  timeout server 1h
frontend front
  bind %s ssl crt %s ca-file %s verify required curves X25519 ssl-min-ver TLSv1.3 no-tls-tickets
  default_backend back
backend back
  server engine unix@%s
`

func (w *world) haproxy(context.Context) (*server, error) {
	program, version, err := installed(haproxy, "haproxy", "-v")
	if err != nil {
		return nil, err
	}
	launch := func(_ context.Context, addr string) (*process, error) {
		config := fmt.Sprintf(haproxyConfig, w.most, addr, w.path("both.pem"), w.path("roots.pem"), w.path("engine.sock"))
		if err := os.WriteFile(w.path("haproxy.cfg"), []byte(config), 0o600); err != nil {
			return nil, err
		}
		return w.start(haproxy, program, "-db", "-f", w.path("haproxy.cfg"))
	}
	return &server{name: haproxy, version: version, launch: launch}, nil
}

const nginxConfig = `%s
daemon off;
user root;
pid %s;
error_log stderr error;
worker_processes auto;
events { worker_connections %d; }
stream {
  server {
    listen %s ssl;
    ssl_certificate %s;
    ssl_certificate_key %s;
    ssl_client_certificate %s;
    ssl_verify_client on;
    ssl_verify_depth 2;
    ssl_protocols TLSv1.3;
    ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
    ssl_ecdh_curve X25519;
    ssl_session_cache off;
    ssl_session_tickets off;
    proxy_timeout 1h;
    proxy_pass unix:%s;
  }
}
`

func (w *world) nginx(context.Context) (*server, error) {
	program, version, err := installed(nginx, "nginx libnginx-mod-stream", "-v")
	if err != nil {
		return nil, err
	}
	module := ""
	for _, file := range []string{"/usr/lib/nginx/modules/ngx_stream_module.so", "/usr/lib64/nginx/modules/ngx_stream_module.so"} {
		if _, err := os.Stat(file); err == nil {
			module = "load_module " + file + ";"
		}
	}
	if out, err := exec.Command(program, "-V").CombinedOutput(); err == nil && module == "" && !bytes.Contains(out, []byte("--with-stream ")) {
		return nil, errors.New("nginx has no stream module: apt install libnginx-mod-stream")
	}
	launch := func(_ context.Context, addr string) (*process, error) {
		config := fmt.Sprintf(nginxConfig, module, w.path("nginx.pid"), 2*w.most, addr, w.path("chain.pem"), w.path("key.pem"), w.path("roots.pem"), w.path("engine.sock"))
		if err := os.WriteFile(w.path("nginx.conf"), []byte(config), 0o600); err != nil {
			return nil, err
		}
		return w.start(nginx, program, "-p", w.dir, "-e", "stderr", "-c", w.path("nginx.conf"))
	}
	return &server{name: nginx, version: version, launch: launch}, nil
}

// installed finds a program, also in the sbin folders that may be missing in
// PATH, and reads its version.
func installed(name, packages, flag string) (program, version string, err error) {
	candidates := []string{name, "/usr/sbin/" + name, "/usr/local/sbin/" + name}
	i := slices.IndexFunc(candidates, func(c string) bool { _, err := exec.LookPath(c); return err == nil })
	if i < 0 {
		return "", "", fmt.Errorf("%s is not installed: apt install %s", name, packages)
	}
	cmd := exec.Command(candidates[i], flag)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return "", "", fmt.Errorf("%s %s: %w", name, flag, err)
	}
	line, err := out.ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", "", err
	}
	for field := range strings.FieldsSeq(strings.ReplaceAll(line, "/", " ")) {
		if field[0] >= '0' && field[0] <= '9' {
			return candidates[i], field, nil
		}
	}
	return candidates[i], strings.TrimSpace(line), nil
}
