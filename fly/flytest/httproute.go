package flytest

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"time"
)

// serveHTTP is the http handler. It forwards requests in plain HTTP/1.1 with the
// client's address in Fly-Client-IP. Each request counts as load while it lasts.
func (r *route) serveHTTP(ctx context.Context, ln net.Listener) {
	secure := slices.Contains(r.port.Handlers, "tls")
	scheme := "http"
	server := &http.Server{
		ReadHeaderTimeout: edgeHandshake, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(r.proxy.log.Handler(), slog.LevelDebug),
	}
	if secure {
		scheme = "https"
		cfg := r.proxy.edge.config(r.port.TLSOptions)
		cfg.NextProtos = []string{"h2", "http/1.1"}
		server.TLSConfig = cfg
		ln = tls.NewListener(ln, cfg)
	}
	r.transport = &http.Transport{
		DisableKeepAlives: true, DisableCompression: true, ResponseHeaderTimeout: 2 * time.Minute,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, r.proxy.cfg.HoldTimeout)
			defer cancel()
			conn, err := r.wake(ctx)
			if err != nil {
				return nil, err // a nil *net.TCPConn is not a nil net.Conn
			}
			return conn, nil
		},
	}
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if r.port.ForceHTTPS && !secure {
			http.Redirect(w, req, "https://"+req.Host+req.URL.RequestURI(), http.StatusMovedPermanently)
			return
		}
		r.forward(w, req, scheme)
	})
	defer context.AfterFunc(ctx, func() { server.Close() })()
	_ = server.Serve(ln)
}

// forward wakes the machine and forwards the request.
func (r *route) forward(w http.ResponseWriter, req *http.Request, scheme string) {
	p := r.proxy
	if !p.pause.wait(req.Context()) {
		return
	}
	p.count(1)
	defer p.count(-1)
	if err := r.room.enter(req.Context()); err != nil {
		p.dropped.Add(1)
		http.Error(w, "no room", http.StatusServiceUnavailable)
		return
	}
	defer r.room.leave()
	p.accepted.Add(1)
	backend := &url.URL{Scheme: "http", Host: p.cfg.Machine.Address(r.service.InternalPort)}
	(&httputil.ReverseProxy{
		Rewrite: func(out *httputil.ProxyRequest) {
			out.SetURL(backend)
			out.Out.Host = out.In.Host
			client, _, _ := net.SplitHostPort(out.In.RemoteAddr)
			out.Out.Header.Set("Fly-Client-IP", client)
			out.Out.Header.Set("Fly-Forwarded-Proto", scheme)
			out.SetXForwarded()
			out.Out.Header.Set("X-Forwarded-Proto", scheme)
		},
		Transport:     r.transport,
		FlushInterval: -1,
		ErrorLog:      slog.NewLogLogger(p.log.Handler(), slog.LevelWarn),
	}).ServeHTTP(w, req)
}
