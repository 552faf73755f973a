package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// Times and sizes of calls to the issuer.
const (
	issuerTimeout  = 20 * time.Second // one call, from dial to the last byte
	issuerWaitSlop = 15 * time.Second // added to wire.CRLWait
	// issuerLost is the time within which a connection to the issuer ends after a
	// router on its path has lost it. HTTP/2 pings, TCP probes while nothing is
	// sent, and the bound on unacknowledged data ensure it.
	issuerLost = 10 * time.Second
	maxProblem = 64 << 10
	maxRoots   = 8
	maxCAFile  = 1 << 20
)

// DialFunc makes a network connection, as net.Dialer.DialContext does.
type DialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// Issuer calls an issuer over HTTPS, or over HTTP on loopback. It follows no
// redirect, and bounds the time and size of each answer. It is safe for
// concurrent use.
//
// Its methods return *wire.Problem for an answer that is a refusal and
// *IssuerUnreachableError where there was no answer.
type Issuer struct {
	base   *url.URL
	anchor []byte // SHA-256 of the pinned root's DER; nil pins none
	http   *http.Client
}

// NewIssuer returns an issuer by its URL. caFile, if not empty, is a PEM file with
// the roots for the issuer's TLS certificate, in place of the system's roots.
// anchor, if not empty, is "sha256:" and the hex digest of the DER of mayfly's
// root. A trust bundle must contain that root, and only that root is trusted. If
// the issuer serves its own certificate, that root verifies it.
func NewIssuer(rawURL, caFile, anchor string) (*Issuer, error) {
	return newIssuer(rawURL, caFile, anchor, nil)
}

func newIssuer(rawURL, caFile, anchor string, dial DialFunc) (*Issuer, error) {
	base, err := parseIssuerURL(rawURL)
	if err != nil {
		return nil, err
	}
	i := &Issuer{base: base}
	if i.anchor, err = parseAnchor(anchor); err != nil {
		return nil, err
	}
	roots, err := readRoots(caFile)
	if err != nil {
		return nil, err
	}
	if dial == nil {
		dial = dialIssuer(base.Scheme)
	}
	tr := &http.Transport{
		DialContext:            dial,
		TLSClientConfig:        i.tlsConfig(roots),
		ForceAttemptHTTP2:      true,
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  wire.CRLWait + issuerWaitSlop,
		IdleConnTimeout:        90 * time.Second,
		MaxIdleConnsPerHost:    2,
		MaxResponseHeaderBytes: wire.MaxHeaderBytes,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: issuerLost / 2, PingTimeout: issuerLost / 2},
	}
	if base.Scheme == "https" {
		tr.Proxy = http.ProxyFromEnvironment
	}
	i.http = &http.Client{
		Transport: tr,
		CheckRedirect: func(req *http.Request, _ []*http.Request) error {
			return hinted(fmt.Sprintf("set the issuer's own URL, without redirects: it may be %s://%s", req.URL.Scheme, req.URL.Host),
				fmt.Errorf("%w, to %s://%s", errRedirect, req.URL.Scheme, req.URL.Host))
		},
	}
	return i, nil
}

var errRedirect = errors.New("it answers a redirect, which is refused")

const issuerURLHint = "set the issuer's URL to scheme and host, such as https://mayfly.example.com"

// parseIssuerURL accepts https URLs, and http URLs with a loopback host.
func parseIssuerURL(raw string) (*url.URL, error) {
	if raw == "" {
		return nil, hinted(issuerURLHint, errors.New("no issuer is named"))
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return nil, hinted(issuerURLHint, errors.New("the issuer's URL is not a URL"))
	case u.Host == "" || u.Hostname() == "":
		return nil, hinted(issuerURLHint, fmt.Errorf("issuer URL %q has no host", raw))
	case u.User != nil, u.RawQuery != "", u.Fragment != "":
		return nil, hinted(issuerURLHint, errors.New("the issuer's URL has a user, a query or a fragment"))
	case u.Scheme == "http" && !loopbackHost(u.Hostname()):
		return nil, hinted("write https:// in the issuer's URL", fmt.Errorf("issuer URL %q is http, which is for loopback only", raw))
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, hinted(issuerURLHint, fmt.Errorf("issuer URL %q is not https", raw))
	}
	u.Path = strings.TrimRight(u.Path, "/")
	return u, nil
}

func loopbackHost(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// dialIssuer returns the function that dials an issuer or the proxy in front of
// it. A connection whose path is lost ends within issuerLost; a long poll has no
// other way to notice that.
func dialIssuer(scheme string) DialFunc {
	d := net.Dialer{Timeout: 10 * time.Second, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: issuerLost / 2, Interval: issuerLost / 2, Count: 2,
	}}
	if scheme == "http" {
		d.Control = loopbackOnly
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		// If the option cannot be set, pings and probes still end the connection.
		_ = setUserTimeout(conn, issuerLost)
		return conn, nil
	}
}

// loopbackOnly returns an error unless "localhost" resolved to a loopback address.
func loopbackOnly(_, address string, _ syscall.RawConn) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("http to %s, which is not loopback", host)
	}
	return nil
}

func parseAnchor(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	digits, ok := strings.CutPrefix(s, "sha256:")
	b, err := hex.DecodeString(digits)
	if !ok || err != nil || len(b) != sha256.Size {
		return nil, hinted("correct trust_anchor: mayfly-issuer init printed it", errors.New("trust anchor is not sha256: and 64 hex digits"))
	}
	return b, nil
}

func readRoots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, hinted("correct ca_file: a PEM file with the CA of the issuer's TLS certificate", fmt.Errorf("ca file: %w", err))
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCAFile))
	if err != nil {
		return nil, hinted("correct ca_file: a PEM file with the CA of the issuer's TLS certificate", fmt.Errorf("ca file: %w", err))
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, hinted("correct ca_file: a PEM file with the CA of the issuer's TLS certificate", fmt.Errorf("ca file %s holds no certificate in PEM", file))
	}
	return pool, nil
}

// tlsConfig verifies the issuer's server certificate. An issuer that serves
// mayfly's own certificate (tls.mode self) sends its root too. With a pinned root,
// the chain must end in that root. Any other certificate is verified as usual.
func (i *Issuer) tlsConfig(roots *x509.CertPool) *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	if i.anchor == nil {
		return c
	}
	c.InsecureSkipVerify = true // VerifyConnection verifies, on every handshake
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		opts := x509.VerifyOptions{DNSName: cs.ServerName, Roots: roots, Intermediates: x509.NewCertPool()}
		if opts.DNSName == "" {
			opts.DNSName = i.base.Hostname() // a client sends no server name for an IP address
		}
		for n, cert := range cs.PeerCertificates {
			if i.pinned(cert) {
				opts.Roots = x509.NewCertPool()
				opts.Roots.AddCert(cert)
			} else if n > 0 {
				opts.Intermediates.AddCert(cert)
			}
		}
		if _, err := cs.PeerCertificates[0].Verify(opts); err != nil {
			var unknown x509.UnknownAuthorityError
			switch known := slices.ContainsFunc(cs.PeerCertificates, i.pinned); {
			case errors.As(err, &unknown) && known:
				err = hinted("correct the issuer's URL: another program answers there, which only shows the root", err)
			case errors.As(err, &unknown) && sendsRoot(cs.PeerCertificates):
				err = hinted("correct trust_anchor: mayfly-issuer init printed the fingerprint of the issuer's root, and this is another", err)
			}
			return &tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: err}
		}
		return nil
	}
	return c
}

func (i *Issuer) pinned(cert *x509.Certificate) bool {
	sum := sha256.Sum256(cert.Raw)
	return subtle.ConstantTimeCompare(sum[:], i.anchor) == 1
}

// Pin returns the trusted roots of a trust bundle. Without a trust anchor these
// are all; with one it is the pinned root, whose absence is an error.
func (i *Issuer) Pin(bundle []*x509.Certificate) ([]*x509.Certificate, error) {
	if i.anchor == nil {
		return bundle, nil
	}
	for _, cert := range bundle {
		if i.pinned(cert) {
			return []*x509.Certificate{cert}, nil
		}
	}
	return nil, hinted("correct trust_anchor, or the issuer's URL: mayfly-issuer init printed the root's fingerprint",
		fmt.Errorf("its root is not the one of the trust anchor, sha256:%x", i.anchor))
}

// String returns the issuer's URL.
func (i *Issuer) String() string { return i.base.String() }

// HTTPClient returns the HTTP client of the issuer, for other packages that call
// the API. It verifies the same certificate and refuses the same redirects.
func (i *Issuer) HTTPClient() *http.Client { return i.http }

// CloseIdleConnections closes the connections that are not in use.
func (i *Issuer) CloseIdleConnections() { i.http.CloseIdleConnections() }

// Info gets /v1/info.
func (i *Issuer) Info(ctx context.Context) (wire.Info, error) {
	var info wire.Info
	err := i.callJSON(ctx, call{method: http.MethodGet, path: wire.PathInfo, status: http.StatusOK}, &info)
	return info, err
}

// Issue posts one certificate request with a bearer token.
func (i *Issuer) Issue(ctx context.Context, token string, r wire.IssueRequest) (wire.IssueResponse, error) {
	var resp wire.IssueResponse
	err := i.callJSON(ctx, call{
		method: http.MethodPost, path: wire.PathCertificates, token: token, body: r, status: http.StatusCreated,
	}, &resp)
	return resp, err
}

// Report posts session reports with a bearer token for the sessions audience.
func (i *Issuer) Report(ctx context.Context, token string, r wire.SessionsRequest) (wire.SessionsResponse, error) {
	var resp wire.SessionsResponse
	err := i.callJSON(ctx, call{
		method: http.MethodPost, path: wire.PathSessions, token: token, body: r, status: http.StatusOK,
	}, &resp)
	return resp, err
}

// WaitCRL gets the PEM of /v1/crl/wait, for mtls.ParseFeed, as soon as its number
// differs from after. It returns nil if nothing changed for wire.CRLWait. No CRL
// has number 0, so 0 returns at once.
func (i *Issuer) WaitCRL(ctx context.Context, after int64) ([]byte, error) {
	b, status, err := i.call(ctx, call{
		method: http.MethodGet, path: wire.PathCRLWait, query: url.Values{"after": {strconv.FormatInt(after, 10)}},
		status: http.StatusOK, timeout: wire.CRLWait + issuerWaitSlop,
	})
	if err != nil || status == http.StatusNoContent {
		return nil, err
	}
	return b, nil
}

// Feed gets the current revocation feed and verifies it against roots.
func (i *Issuer) Feed(ctx context.Context, roots []*x509.Certificate) (*mtls.Feed, error) {
	ctx, cancel := context.WithTimeout(ctx, issuerTimeout)
	defer cancel()
	b, err := i.WaitCRL(ctx, 0)
	if err != nil {
		return nil, err
	}
	return mtls.ParseFeed(b, roots)
}

// TrustBundle gets the trust bundle and returns its trusted roots; see Pin.
func (i *Issuer) TrustBundle(ctx context.Context) ([]*x509.Certificate, error) {
	b, _, err := i.call(ctx, call{method: http.MethodGet, path: wire.PathTrustBundle, status: http.StatusOK})
	if err != nil {
		return nil, err
	}
	bundle, err := parseCertificates(b, maxRoots)
	if err != nil {
		return nil, fmt.Errorf("trust bundle of issuer %s: %w", i, err)
	}
	if bundle, err = i.Pin(bundle); err != nil {
		return nil, fmt.Errorf("issuer %s: %w", i, err)
	}
	return bundle, nil
}

// call is one request. status is the expected status; 204 is a success too.
type call struct {
	method, path string
	query        url.Values
	token        string
	body         any
	status       int
	timeout      time.Duration // 0 means issuerTimeout
}

func (i *Issuer) callJSON(ctx context.Context, c call, out any) error {
	b, _, err := i.call(ctx, c)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, out); err != nil {
		return &IssuerUnreachableError{URL: i.String(), Final: true, Err: hinted("correct the issuer's URL", errors.New("what answers there is not a mayfly issuer"))}
	}
	return nil
}

func (i *Issuer) call(ctx context.Context, c call) ([]byte, int, error) {
	timeout := c.timeout
	if timeout == 0 {
		timeout = issuerTimeout
	}
	callCtx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	resp, err := i.do(callCtx, c)
	if err != nil {
		return nil, 0, i.unreachable(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != c.status && resp.StatusCode != http.StatusNoContent {
		return nil, resp.StatusCode, readProblem(resp)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, wire.MaxResponseBytes+1))
	if err != nil {
		return nil, 0, i.unreachable(ctx, err)
	}
	if len(b) > wire.MaxResponseBytes {
		return nil, 0, &IssuerUnreachableError{URL: i.String(), Final: true, Err: fmt.Errorf("its answer is larger than %d bytes", wire.MaxResponseBytes)}
	}
	return b, resp.StatusCode, nil
}

// do sends the request. After a failure it closes the idle connections. It
// repeats a GET once if the GET failed on a reused connection.
func (i *Issuer) do(ctx context.Context, c call) (*http.Response, error) {
	for attempt := 1; ; attempt++ {
		stood := false
		req, err := i.request(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
			GotConn: func(info httptrace.GotConnInfo) { stood = info.Reused },
		}), c)
		if err != nil {
			return nil, err
		}
		resp, err := i.http.Do(req)
		if err == nil {
			return resp, nil
		}
		i.http.CloseIdleConnections()
		if attempt > 1 || !stood || c.method != http.MethodGet || ctx.Err() != nil || !isTransient(err) {
			return nil, err
		}
	}
}

func (i *Issuer) request(ctx context.Context, c call) (*http.Request, error) {
	u := *i.base
	u.Path += c.path
	u.RawQuery = c.query.Encode()
	var body io.Reader
	if c.body != nil {
		b, err := json.Marshal(c.body)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, c.method, u.String(), body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "mayfly")
	if c.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	return req, nil
}

// unreachable explains why there was no answer. It passes the caller's own
// context error on.
func (i *Issuer) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("issuer %s: %w", i, ctx.Err())
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = timeoutError(err)
	}
	var verify *tls.CertificateVerificationError
	if errors.As(err, &verify) {
		err = hinted(cmp.Or(Hint(verify.Err), certificateHint(verify)), fmt.Errorf("its TLS certificate does not verify: %w", verify.Err))
	}
	return &IssuerUnreachableError{URL: i.String(), Err: err, Final: verify != nil || !isTransient(err)}
}

// readProblem makes a *wire.Problem from an answer that is not a success. Its
// texts are safe to print on a terminal.
func readProblem(resp *http.Response) error {
	// A failed read gives a partial body, which ReadProblem does not parse.
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxProblem))
	p := wire.ReadProblem(resp, b)
	for _, s := range []*string{&p.Type, &p.Title, &p.Detail, &p.Instance, &p.Claim, &p.Rule} {
		*s = printable(*s)
	}
	for n, name := range p.Engines {
		p.Engines[n] = printable(name)
	}
	return p
}

// printable removes characters that are not printable and limits the length.
func printable(s string) string {
	const most = 1000
	n := 0
	return strings.Map(func(r rune) rune {
		if n++; n > most || !strconv.IsPrint(r) {
			return -1
		}
		return r
	}, s)
}

// parseCertificates reads up to most PEM certificates and refuses other data.
func parseCertificates(data []byte, most int) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for data = bytes.TrimSpace(data); len(data) > 0; data = bytes.TrimSpace(data) {
		block, rest := pem.Decode(data)
		if block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("not certificates in PEM")
		}
		if len(certs) == most {
			return nil, fmt.Errorf("more than %d certificates", most)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs, data = append(certs, cert), rest
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate")
	}
	return certs, nil
}
