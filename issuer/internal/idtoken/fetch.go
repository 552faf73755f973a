package idtoken

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
)

// Bounds on fetching a key set.
const (
	fetchTimeout  = 10 * time.Second // discovery and keys together
	dialTimeout   = 5 * time.Second
	maxDocument   = 512 << 10 // a discovery document or a key set
	maxRedirects  = 3
	maxKeys       = 100
	minRSABits    = 2048
	maxRSABits    = 8192 // the cost of verifying grows with the square of it
	maxErrorBytes = 256
)

// httpFetcher fetches a provider's keys over HTTP.
type httpFetcher struct {
	provider Provider
	client   *http.Client
}

func newFetcher(p Provider, roots *x509.CertPool) *httpFetcher {
	return &httpFetcher{provider: p, client: &http.Client{
		Transport:     newGuarded(p, roots),
		Timeout:       fetchTimeout,
		CheckRedirect: sameHost,
	}}
}

func (f *httpFetcher) close() { f.client.CloseIdleConnections() }

// fetch reads the discovery document, unless jwks_uri is pinned, and the keys. It
// closes its connections: the next fetch may be minutes later, when a router has
// dropped them.
func (f *httpFetcher) fetch(ctx context.Context) (keys, error) {
	defer f.close()
	uri, err := f.keysURI(ctx)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		return nil, fmt.Errorf("fetch keys: %w", err)
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fetch keys: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetch keys: status %d", resp.StatusCode)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("fetch keys: %w", err)
	}
	got, err := parseKeys(body)
	if err != nil {
		return nil, fmt.Errorf("fetch keys: %w", err)
	}
	return got, nil
}

func (f *httpFetcher) keysURI(ctx context.Context) (string, error) {
	if f.provider.JWKSURI != "" {
		return f.provider.JWKSURI, nil
	}
	// NewProvider refuses a document that names another issuer.
	p, err := oidc.NewProvider(oidc.ClientContext(ctx, f.client), f.provider.Issuer)
	if err != nil {
		return "", fmt.Errorf("discovery: %w", clipped(err))
	}
	var doc struct {
		JWKSURI string `json:"jwks_uri"`
	}
	if err := p.Claims(&doc); err != nil {
		return "", fmt.Errorf("discovery: %w", clipped(err))
	}
	if _, err := f.provider.parseURL(doc.JWKSURI); err != nil {
		return "", fmt.Errorf("discovery: jwks_uri: %w", err)
	}
	return doc.JWKSURI, nil
}

// clipped truncates an error of go-oidc, which holds the whole body of the response,
// and escapes control characters.
func clipped(err error) error {
	s := err.Error()
	if len(s) > maxErrorBytes {
		s = s[:maxErrorBytes] + "..."
	}
	return fmt.Errorf("%q", s)
}

// parseKeys parses a JWK set (RFC 7517 section 5). It leaves out keys of other types
// and uses, weak keys and private keys. Of two keys with the same name, the first
// counts. A set may be empty: its provider has no keys.
func parseKeys(data []byte) (keys, error) {
	var set struct {
		Keys *[]json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, errors.New("not a JWK set")
	}
	if set.Keys == nil {
		return nil, errors.New("a JWK set without keys")
	}
	if len(*set.Keys) > maxKeys {
		return nil, fmt.Errorf("a JWK set of more than %d keys", maxKeys)
	}
	out := keys{}
	for i, raw := range *set.Keys {
		var jwk jose.JSONWebKey
		if json.Unmarshal(raw, &jwk) != nil || !jwk.IsPublic() || !jwk.Valid() {
			continue
		}
		alg := algorithmOf(jwk.Key)
		if alg == "" || (jwk.Use != "" && jwk.Use != "sig") || (jwk.Algorithm != "" && jwk.Algorithm != alg) {
			continue
		}
		name := keyName{jwk.KeyID, alg}
		if name.kid == "" {
			name.kid = fmt.Sprintf("\x00%d", i) // only for tokens without kid
		}
		if _, ok := out[name]; !ok {
			out[name] = jwk.Key
		}
	}
	return out, nil
}

// algorithmOf returns the one algorithm that a key is used for, or "".
func algorithmOf(key crypto.PublicKey) string {
	switch key := key.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits >= minRSABits && bits <= maxRSABits && key.E >= 3 && key.E&1 == 1 {
			return RS256
		}
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P256() {
			return ES256
		}
	case ed25519.PublicKey:
		if len(key) == ed25519.PublicKeySize {
			return EdDSA
		}
	}
	return ""
}

// sameHost follows only redirects to the same scheme and host. Another host could
// replace the provider's keys.
func sameHost(req *http.Request, via []*http.Request) error {
	first := via[0].URL
	if req.URL.Scheme != first.Scheme || req.URL.Host != first.Host || req.URL.User != nil {
		return errors.New("redirected to another host")
	}
	if len(via) > maxRedirects {
		return errors.New("redirected too often")
	}
	return nil
}

// guarded is the transport. It requires https; where allowed, it accepts http on
// loopback. It checks addresses at the dial, after name resolution, so that a changed
// DNS answer cannot bypass the check. It bounds bodies. It uses no proxy, because a
// proxy would resolve and dial itself.
type guarded struct {
	provider   Provider
	tls, plain *http.Transport
}

func newGuarded(p Provider, roots *x509.CertPool) *guarded {
	transport := func(allowed func(netip.Addr) error) *http.Transport {
		dialer := &net.Dialer{Timeout: dialTimeout, Control: control(allowed)}
		return &http.Transport{
			DialContext:            dialer.DialContext,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
			TLSHandshakeTimeout:    dialTimeout,
			ResponseHeaderTimeout:  dialTimeout,
			IdleConnTimeout:        dialTimeout,
			MaxResponseHeaderBytes: 64 << 10,
			MaxConnsPerHost:        4,
			ForceAttemptHTTP2:      true,
		}
	}
	return &guarded{provider: p,
		tls: transport(func(a netip.Addr) error {
			if p.UnsafeAllowPrivate || isPublic(a) {
				return nil
			}
			return fmt.Errorf("%v is not a public address (unsafe_allow_private: true allows it)", a)
		}),
		plain: transport(func(a netip.Addr) error {
			if a.IsLoopback() {
				return nil
			}
			return fmt.Errorf("%v is not a loopback address, and the URL is http", a)
		}),
	}
}

// RoundTrip implements http.RoundTripper.
func (g *guarded) RoundTrip(req *http.Request) (*http.Response, error) {
	t := g.tls
	if req.URL.Scheme != "https" {
		if req.URL.Scheme != "http" || !g.provider.UnsafeHTTP || !isLoopbackHost(req.URL.Hostname()) {
			return nil, errors.New("only https is fetched")
		}
		t = g.plain
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		t.CloseIdleConnections() // the next request must not use a broken connection
		return nil, err
	}
	resp.Body = &cappedBody{ReadCloser: resp.Body, left: maxDocument}
	return resp, nil
}

// CloseIdleConnections closes idle connections for http.Client.
func (g *guarded) CloseIdleConnections() {
	g.tls.CloseIdleConnections()
	g.plain.CloseIdleConnections()
}

// cappedBody returns an error, not io.EOF, past its cap, because a document that is
// cut off must not be used.
type cappedBody struct {
	io.ReadCloser
	left int
}

func (b *cappedBody) Read(p []byte) (int, error) {
	if len(p) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.ReadCloser.Read(p)
	if n > b.left {
		return 0, fmt.Errorf("the answer is larger than %d bytes", maxDocument)
	}
	b.left -= n
	return n, err
}

// control checks the dialled address, after name resolution.
func control(allowed func(netip.Addr) error) func(network, address string, _ syscall.RawConn) error {
	return func(_, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("dial %q: %w", address, err)
		}
		return allowed(ap.Addr().Unmap().WithZone(""))
	}
}

// special holds the blocks of the IANA special-purpose registries that netip has no
// predicate for, and those that embed an IPv4 address.
var special = func() (out []netip.Prefix) {
	for _, s := range []string{
		"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15",
		"198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
		"::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16",
		"3fff::/20", "5f00::/16", "fec0::/10",
	} {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}()

func isPublic(a netip.Addr) bool {
	if !a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() {
		return false
	}
	for _, p := range special {
		if p.Contains(a) {
			return false
		}
	}
	return true
}
