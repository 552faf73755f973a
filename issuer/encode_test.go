package issuer

import (
	"crypto/x509"
	"encoding/json"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// TestWriteIssued checks that the response equals the output of encoding/json.
func TestWriteIssued(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 47, 48, 49, 96, 700} {
		leaf := &x509.Certificate{Raw: make([]byte, size)}
		known := &x509.Certificate{Raw: []byte("intermediate"), SubjectKeyId: []byte("id")}
		unknown := &x509.Certificate{Raw: []byte("another"), SubjectKeyId: []byte("other")}
		s := &Server{}
		var err error
		if s.texts, err = newTexts("bundle\n<&>\u2028", []*x509.Certificate{known}); err != nil {
			t.Fatal(err)
		}
		now := time.Now().UTC()
		for number, crl := range []string{"first\n", "second \"quoted\"\n"} {
			head := wire.IssueResponse{Serial: "ab", NotBefore: now, NotAfter: now, RenewAfter: now, Identity: "spiffe://td/<x>", Rule: "r", Engines: []wire.Engine{{Name: "e"}}}
			w := httptest.NewRecorder()
			if err := s.writeIssuedJSON(w, head, []*x509.Certificate{leaf, known, unknown}, &ca.CRLs{Number: int64(number), PEM: []byte(crl)}); err != nil {
				t.Fatal(err)
			}
			var got wire.IssueResponse
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
				t.Fatalf("%v: %s", err, w.Body)
			}
			want := head
			want.Certificate, want.TrustBundle, want.CRL = pemOf(leaf, known, unknown), "bundle\n<&>\u2028", crl
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		}
	}
}
