package issuer_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/mayfly-ca/mayfly/client"
	"github.com/mayfly-ca/mayfly/issuer"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// Names on the tests' DNS server: acmeHost is this machine; nothing listens at
// acmeAway.
const (
	acmeHost = "issuer.example.com"
	acmeAway = "away.example.com"
)

// pebble is a real ACME server in its own process: Let's Encrypt's test server.
type pebble struct {
	directory string // URL
	caFile    string // of the certificate of its API
	rootFile  string // of the certificates that it issues
	roots     *x509.CertPool
	cmd       *exec.Cmd
}

// startPebble runs a Pebble that connects to tlsPort to prove a name.
func startPebble(t *testing.T, tlsPort int) *pebble {
	t.Helper()
	find := exec.Command("go", "-C", "issuertest/pebble", "tool", "-n", "pebble")
	find.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	var said bytes.Buffer
	find.Stderr = &said
	out, err := find.Output()
	if err != nil {
		if os.Getenv("MAYFLY_TEST_REQUIRE") == "all" {
			t.Fatalf("build pebble: %v\n%s", err, said.String())
		}
		t.Skipf("pebble cannot be built here, let go reach a module proxy: %v", err)
	}
	dir := t.TempDir()
	api, management := freeAddress(t), freeAddress(t)
	p := &pebble{directory: "https://" + api + "/dir", caFile: filepath.Join(dir, "api.crt"), rootFile: filepath.Join(dir, "root.crt")}
	selfSigned(t, p.caFile, filepath.Join(dir, "api.key"))
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": api, "managementListenAddress": management, "certificate": p.caFile, "privateKey": filepath.Join(dir, "api.key"),
		"httpPort": 1, "tlsPort": tlsPort, "keyAlgorithm": "ecdsa", "retryAfter": map[string]int{"authz": 1, "order": 1},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	p.cmd = exec.Command(strings.TrimSpace(string(out)), "-config", filepath.Join(dir, "config.json"), "-dnsserver", serveDNS(t), "-strict")
	p.cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=10")
	p.cmd.Stdout, p.cmd.Stderr = io.Discard, io.Discard
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = p.cmd.Wait() }()
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); <-ended })

	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(readFile(t, p.caFile))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	get := func(url string) (body []byte) {
		eventually(t, url, func() bool {
			select {
			case <-ended:
				t.Fatal("pebble ended")
			default:
			}
			resp, err := c.Get(url)
			if err != nil {
				return false
			}
			defer resp.Body.Close()
			body, err = io.ReadAll(resp.Body)
			return err == nil && resp.StatusCode == http.StatusOK
		})
		return body
	}
	get(p.directory)
	root := get("https://" + management + "/roots/0")
	p.roots = x509.NewCertPool()
	if !p.roots.AppendCertsFromPEM(root) {
		t.Fatal("pebble has no root")
	}
	if err := os.WriteFile(p.rootFile, root, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// serveDNS answers for acmeHost and acmeAway over TCP, as Pebble asks, until the test
// ends.
func serveDNS(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); work.Wait() })
	work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
				_ = answerDNS(conn) // after an error, the client gets no answer
			})
		}
	})
	return l.Addr().String()
}

// answerDNS answers one question (RFC 1035 4.2.2).
func answerDNS(conn net.Conn) error {
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return err
	}
	question := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, question); err != nil {
		return err
	}
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil {
		return err
	}
	m.Response, m.Additionals = true, nil
	for _, q := range m.Questions {
		address, known := map[string][4]byte{acmeHost + ".": {127, 0, 0, 1}, acmeAway + ".": {127, 0, 0, 2}}[strings.ToLower(q.Name.String())]
		switch {
		case !known:
			m.RCode = dnsmessage.RCodeNameError
		case q.Type == dnsmessage.TypeA:
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60}, Body: &dnsmessage.AResource{A: address},
			})
		}
	}
	packed, err := m.Pack()
	if err != nil {
		return err
	}
	_, err = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...))
	return err
}

// freeAddress returns a loopback address with a free port.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// selfSigned writes a certificate for 127.0.0.1 and its key.
func selfSigned(t *testing.T, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pebble"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// acmeIssuer serves host at address with a certificate of p.
func acmeIssuer(t *testing.T, p *pebble, host, address string, log io.Writer) *issuertest.Issuer {
	t.Helper()
	return issuertest.Start(t, issuertest.Options{Log: log, Config: func(c *issuer.Config) {
		c.Listen, c.PublicURL, c.TLS.Mode = address, "https://"+host, issuer.TLSACME
		c.ACME = issuer.ACMEConfig{Email: "ops@example.com", DirectoryURL: p.directory, CAFile: p.caFile}
	}})
}

// handshake asks address for the certificate of a name.
func handshake(t *testing.T, address string, config *tls.Config) (*tls.ConnectionState, error) {
	t.Helper()
	config.NextProtos = []string{"h2", "http/1.1"}
	d := tls.Dialer{Config: config}
	conn, err := d.DialContext(t.Context(), "tcp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	state := conn.(*tls.Conn).ConnectionState()
	return &state, nil
}

// TestACME is a real run of TLS-ALPN-01. A client that does not know mayfly's CA
// trusts the listener, for its name only. A job pins mayfly's root as always. A
// restart uses the existing certificate.
func TestACME(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	var tlsPort int
	if _, err := fmt.Sscan(port, &tlsPort); err != nil {
		t.Fatal(err)
	}
	p := startPebble(t, tlsPort)
	var log buffer
	i := acmeIssuer(t, p, acmeHost, address, &log)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(log.String())
		}
	})

	state, err := handshake(t, address, &tls.Config{RootCAs: p.roots, ServerName: acmeHost})
	if err != nil {
		t.Fatal(err)
	}
	first := state.PeerCertificates[0]
	if len(first.DNSNames) != 1 || first.DNSNames[0] != acmeHost || state.NegotiatedProtocol != "h2" || state.Version != tls.VersionTLS13 {
		t.Errorf("certificate for %q, protocol %q, version %x", first.DNSNames, state.NegotiatedProtocol, state.Version)
	}
	for _, name := range []string{"other.example.com", "example.com", "sub." + acmeHost, ""} {
		config := &tls.Config{RootCAs: p.roots, ServerName: name}
		if name == "" {
			config.InsecureSkipVerify = true // sends no name: the server must refuse it
		}
		if _, err := handshake(t, address, config); err == nil {
			t.Errorf("a handshake for %q is answered", name)
		}
	}
	if _, err := handshake(t, address, &tls.Config{RootCAs: p.roots, ServerName: "ISSUER.example.com"}); err != nil {
		t.Errorf("the name in capitals: %v", err)
	}

	dir := filepath.Join(filepath.Dir(i.Config.Store), "acme")
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%s: %v, %v", dir, info.Mode(), err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 2 {
		t.Errorf("%d files of an account and a certificate, %v", len(files), err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f.Name(), info.Mode(), err)
		}
	}
	t.Run("a job", func(t *testing.T) { acmeJob(t, p, i, address) })

	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	i.Restart()
	state, err = handshake(t, address, &tls.Config{RootCAs: p.roots, ServerName: acmeHost})
	if err != nil || !state.PeerCertificates[0].Equal(first) {
		t.Errorf("after a restart without the ACME server: %v", err)
	}
}

type tokenSource string

func (s tokenSource) Token(context.Context, string) (string, error) { return string(s), nil }
func (s tokenSource) String() string                                { return "a test" }

// acmeJob checks that the trust anchor pins mayfly's root, with any CA for the
// listener's certificate.
func acmeJob(t *testing.T, p *pebble, i *issuertest.Issuer, address string) {
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	for _, c := range []struct{ name, caFile, anchor, want string }{
		{"web root and trust anchor", p.rootFile, i.TrustAnchor, ""},
		{"web root alone", p.rootFile, "", ""},
		{"another root's anchor", p.rootFile, "sha256:" + strings.Repeat("0", 64), "trust anchor"},
		{"mayfly's root as the web's", i.CAFile, i.TrustAnchor, "certificate"},
		{"the system's roots", "", i.TrustAnchor, "certificate"},
	} {
		mint, err := client.New(t.Context(), client.Config{
			Issuer: "https://" + acmeHost, CAFile: c.caFile, TrustAnchor: c.anchor, Source: tokenSource(i.GitHubToken(nil)), Dial: dial,
		})
		if err == nil {
			err = mint.Close()
		}
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// TestACMEUnreachable checks an ACME server that cannot reach the listener. The log
// says so with a hint, handshakes fail, and the issuer still stops at once.
func TestACMEUnreachable(t *testing.T) {
	t.Parallel()
	p := startPebble(t, 1)
	var log buffer
	i := acmeIssuer(t, p, acmeAway, freeAddress(t), &log)
	eventually(t, "the error", func() bool { return strings.Contains(log.String(), "no certificate from the ACME server") })
	if said := log.String(); !strings.Contains(said, "it connects to "+acmeAway+":443, which must reach this listener at "+i.Config.Listen) || !strings.Contains(said, "retry_in=2m0s") {
		t.Errorf("the log has no remedy:\n%s", said)
	}
	if _, err := handshake(t, i.Config.Listen, &tls.Config{RootCAs: p.roots, ServerName: acmeAway}); err == nil {
		t.Error("a handshake without a certificate")
	}
	if err := i.Stop(); err != nil {
		t.Error(err)
	}
}
