package issuer_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// BenchmarkIssue measures POST /v1/certificates from the request in memory to the
// response's last byte: verification, decision, a durable record in SQLite, signature
// and encoding, with 64 concurrent callers. It leaves out HTTP transport and TLS.
// Tokens are fresh; their minting is not timed.
func BenchmarkIssue(b *testing.B) {
	i := issuertest.Start(b, issuertest.Options{Config: func(c *issuer.Config) { c.Rate = issuer.RateConfig{} }})
	_, csr := issuertest.Key(b)
	body := `{"csr":"` + strings.ReplaceAll(csr, "\n", `\n`) + `"}`
	tokens := make([]string, b.N)
	for n := range tokens {
		tokens[n] = i.GitHubToken(nil)
	}
	h := i.Service.Server().Handler()
	var next atomic.Int64
	b.ReportAllocs()
	b.SetParallelism(64)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r := httptest.NewRequest(http.MethodPost, wire.PathCertificates, strings.NewReader(body))
			r.Header.Set("Authorization", "Bearer "+tokens[next.Add(1)-1])
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != http.StatusCreated {
				b.Fatalf("%d: %s", w.Code, w.Body)
			}
		}
	})
}
