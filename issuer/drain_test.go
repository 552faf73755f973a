package issuer_test

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// TestGracefulStopHTTP2 checks a shutdown on HTTP/2. GOAWAY tells the client which
// requests were accepted, and those are answered. The client may send the others
// elsewhere.
func TestGracefulStopHTTP2(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	var issued atomic.Int64
	var stopping atomic.Bool
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for {
				if _, err := i.Issue(i.GitHubToken(nil)); err != nil {
					if op := (*net.OpError)(nil); !stopping.Load() || !errors.As(err, &op) || op.Op != "dial" {
						t.Errorf("lost, or before the stop: %v", err)
					}
					return
				}
				issued.Add(1)
			}
		})
	}
	eventually(t, "some certificates", func() bool { return issued.Load() > 50 })
	stopping.Store(true)
	if err := i.Stop(); err != nil {
		t.Error(err)
	}
	clients.Wait()
}
