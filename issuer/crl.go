package issuer

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/httprate"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// crl handles GET /v1/crl: the CRL of the current intermediate, in DER.
func (s *Server) crl(w http.ResponseWriter, r *http.Request) error {
	crls, err := s.authority.CRLs(r.Context())
	if err != nil {
		return unavailable("read crl", err)
	}
	writeCRL(w, r, crls.Number, crls.Current)
	return nil
}

// crlOf handles GET /v1/crl/{aki}, the distribution point in a leaf.
func (s *Server) crlOf(w http.ResponseWriter, r *http.Request) error {
	crls, err := s.authority.CRLs(r.Context())
	if err != nil {
		return unavailable("read crl", err)
	}
	der, ok := crls.ByAKI[chi.URLParam(r, "aki")]
	if !ok {
		return &Error{Name: wire.ProblemNotFound, Detail: "no intermediate in use has this key id"}
	}
	writeCRL(w, r, crls.Number, der)
	return nil
}

func writeCRL(w http.ResponseWriter, r *http.Request, number int64, der []byte) {
	etag := `"` + strconv.FormatInt(number, 10) + `"`
	h := w.Header()
	h.Set("ETag", etag)
	h.Set("Cache-Control", "no-cache") // caches must revalidate
	if sameTag(r.Header.Values("If-None-Match"), etag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Type", "application/pkix-crl")
	h.Set("Content-Length", strconv.Itoa(len(der)))
	_, _ = w.Write(der)
}

// sameTag compares ETags weakly, as RFC 9110 section 13.1.2 requires.
func sameTag(headers []string, etag string) bool {
	for _, h := range headers {
		for t := range strings.SplitSeq(h, ",") {
			if t = strings.TrimPrefix(strings.TrimSpace(t), "W/"); t == etag || t == "*" {
				return true
			}
		}
	}
	return false
}

// crlWait handles GET /v1/crl/wait?after=N.
func (s *Server) crlWait(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r.URL.Query())
	after := q.int("after", 0, 0, 1<<62)
	if err := q.done(); err != nil {
		return err
	}
	crls, err := s.authority.CRLs(r.Context())
	if err != nil {
		return unavailable("read crl", err)
	}
	// Requests over the limit of waiters are answered at once. The client then repeats
	// its request, and no engine is left without a fresh CRL.
	address := httprate.CanonicalizeIP(infoOf(r.Context()).address) // IPv6: one /64
	if crls.Number == after && s.waiters.enter(address) {
		defer s.waiters.leave(address)
		ctx, cancel := s.holdContext(r.Context(), wire.CRLWait)
		defer cancel()
		crls, err = s.authority.WaitCRLs(ctx, after)
		if err != nil && ctx.Err() == nil {
			return unavailable("wait for crl", err)
		}
	}
	if crls == nil || err != nil {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	h := w.Header()
	h.Set("Content-Type", "application/x-pem-file")
	h.Set("Cache-Control", "no-store")
	h.Set("ETag", `"`+strconv.FormatInt(crls.Number, 10)+`"`)
	_, _ = w.Write(crls.PEM)
	return nil
}

// holdContext returns a context that ends after d, or when the shutdown begins.
func (s *Server) holdContext(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, d)
	stop := make(chan struct{})
	s.heldTotal.Add(1)
	go func() {
		select {
		case <-s.draining:
			cancel()
		case <-ctx.Done():
		}
		close(stop)
	}()
	return ctx, func() {
		cancel()
		<-stop
		s.heldTotal.Add(-1)
	}
}

// Bounds on waiting requests, which need no token.
const (
	maxWaiters           = 8192
	maxWaitersPerAddress = 512
)

// waiters counts waiting requests, in total and by address.
type waiters struct {
	mu        sync.Mutex
	total     int
	byAddress map[string]int
}

func (w *waiters) enter(address string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.total >= maxWaiters || w.byAddress[address] >= maxWaitersPerAddress {
		return false
	}
	w.total++
	w.byAddress[address]++
	return true
}

func (w *waiters) leave(address string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.total--
	if w.byAddress[address]--; w.byAddress[address] == 0 {
		delete(w.byAddress, address)
	}
}

// bundles is the trust bundle in each of its formats, encoded once.
type bundles struct {
	pem    string // the roots
	spiffe []byte // SPIFFE trust bundle: JWKS with x5c
}

// refreshHint is how often a SPIFFE peer should fetch the bundle.
const refreshHint = time.Hour

func newBundles(td spiffeid.TrustDomain, roots []*x509.Certificate) (bundles, error) {
	if len(roots) == 0 {
		return bundles{}, fmt.Errorf("trust bundle is empty")
	}
	b := spiffebundle.FromX509Authorities(td, roots)
	b.SetRefreshHint(refreshHint)
	// Roots change only with a new file and a restart. The start of the newest root
	// grows with each such change and is the same on all replicas.
	var newest int64
	for _, c := range roots {
		newest = max(newest, c.NotBefore.Unix())
	}
	b.SetSequenceNumber(uint64(newest))
	doc, err := b.Marshal()
	if err != nil {
		return bundles{}, fmt.Errorf("encode trust bundle: %w", err)
	}
	return bundles{pem: pemOf(roots...), spiffe: doc}, nil
}

// trustBundle handles GET /v1/trust-bundle.
func (s *Server) trustBundle(w http.ResponseWriter, r *http.Request) error {
	h := w.Header()
	h.Set("Vary", "Accept")
	h.Set("Cache-Control", "public, max-age=300")
	if strings.Contains(r.Header.Get("Accept"), "application/json") {
		h.Set("Content-Type", "application/json")
		_, _ = w.Write(s.bundle.spiffe)
		return nil
	}
	h.Set("Content-Type", "application/x-pem-file")
	_, _ = w.Write([]byte(s.bundle.pem))
	return nil
}
