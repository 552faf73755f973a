package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// endpoint is an engine's address. edge is set if a TLS edge is in front of the
// engine; mayfly's TLS then runs inside the edge's TLS.
type endpoint struct {
	address string // host:port
	host    string
	edge    bool
}

// parseEndpoint reads tcp://host:port and edge://host:port.
func parseEndpoint(s string) (endpoint, error) {
	bad := func(why string) (endpoint, error) {
		return endpoint{}, fmt.Errorf("the endpoint %s: want tcp://host:port or edge://host:port", why)
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return bad("does not parse")
	case u.Scheme != "tcp" && u.Scheme != "edge":
		return bad("has another scheme")
	case u.Hostname() == "" || u.Port() == "":
		return bad("has no host or no port")
	case u.User != nil, u.Path != "", u.RawQuery != "", u.ForceQuery, u.Fragment != "":
		return bad("has more than host and port")
	}
	return endpoint{address: u.Host, host: u.Hostname(), edge: u.Scheme == "edge"}, nil
}

// engineFor resolves the address of a dial: the name of a granted engine. Any
// other address means Config.Engine, or the only granted engine.
func (c *Client) engineFor(cred *Credential, addr string) (wire.Engine, error) {
	name := addr
	if host, _, err := net.SplitHostPort(addr); err == nil {
		name = host
	}
	if e, ok := cred.engine(name); ok {
		return e, nil
	}
	if e, ok := cred.engine(c.cfg.Engine); ok {
		return e, nil
	}
	engines := cred.Response.Engines
	if len(engines) == 1 {
		return engines[0], nil
	}
	names := make([]string, len(engines))
	for i, e := range engines {
		names[i] = e.Name
	}
	return wire.Engine{}, fmt.Errorf("certificate is for the engines [%s], and %q is none of them: name one", strings.Join(names, " "), printable(name))
}

// checkEngine checks that a peer is the engine that the client asked for. The
// peer's chain, usage, trust domain and DNS name are already verified.
func checkEngine(p mtls.Peer, e wire.Engine, revocation chainCheck) error {
	switch name, ok := identity.Engine(p.Claims.ID); {
	case !ok:
		return fmt.Errorf("its identity is %s, which is no engine's", p.Claims.ID)
	case name != e.Name:
		return hinted(fmt.Sprintf("correct the endpoint of engine %s in the issuer's policy: it leads to engine %s", e.Name, name),
			fmt.Errorf("it is engine %s", name))
	}
	if !slices.Contains(p.Claims.Grant.Engines, e.Name) {
		return fmt.Errorf("its certificate is not granted for engine %s", e.Name)
	}
	// crypto/tls accepts a wildcard name, and mayfly issues none.
	if !slices.Contains(p.Certificate.DNSNames, e.ServerName) {
		return fmt.Errorf("its certificate does not name %s", e.ServerName)
	}
	if err := revocation(p.Chain); err != nil {
		return fmt.Errorf("its certificate: %w", err)
	}
	return nil
}

// chainCheck returns an error for a verified chain that a revocation list refuses.
type chainCheck func(chain []*x509.Certificate) error

// revocationCheck returns the check of an engine's chain against a fresh
// revocation list. A control connection uses the last list at any age: it only
// keeps relays that a fresh list admitted, and the issuer may be unreachable.
func (c *Client) revocationCheck(ctx context.Context, cred *Credential, alpn string) (chainCheck, error) {
	if alpn == wire.ALPNControl {
		return c.feed.Load().CheckChainAtAnyAge, nil
	}
	feed, err := c.freshFeed(ctx, cred)
	if err != nil {
		return nil, err
	}
	return func(chain []*x509.Certificate) error { return feed.CheckChain(chain, time.Now()) }, nil
}

// Times of one attempt to reach an engine. A proxy that wakes a machine accepts
// the connection at once and holds it until the machine listens.
const (
	connectTimeout = 15 * time.Second
	attemptTimeout = 60 * time.Second
)

// eofTracker records whether the connection below TLS ended. crypto/tls reads an
// EOF at a record boundary as the end of the stream, but only close_notify is one
// (RFC 8446 section 6.1). Otherwise a cut, or an attacker on the path, would make
// a truncated answer look complete.
type eofTracker struct {
	net.Conn
	ended atomic.Bool
}

func (w *eofTracker) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if err == io.EOF {
		w.ended.Store(true)
	}
	return n, err
}

// engineConn is an admitted connection to a sidecar.
type engineConn struct {
	*tls.Conn
	below *eofTracker
	// tcp is the TCP connection. Its Close does not wait for the peer.
	tcp    net.Conn
	cred   *Credential
	engine wire.Engine
}

// Read returns io.EOF only if the peer ended the TLS stream.
func (e *engineConn) Read(b []byte) (int, error) {
	n, err := e.Conn.Read(b)
	if err == io.EOF && e.below.ended.Load() {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// abandon closes the TCP connection at once, without close_notify.
func (e *engineConn) abandon() { _ = e.tcp.Close() }

// connect makes one attempt: TCP, the edge's TLS if there is one, mutual TLS
// with the engine's identity checked, and the sidecar's verdict.
//
// Its errors are *RejectedError, *UntrustedEngineError, *EngineUnreachableError
// if this machine cannot dial, *IssuerUnreachableError and *wire.Problem from the
// fetch of the revocation list, the context's error, and transient network errors.
func (c *Client) connect(ctx context.Context, cred *Credential, e wire.Engine, alpn string) (*engineConn, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	unreachable := func(err error) error {
		return &EngineUnreachableError{Engine: e.Name, Endpoint: printable(e.Endpoint), Attempts: 1, Final: true, Err: err}
	}
	ep, err := parseEndpoint(e.Endpoint)
	if err != nil {
		return nil, unreachable(err)
	}
	revocation, err := c.revocationCheck(ctx, cred, alpn)
	if err != nil {
		return nil, err
	}
	bottom, err := c.dialTCP(ctx, ep.address)
	switch {
	case err != nil && ctx.Err() == nil && !isTransient(err):
		return nil, unreachable(err)
	case err != nil:
		return nil, err
	}
	conn, err := c.secure(ctx, bottom, ep, cred, e, alpn, revocation)
	if err != nil {
		_ = bottom.Close()
		return nil, err
	}
	return conn, nil
}

func (c *Client) dialTCP(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	dial := c.cfg.Dial
	if dial == nil {
		d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3,
		}}
		dial = d.DialContext
	}
	conn, err := dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	// Other kinds of connection have no such option; pings detect a dead peer too.
	if err := setUserTimeout(conn, wire.ControlSilence); err != nil {
		c.log.Debug("no TCP user timeout", "error", err)
	}
	return conn, nil
}

// secure does the TLS handshakes over bottom and reads the verdict.
func (c *Client) secure(ctx context.Context, bottom net.Conn, ep endpoint, cred *Credential, e wire.Engine, alpn string, revocation chainCheck) (*engineConn, error) {
	// When the context ends, the connection closes, which also ends the read of
	// the verdict.
	stop := context.AfterFunc(ctx, func() { _ = bottom.Close() })
	defer stop()
	under := bottom
	if ep.edge {
		outer := tls.Client(bottom, &tls.Config{MinVersion: tls.VersionTLS12, ServerName: ep.host, RootCAs: c.cfg.EdgeRoots})
		if err := outer.HandshakeContext(ctx); err != nil {
			return nil, contextErrorOr(ctx, edgeError(e, err))
		}
		under = outer
	}
	var refused error
	below := &eofTracker{Conn: under}
	conn := tls.Client(below, mtls.ClientConfig(cred, cred.TrustDomain, e.ServerName, []string{alpn}, func(p mtls.Peer) error {
		refused = checkEngine(p, e, revocation)
		return refused
	}))
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, contextErrorOr(ctx, handshakeError(cred, e, err, refused))
	}
	if got := conn.ConnectionState().NegotiatedProtocol; got != alpn {
		return nil, untrusted(e, hinted(wrongPort(e), fmt.Errorf("it does not speak %s", alpn)))
	}
	reason, err := readVerdict(conn)
	if err != nil {
		return nil, contextErrorOr(ctx, handshakeError(cred, e, err, nil))
	}
	if reason != "" {
		return nil, &RejectedError{Engine: e.Name, Endpoint: e.Endpoint, Reason: reason, Serial: cred.Serial()}
	}
	if !stop() { // the context ended between the verdict and here
		return nil, ctx.Err()
	}
	return &engineConn{Conn: conn, below: below, tcp: bottom, cred: cred, engine: e}, nil
}

// contextErrorOr returns the context's error if the context has ended, and err otherwise.
func contextErrorOr(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return timeoutError(ctx.Err())
	}
	return err
}

func untrusted(e wire.Engine, err error) error {
	return &UntrustedEngineError{Engine: e.Name, Endpoint: e.Endpoint, ServerName: e.ServerName, Err: err}
}

// edgeError explains a failed outer handshake.
func edgeError(e wire.Engine, err error) error {
	if isTransient(err) {
		return err
	}
	return untrusted(e, fmt.Errorf("TLS edge: %w", err))
}

// handshakeError classifies an error of a handshake or of reading the verdict:
// the client's refusal, the engine's refusal, or a network error.
func handshakeError(cred *Credential, e wire.Engine, err, refused error) error {
	if refused != nil {
		return untrusted(e, refused)
	}
	if reason, ok := alertReason(err); ok {
		return &RejectedError{Engine: e.Name, Endpoint: e.Endpoint, Reason: reason, Serial: cred.Serial(), Err: err}
	}
	if isTransient(err) {
		return err
	}
	var plain tls.RecordHeaderError
	if errors.As(err, &plain) {
		err = hinted(wrongPort(e), errors.New("it does not speak TLS"))
	}
	return untrusted(e, err)
}

// wrongPort returns the hint for an endpoint at which another program answers.
func wrongPort(e wire.Engine) string {
	return fmt.Sprintf("correct the port in the endpoint of engine %s in the issuer's policy: another program than mayfly-sidecar answers there", e.Name)
}

// readVerdict reads the sidecar's line and not one byte more: the bytes after the
// line are the engine's.
func readVerdict(conn net.Conn) (reason string, err error) {
	line := make([]byte, 0, wire.MaxVerdictBytes)
	var b [1]byte
	for len(line) < wire.MaxVerdictBytes {
		n, err := conn.Read(b[:])
		if n == 0 {
			if err == nil {
				continue
			}
			return "", err
		}
		line = append(line, b[0])
		if b[0] == '\n' {
			return wire.ParseVerdict(string(line))
		}
	}
	return wire.ParseVerdict(string(line))
}
