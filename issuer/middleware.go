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

// requestInfo holds one request's data for the access log. Only the goroutine of the
// request writes it.
type requestInfo struct {
	id       string
	address  string
	route    string // of the page; the API's router knows its own
	identity string // verified: SPIFFE ID or provider/subject
	rule     string
	serial   string
	problem  string
	err      error
}

type requestInfoKey struct{}

// infoOf returns the info of the request, or an empty one outside a request.
func infoOf(ctx context.Context) *requestInfo {
	if i, ok := ctx.Value(requestInfoKey{}).(*requestInfo); ok {
		return i
	}
	return &requestInfo{}
}

// recorder records the status and the size of a response.
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

// Unwrap supports http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// observe gives each request an id, recovers from a panic, and writes one line to the
// access log. The log holds no tokens and no query strings.
func (s *Server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var id [8]byte
		_, _ = rand.Read(id[:]) // crypto/rand never fails
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

// noRoute is the route in the log for all paths without a handler.
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

// handle turns the error of a handler into a problem response and keeps the error for
// the access log.
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
			return // the response has begun; the error is only logged
		}
		writeProblem(w, p)
	}
}

// limitSize bounds the header, exactly, and the body of each request. http.Server
// reads up to 4 KiB more of a header than its limit.
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

// headerBytes returns the size of a request's header in HTTP/1.1.
func headerBytes(r *http.Request) int {
	n := len(r.Method) + len(" ") + len(r.RequestURI) + len(" HTTP/1.1\r\n") + len("Host: \r\n") + len(r.Host)
	for name, values := range r.Header {
		for _, v := range values {
			n += len(name) + len(": ") + len(v) + len("\r\n")
		}
	}
	return n
}

// limitAddress bounds the requests of one address, before it reads them.
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

// rateWindow is the period of the rates in RateConfig, and the Retry-After.
const rateWindow = 10 * time.Second

// limiter bounds the requests of one key. A nil limiter has no bound.
type limiter struct{ l *httprate.RateLimiter }

func newLimiter(perWindow int) *limiter {
	if perWindow <= 0 {
		return nil
	}
	return &limiter{l: httprate.NewRateLimiter(perWindow, rateWindow, httprate.WithResponseHeaders(httprate.ResponseHeaders{}))}
}

// take counts one request of key, or returns an error when the limit is reached.
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
	header  string // canonical name; "" means the peer's own address
	trusted []netip.Prefix
}

// read returns the client's address. It is the peer's own address if the header is
// absent, is not an address, or comes from an untrusted peer.
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
	// The proxy appends: the client wrote the part before the last comma.
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
