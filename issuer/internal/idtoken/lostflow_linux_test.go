package idtoken_test

import (
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/issuer/idtokentest"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

// TestLostFlow checks that a fetch of keys does not reuse the previous connection,
// which a router may have dropped.
func TestLostFlow(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.OIDC})
	path := clienttest.NewPath(t, p.URL()[len("http://"):])
	url := "http://" + path.Addr
	p.SetFaults(idtokentest.Faults{Issuer: url})
	trusted := trust(p, idtoken.OIDC)
	trusted.Issuer = url
	v := verifier(t, trusted)
	if _, err := v.Verify(t.Context(), mint(t, p, forUs(claims{"iss": url})), audience); err != nil {
		t.Fatal(err)
	}
	path.Lose()
	if err := p.Rotate(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := v.Verify(t.Context(), mint(t, p, forUs(claims{"iss": url})), audience); err != nil || time.Since(began) > 2*time.Second {
		t.Errorf("by a new key: %v after %v", err, time.Since(began))
	}
}
