package issuer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/mail"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/grant"
)

const (
	// acmeRequest is the timeout of one request to the ACME server. It also bounds how
	// long the shutdown of the issuer may wait for such a request.
	acmeRequest = 15 * time.Second
	// acmeCheck is how often the certificate in use is compared with autocert's, which
	// may have been renewed.
	acmeCheck = time.Minute
	// The pause after a failure starts at acmeRetryFirst and doubles up to
	// acmeRetryMost. Let's Encrypt allows five failures per name and hour, and
	// autocert does not retry within a minute.
	acmeRetryFirst, acmeRetryMost = 2 * time.Minute, time.Hour
	// acmeFirst is how long a handshake waits for the first attempt to end.
	acmeFirst = 10 * time.Second
)

// checkACME returns an error for a configuration that cannot get a certificate.
func (c *Config) checkACME() error {
	if c.TLS.Mode != TLSACME {
		if c.ACME != (ACMEConfig{}) {
			return fmt.Errorf("acme belongs to tls.mode acme, not to %s", c.TLS.Mode)
		}
		return nil
	}
	u, err := c.publicURL()
	if err != nil {
		return err
	}
	host := strings.ToLower(u.Hostname())
	switch {
	case u.Scheme != "https":
		return errors.New("tls.mode acme needs an https public_url")
	case !grant.ValidHostName(host) || !strings.Contains(host, "."):
		return fmt.Errorf("tls.mode acme gets certificates for public DNS names, and public_url's host is %q", u.Hostname())
	case c.BehindProxy:
		return errors.New("tls.mode acme needs the ACME server's connections to reach this listener itself: behind a TLS edge (behind_proxy) use tls.mode off")
	}
	if c.ACME.Email != "" {
		if a, err := mail.ParseAddress(c.ACME.Email); err != nil || a.Address != c.ACME.Email {
			return fmt.Errorf("acme.email: %q is not an e-mail address", c.ACME.Email)
		}
	}
	if c.ACME.DirectoryURL != "" {
		if d, err := url.Parse(c.ACME.DirectoryURL); err != nil || d.Scheme != "https" || d.Host == "" || d.User != nil {
			return errors.New("acme.directory_url: want the https URL of an ACME server's directory")
		}
	}
	return nil
}

// acmeDir returns the directory of the account and the certificates.
func (c *Config) acmeDir(dsn string) string {
	switch {
	case c.ACME.Dir != "":
		return c.ACME.Dir
	case !ca.IsPostgres(dsn):
		return filepath.Join(filepath.Dir(dsn), "acme")
	}
	return filepath.Join(filepath.Dir(c.Path), "acme")
}

// acmeCertificate is the listener's certificate from an ACME server (RFC 8555). The
// listener itself answers the TLS-ALPN-01 challenge (RFC 8737).
type acmeCertificate struct {
	manager *autocert.Manager
	host    string
	address string // of the listener, for the log
	logger  *slog.Logger
	current atomic.Pointer[tls.Certificate]
	first   chan struct{} // closed when the first attempt has ended, with success or not
	stopped atomic.Bool   // set when no new request to the ACME server may begin
}

// newACMECertificate sends no request to the ACME server; keep does.
func newACMECertificate(c Config, dsn, host string, logger *slog.Logger) (*acmeCertificate, error) {
	dir := c.acmeDir(dsn)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("acme.dir: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil { // dir holds private keys
		return nil, fmt.Errorf("acme.dir: %w", err)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if c.ACME.CAFile != "" {
		data, err := readBounded(c.ACME.CAFile, maxPEMBytes)
		if err != nil {
			return nil, fmt.Errorf("acme.ca_file: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("acme.ca_file: %s holds no certificate in PEM", c.ACME.CAFile)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	a := &acmeCertificate{host: strings.ToLower(host), address: c.Listen, logger: logger, first: make(chan struct{})}
	a.manager = &autocert.Manager{
		Prompt:     autocert.AcceptTOS,
		Cache:      autocert.DirCache(dir),
		HostPolicy: autocert.HostWhitelist(a.host),
		Email:      c.ACME.Email,
		Client: &acme.Client{
			DirectoryURL: c.ACME.DirectoryURL, // "" means Let's Encrypt
			UserAgent:    "mayfly-issuer/" + Version(),
			HTTPClient: &http.Client{
				Timeout: acmeRequest, Transport: &acmeTransport{transport, &a.stopped},
				CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			},
		},
	}
	return a, nil
}

// acmeTransport bounds the size of each response. It starts no request once stopped is
// set, because autocert takes no context.
type acmeTransport struct {
	http.RoundTripper
	stopped *atomic.Bool
}

func (t *acmeTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.stopped.Load() {
		return nil, http.ErrServerClosed
	}
	resp, err := t.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxPEMBytes), resp.Body}
	}
	return resp, err
}

// keep gets the certificate and follows autocert's own renewals until ctx ends. A
// certificate that cannot be renewed stays in use.
func (a *acmeCertificate) keep(ctx context.Context) {
	defer context.AfterFunc(ctx, func() { a.stopped.Store(true) })()
	pause, tried := acmeRetryFirst, sync.OnceFunc(func() { close(a.first) })
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		cert, err := a.manager.GetCertificate(&tls.ClientHelloInfo{ServerName: a.host, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}})
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			a.logger.ErrorContext(ctx, "no certificate from the ACME server", "host", a.host, "err", err, "retry_in", pause.String(),
				"hint", a.hint(err))
			t.Reset(pause)
			pause = min(2*pause, acmeRetryMost)
		default:
			a.use(ctx, cert)
			pause = acmeRetryFirst
			t.Reset(acmeCheck)
		}
		tried()
	}
}

// use puts cert into service and logs its state for the operator.
func (a *acmeCertificate) use(ctx context.Context, cert *tls.Certificate) {
	before := a.current.Swap(cert)
	until := cert.Leaf.NotAfter.UTC().Format(time.RFC3339)
	switch life := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore); {
	case before == nil:
		a.logger.InfoContext(ctx, "certificate from the ACME server", "host", a.host, "until", until)
	case !before.Leaf.Equal(cert.Leaf):
		a.logger.InfoContext(ctx, "certificate renewed by the ACME server", "host", a.host, "until", until)
	case time.Until(cert.Leaf.NotAfter) < life/4: // autocert renews when a third of life is left
		a.logger.ErrorContext(ctx, "certificate is not renewed by the ACME server", "host", a.host, "until", until,
			"hint", "it connects to "+a.host+":443, which must reach this listener at "+a.address)
	}
}

// hint returns what to do after an attempt that failed with err.
func (a *acmeCertificate) hint(err error) string {
	var request *url.Error
	if errors.As(err, &request) {
		return "let this host reach the ACME server: its DNS, its firewall, HTTPS_PROXY, acme.directory_url"
	}
	return "it connects to " + a.host + ":443, which must reach this listener at " + a.address
}

// get returns the certificate for a handshake: the challenge certificate for an ACME
// server, else the certificate of the host.
func (a *acmeCertificate) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acme.ALPNProto {
		return a.manager.GetCertificate(hello)
	}
	if strings.TrimSuffix(strings.ToLower(hello.ServerName), ".") != a.host {
		return nil, fmt.Errorf("this issuer is %s, not %q", a.host, hello.ServerName)
	}
	if a.current.Load() == nil {
		select {
		case <-a.first:
		case <-hello.Context().Done():
		case <-time.After(acmeFirst):
		}
	}
	if cert := a.current.Load(); cert != nil {
		return cert, nil
	}
	return nil, errors.New("no certificate from the ACME server yet")
}

// config returns the listener's TLS configuration, with TLS 1.3 only, as in the other
// modes.
func (a *acmeCertificate) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1", acme.ALPNProto}, GetCertificate: a.get}
}
