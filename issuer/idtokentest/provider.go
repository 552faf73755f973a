package idtokentest

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

// Options configures a provider. Type is required.
type Options struct {
	Type idtoken.Type
	// Path is the path of the issuer's URL, like /example-org. Empty means none, and
	// for type fly the organisation's name.
	Path string
	// Defaults override the claims that the type's tokens have by default; nil
	// values remove claims. SetDefaults adds to them later.
	Defaults map[string]any
	// ClientID is the only client of type people. Default: mayfly.
	ClientID string
	// RedirectURIs are allowed redirects, in addition to every URL on loopback.
	RedirectURIs []string
	// Algorithm is RS256 (the default), ES256 or EdDSA.
	Algorithm string
	// Lifetime is exp - iat. Default: that of the type's real provider.
	Lifetime time.Duration
	// Listen is the address. Default: 127.0.0.1:0. Loopback only.
	Listen string
	// TLS makes the issuer's URL https. Default: plain http.
	TLS *tls.Config
	// Origin is the scheme and host of the issuer's URL, for a caller whose own
	// listener serves this provider under another name. Default: the listener's.
	Origin string
}

// Provider is one running provider. Its methods are safe for concurrent use.
type Provider struct {
	options Options
	origin  string // scheme://host:port
	issuer  string
	host    string
	handler http.Handler
	server  *http.Server
	done    chan struct{} // closed when the server has ended

	keys   keyring
	job    *Job
	people people

	discoveries, keyFetches atomic.Int64

	mu       sync.Mutex
	defaults map[string]any
	faults   Faults
	jobs     map[string]*Job // by number in the path
	minted   int64
}

// New starts a provider. The caller closes it.
func New(o Options) (*Provider, error) {
	if o.Type.MaxLifetime() == 0 {
		return nil, fmt.Errorf("idtokentest: unknown type %q", string(o.Type))
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if o.ClientID == "" {
		o.ClientID = "mayfly"
	}
	if o.Path == "" && o.Type == idtoken.Fly {
		o.Path = "/" + flyOrganization
	}
	if o.Path = strings.TrimRight(o.Path, "/"); o.Path != "" && o.Path[0] != '/' {
		return nil, errors.New("idtokentest: path begins with a slash")
	}
	if o.Lifetime == 0 {
		o.Lifetime = lifetimeOf(o.Type)
	}
	p := &Provider{options: o, defaults: map[string]any{}, jobs: map[string]*Job{}, done: make(chan struct{})}
	p.keys.algorithm = o.Algorithm
	if err := p.keys.rotate(); err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("idtokentest: %w", err)
	}
	if addr, ok := ln.Addr().(*net.TCPAddr); !ok || !addr.IP.IsLoopback() {
		_ = ln.Close()
		return nil, fmt.Errorf("idtokentest: %s is not on loopback", o.Listen)
	}
	p.start(ln)
	return p, nil
}

func (p *Provider) start(ln net.Listener) {
	o := p.options
	p.host = ln.Addr().String()
	p.origin = "http://" + p.host
	if o.TLS != nil {
		p.origin = "https://" + p.host
	}
	if o.Origin != "" {
		p.origin = o.Origin
	}
	p.issuer = p.origin + o.Path
	p.people.init()
	p.SetDefaults(o.Defaults)
	if o.Type == idtoken.GitHub {
		p.job = p.NewJob(nil)
	}
	p.handler = p.routes()
	p.server = &http.Server{
		Handler:           p,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          log.New(io.Discard, "", 0), // ignore clients that disconnect
	}
	go func() {
		defer close(p.done)
		if o.TLS != nil {
			p.server.TLSConfig = o.TLS.Clone()
			_ = p.server.ServeTLS(ln, "", "")
			return
		}
		_ = p.server.Serve(ln)
	}()
}

func (p *Provider) routes() http.Handler {
	mux := http.NewServeMux()
	base := p.options.Path
	mux.HandleFunc("GET "+base+"/.well-known/openid-configuration", p.serveDiscovery)
	mux.HandleFunc("GET "+base+pathKeys, p.serveKeys)
	mux.HandleFunc("POST "+base+"/mint", p.serveMint)
	switch p.options.Type {
	case idtoken.GitHub:
		mux.HandleFunc("GET /runner/{job}/idtoken", p.serveRunner)
	case idtoken.People:
		p.peopleRoutes(mux, base)
	}
	return mux
}

// URL returns the issuer, which is iss of every token.
func (p *Provider) URL() string { return p.issuer }

// Addr returns host:port of the listener.
func (p *Provider) Addr() string { return p.host }

// ClientID returns the client id of type people.
func (p *Provider) ClientID() string { return p.options.ClientID }

// ServeHTTP implements http.Handler, for any listener.
func (p *Provider) ServeHTTP(w http.ResponseWriter, r *http.Request) { p.handler.ServeHTTP(w, r) }

// Close ends the server and all its connections.
func (p *Provider) Close() {
	_ = p.server.Close()
	<-p.done
}

// Rotate makes a new signing key. Older keys stay published.
func (p *Provider) Rotate() error { return p.keys.rotate() }

// Retire stops publishing all keys but the signing one.
func (p *Provider) Retire() { p.keys.retire() }

// Fetches returns how many requests for discovery and for keys were answered.
func (p *Provider) Fetches() (discovery, keys int64) {
	return p.discoveries.Load(), p.keyFetches.Load()
}
