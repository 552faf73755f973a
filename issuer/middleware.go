package issuer

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/httprate"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// requestInfo is what the access log tells of one request. It is written by
// the request's own goroutine alone.
type requestInfo struct {
	id       string
	address  string
	route    string // the page's; the API's are known to its router
	identity string // verified: SPIFFE ID or provider/subject
	rule     string
	serial   string
	problem  string
	err      error
}

type requestInfoKey struct{}

// infoOf returns the request's info, and an empty one outside of a request.
func infoOf(ctx context.Context) *requestInfo {
	if i, ok := ctx.Value(requestInfoKey{}).(*requestInfo); ok {
		return i
	}
	return &requestInfo{}
}

// recorder remembers the status and the size of an answer.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(b)
	r.bytes += int64(n)
	return n, err
}

// Unwrap serves http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// observe gives each request an id, survives a panic, and writes one line of
// access log. Neither tokens nor query strings enter it.
func (s *Server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var id [8]byte
		_, _ = rand.Read(id[:]) // never fails: crypto/rand
		info := &requestInfo{id: hex.EncodeToString(id[:]), address: s.addresses.read(r)}
		rec := &recorder{ResponseWriter: w}
		h := w.Header()
		h.Set("X-Request-Id", info.id)
		h.Set("X-Content-Type-Options", "nosniff")
		if r.ProtoMajor < 2 && s.stopping() {
			h.Set("Connection", "close") // see idleGrace
		}
		start := time.Now()
		r = r.WithContext(context.WithValue(r.Context(), requestInfoKey{}, info))
		defer func() {
			if v := recover(); v != nil && v != http.ErrAbortHandler {
				info.err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
				info.problem = wire.ProblemInternal
				if rec.status == 0 {
					writeProblem(rec, problemOf(info.err, info.id))
				}
			} else if v != nil {
				panic(v)
			}
			s.accessLog(r, rec, info, time.Since(start))
		}()
		next.ServeHTTP(rec, r)
	})
}

// noRoute stands for every path that nothing answers.
const noRoute = "none"

func (s *Server) accessLog(r *http.Request, rec *recorder, info *requestInfo, took time.Duration) {
	route := noRoute
	if rc := chi.RouteContext(r.Context()); rc != nil && rc.RoutePattern() != "" {
		route = rc.RoutePattern()
	} else if info.route != "" {
		route = info.route
	}
	status := rec.status
	if status == 0 {
		status = http.StatusOK
	}
	s.metrics.request(route, status, took)
	level := slog.LevelInfo
	switch {
	case status >= 500:
		level = slog.LevelError
	case route == wire.PathHealth || route == wire.PathReady:
		level = slog.LevelDebug
	}
	if !s.logger.Enabled(r.Context(), level) {
		return
	}
	attrs := make([]slog.Attr, 0, 12)
	attrs = append(attrs, slog.String("id", info.id), slog.String("method", r.Method), slog.String("route", route),
		slog.Int("status", status), slog.Duration("took", took.Round(time.Microsecond)), slog.String("ip", info.address))
	for _, a := range []struct{ key, value string }{{"identity", info.identity}, {"rule", info.rule}, {"serial", info.serial}, {"problem", info.problem}} {
		if a.value != "" {
			attrs = append(attrs, slog.String(a.key, a.value))
		}
	}
	if info.err != nil {
		attrs = append(attrs, slog.String("err", info.err.Error()))
	}
	s.logger.LogAttrs(r.Context(), level, "request", attrs...)
}

// handle is the boundary: it turns a handler's error into a problem and notes
// it for the log, once.
func (s *Server) handle(h handlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := h(w, r)
		if err == nil {
			return
		}
		info := infoOf(r.Context())
		info.err = err
		if clientGone(r.Context(), err) {
			info.problem = "client-gone"
			return
		}
		p := problemOf(err, info.id)
		info.problem = p.Name()
		s.metrics.refused(p.Name())
		if rec, ok := w.(*recorder); ok && rec.status != 0 {
			return // the answer has begun; the log tells
		}
		writeProblem(w, p)
	}
}

// limitSize bounds every request's header, exactly, and its body. The
// http.Server reads up to 4 KiB more of a header than it is told to.
func (s *Server) limitSize(next http.Handler) http.Handler {
	return s.handle(func(w http.ResponseWriter, r *http.Request) error {
		if headerBytes(r) > wire.MaxHeaderBytes {
			return &Error{Name: wire.ProblemTooLarge, Detail: fmt.Sprintf("the header is larger than %d bytes", wire.MaxHeaderBytes)}
		}
		if r.Body != nil && r.Body != http.NoBody {
			r.Body = http.MaxBytesReader(w, r.Body, wire.MaxBodyBytes)
		}
		next.ServeHTTP(w, r)
		return nil
	})
}

// headerBytes is the size of a request's header as HTTP/1.1 writes it.
func headerBytes(r *http.Request) int {
	n := len(r.Method) + len(" ") + len(r.RequestURI) + len(" HTTP/1.1\r\n") + len("Host: \r\n") + len(r.Host)
	for name, values := range r.Header {
		for _, v := range values {
			n += len(name) + len(": ") + len(v) + len("\r\n")
		}
	}
	return n
}

// limitAddress bounds the requests of one address, before anything is read.
func (s *Server) limitAddress(next http.Handler) http.Handler {
	if s.perIP == nil {
		return next
	}
	return s.handle(func(w http.ResponseWriter, r *http.Request) error {
		if err := s.perIP.take(w, r, httprate.CanonicalizeIP(infoOf(r.Context()).address)); err != nil {
			return err
		}
		next.ServeHTTP(w, r)
		return nil
	})
}

// rateWindow is the unit of RateConfig, and what Retry-After says.
const rateWindow = 10 * time.Second

// limiter bounds the requests of one key. Nil lets everything pass.
type limiter struct{ l *httprate.RateLimiter }

func newLimiter(perWindow int) *limiter {
	if perWindow <= 0 {
		return nil
	}
	return &limiter{l: httprate.NewRateLimiter(perWindow, rateWindow, httprate.WithResponseHeaders(httprate.ResponseHeaders{}))}
}

// take counts one request of key, or refuses it.
func (l *limiter) take(w http.ResponseWriter, r *http.Request, key string) error {
	if l == nil || !l.l.OnLimit(w, r, key) {
		return nil
	}
	return &Error{
		Name: wire.ProblemRateLimited, RetryAfter: int(rateWindow.Seconds()),
		Detail: "too many requests; wait as Retry-After says", Err: errors.New("rate limit of " + Printable(key)),
	}
}

// addressReader finds the client's address.
type addressReader struct {
	header  string // canonical; "" uses the peer's own
	trusted []netip.Prefix
}

// read returns the client's address. A header that is absent, from an untrusted
// peer, or no address, leaves the peer's.
func (a addressReader) read(r *http.Request) string {
	peer := r.RemoteAddr
	if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		peer = ap.Addr().Unmap().String()
		if a.header == "" || !a.trusts(ap.Addr().Unmap()) {
			return peer
		}
	} else if a.header == "" || len(a.trusted) > 0 {
		return peer
	}
	values := r.Header[a.header]
	if len(values) == 0 {
		return peer
	}
	// The edge appends: what stands before the last comma is the client's word.
	last := values[len(values)-1]
	if i := strings.LastIndexByte(last, ','); i >= 0 {
		last = last[i+1:]
	}
	addr, err := netip.ParseAddr(strings.TrimSpace(last))
	if err != nil {
		return peer
	}
	return addr.Unmap().WithZone("").String()
}

func (a addressReader) trusts(peer netip.Addr) bool {
	return len(a.trusted) == 0 || slices.ContainsFunc(a.trusted, func(p netip.Prefix) bool { return p.Contains(peer) })
}
