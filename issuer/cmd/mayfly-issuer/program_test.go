package main_test

import (
	"bufio"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// The tests of this folder run the program itself. They show what goroutines cannot: a
// process that dies, and two processes that share a store.

// binary is the program under test, built once.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "mayfly-issuer-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "mayfly-issuer")
		if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// authority is a CA, a store, a policy and token providers, without an issuer.
type authority struct {
	*issuertest.Issuer
	config string // issuer.yaml
}

// newAuthority makes an authority whose store is dsn, or a SQLite file for "".
func newAuthority(t *testing.T, dsn string) *authority {
	t.Helper()
	i := issuertest.Start(t, issuertest.Options{Store: dsn})
	if err := i.Stop(); err != nil {
		t.Fatal(err)
	}
	a := &authority{Issuer: i, config: filepath.Join(t.TempDir(), "issuer.yaml")}
	a.write(t, i.Config.Store)
	return a
}

// write writes issuer.yaml with plain HTTP on loopback, so that connections are cheap,
// and no rate limits.
func (a *authority) write(t *testing.T, store string) {
	t.Helper()
	c := a.Config.CA
	text := fmt.Sprintf(`listen: 127.0.0.1:0
public_url: http://127.0.0.1:1
tls: {mode: "off"}
ca: {root: %q, root_crl: %q, intermediate: %q, key: %q}
store: %q
state_key: %q
policy: %q
rate: {per_ip: 0, per_identity: 0}
`, c.Root, c.RootCRL, c.Intermediate, c.Key, store, a.Config.StateKey, a.PolicyFile)
	if err := os.WriteFile(a.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// process is one run of mayfly-issuer serve.
type process struct {
	cmd    *exec.Cmd
	url    string
	log    *output
	client *http.Client
	ended  chan struct{} // closed when it has ended
	err    error         // the result; read after ended is closed
}

// serve starts a process and returns when it listens.
func (a *authority) serve(t *testing.T) *process {
	t.Helper()
	p := &process{cmd: exec.Command(binary, "serve", "--config", a.config), log: &output{}, ended: make(chan struct{})}
	p.cmd.Stderr = p.log
	p.cmd.SysProcAttr = endWithParent()
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	listens := make(chan string, 1)
	go func() {
		defer close(p.ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if address, ok := strings.CutPrefix(strings.TrimSpace(lines.Text()), "listen "); ok {
				listens <- strings.TrimSpace(address)
			}
		}
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(p.kill)
	select {
	case address := <-listens:
		p.url = "http://" + address
	case <-p.ended:
		t.Fatalf("serve: %v\n%s", p.err, p.log)
	case <-time.After(time.Minute):
		t.Fatalf("serve does not listen\n%s", p.log)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	p.client = &http.Client{Transport: transport, Timeout: time.Minute}
	return p
}

// kill sends SIGKILL. It returns when the process has ended.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // an error means that it has ended
	<-p.ended
	if p.client != nil {
		p.client.CloseIdleConnections()
	}
}

// stop stops the process as an operator does: SIGTERM, and exit code 0.
func (p *process) stop(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	<-p.ended
	if p.err != nil {
		t.Errorf("serve: %v\n%s", p.err, p.log)
	}
}

// call makes one call of the API. It decodes a successful response into out. Any other
// response is a *wire.Problem. If the process has ended, the error is that of the
// transport.
func (p *process) call(method, path, token string, in, out any) error {
	return issuertest.Call(p.client, method, p.url+path, token, in, out)
}

// issue requests POST /v1/certificates.
func (p *process) issue(token, csr string) (*wire.IssueResponse, error) {
	var out wire.IssueResponse
	if err := p.call(http.MethodPost, wire.PathCertificates, token, wire.IssueRequest{CSR: csr}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// refused reports whether err is the problem called name.
func refused(err error, name string) bool {
	var p *wire.Problem
	return errors.As(err, &p) && p.Name() == name
}

// answered reports whether err, not nil, is a response of the issuer.
func answered(err error) bool {
	var p *wire.Problem
	return errors.As(err, &p)
}

// run runs another command of the program and returns what it printed.
func (a *authority) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(binary, append(args, "--config", a.config)...).CombinedOutput()
	if err != nil {
		t.Errorf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

// record is the stored record of one certificate.
type record struct {
	tbs     []byte
	token   string // iss and jti
	revoked bool
}

// records reads the store, by serial, while no process is writing.
func (a *authority) records(t *testing.T) map[string]record {
	t.Helper()
	c, err := issuer.LoadConfig(a.config)
	if err != nil {
		t.Fatal(err)
	}
	st, err := issuer.OpenStore(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]record{}
	err = st.Each(t.Context(), func(c *store.Certificate) error {
		out[c.Serial] = record{tbs: c.TBS, token: c.TokenIssuer + " " + c.TokenID, revoked: c.RevokedAt != nil}
		return nil
	})
	if err := errors.Join(err, st.Close()); err != nil {
		t.Fatal(err)
	}
	return out
}

// tbsOf returns the signed part of the first certificate of a chain.
func tbsOf(chain string) ([]byte, error) {
	block, _ := pem.Decode([]byte(chain))
	if block == nil {
		return nil, fmt.Errorf("no PEM in %q", chain)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	return leaf.RawTBSCertificate, nil
}

// output keeps the end of a process's output.
type output struct {
	mu sync.Mutex
	b  []byte
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.b = append(o.b, p...); len(o.b) > 16<<10 {
		o.b = append([]byte(nil), o.b[len(o.b)-8<<10:]...)
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.b)
}
