package client

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// A router that forgets a flow ends no connection. A poll fails within 15 s, over
// HTTP/2 and HTTP/1.1, and later calls use another connection. The cases wait
// concurrently.
func TestLostFlow(t *testing.T) {
	t.Parallel()
	var cases sync.WaitGroup
	for _, h2 := range []bool{true, false} {
		issuer, path, polls := lossyIssuer(t, h2)
		cases.Go(func() {
			ended := make(chan error, 1)
			go func() {
				_, err := issuer.WaitCRL(t.Context(), 1)
				ended <- err
			}()
			<-polls
			path.Lose()
			began := time.Now()
			err := <-ended
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("HTTP/2 %v: the poll noticed after %v, want at most 15s", h2, took)
			}
			var unreachable *IssuerUnreachableError
			if !errors.As(err, &unreachable) || unreachable.Final {
				t.Errorf("HTTP/2 %v: the poll ended with %v, want an error that may pass", h2, err)
			}
			began = time.Now()
			if _, err := issuer.Info(t.Context()); err != nil || time.Since(began) > 2*time.Second {
				t.Errorf("HTTP/2 %v: the call after the poll: %v, %v", h2, err, time.Since(began))
			}
		})
		other, lost, _ := lossyIssuer(t, h2)
		if _, err := other.Info(t.Context()); err != nil {
			t.Fatal(err)
		}
		lost.Lose()
		cases.Go(func() {
			began := time.Now()
			if _, err := other.Info(t.Context()); err != nil || time.Since(began) > 15*time.Second {
				t.Errorf("HTTP/2 %v: a call on a connection that was lost while idle: %v, %v", h2, err, time.Since(began))
			}
		})
	}
	cases.Wait()
}

// lossyIssuer returns an issuer with a path that can be lost. polls receives a value
// for each poll that has arrived.
func lossyIssuer(t *testing.T, h2 bool) (issuer *Issuer, path *clienttest.Path, polls chan struct{}) {
	t.Helper()
	polls = make(chan struct{}, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.PathInfo, func(w http.ResponseWriter, r *http.Request) {
		if (r.ProtoMajor == 2) != h2 {
			t.Errorf("called by %s", r.Proto)
		}
		_ = json.NewEncoder(w).Encode(wire.Info{TrustDomain: testDomain})
	})
	mux.HandleFunc("GET "+wire.PathCRLWait, func(_ http.ResponseWriter, r *http.Request) {
		polls <- struct{}{}
		<-r.Context().Done()
	})
	srv := httptest.NewUnstartedServer(mux)
	srv.EnableHTTP2 = h2
	srv.StartTLS()
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	path = clienttest.NewPath(t, srv.Listener.Addr().String())
	caFile := filepath.Join(t.TempDir(), "ca.crt")
	pemCert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(caFile, pemCert, 0o600); err != nil {
		t.Fatal(err)
	}
	issuer, err := NewIssuer("https://"+path.Addr, caFile, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(issuer.CloseIdleConnections)
	return issuer, path, polls
}
