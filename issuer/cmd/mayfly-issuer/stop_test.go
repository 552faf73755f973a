package main_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-ca/mayfly/ca/catest"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// errStopping ends a client that would need a new connection.
var errStopping = errors.New("the issuer is stopping")

// TestStoppedUnderLoad sends SIGTERM under load, on kept-alive connections. Each
// connection gets a response that closes it. No request is lost that follows a
// response within the second that the shutdown waits. New connections:
// TestGracefulStop.
func TestStoppedUnderLoad(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "")
	var mu sync.Mutex
	held := map[string]bool{}
	for range 5 {
		p := a.serve(t)
		var stopping atomic.Bool
		p.client.Transport = &http.Transport{MaxIdleConnsPerHost: 8, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if stopping.Load() {
				return nil, errStopping
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		}}
		answers := make(chan struct{}, 1<<16)
		var clients sync.WaitGroup
		for range 8 {
			clients.Go(func() {
				for last := time.Now(); ; last = time.Now() {
					_, csr := issuertest.Key(t)
					out, err := p.issue(a.GitHubToken(nil), csr)
					if err != nil {
						if paused := time.Since(last); !errors.Is(err, errStopping) && paused < time.Second {
							t.Errorf("lost, %v after the answer before: %v", paused, err)
						}
						return
					}
					mu.Lock()
					held[out.Serial] = true
					mu.Unlock()
					answers <- struct{}{}
				}
			})
		}
		for range 100 {
			select {
			case <-answers:
			case <-time.After(time.Minute):
				t.Fatalf("the issuer is too slow for a load\n%s", p.log)
			}
		}
		stopping.Store(true)
		p.stop(t)
		clients.Wait()
	}
	records := a.records(t)
	for serial := range held {
		if _, ok := records[serial]; !ok {
			t.Errorf("certificate %s is held by a client and not recorded", serial)
		}
	}
	t.Logf("%d certificates over 5 stops", len(held))
}

// TestDatabaseGone is ATTACKS 25: while the database of used tokens is gone, no token
// works, neither a used nor a fresh one. The issuer recovers by itself, and the used
// token is still used.
func TestDatabaseGone(t *testing.T) {
	t.Parallel()
	server := catest.StartPostgres(t)
	url := server.Database(t)
	a := newAuthority(t, url)
	p := a.serve(t)
	used, fresh := a.GitHubToken(nil), a.GitHubToken(nil)
	_, csr := issuertest.Key(t)
	if _, err := p.issue(used, csr); err != nil {
		t.Fatal(err)
	}
	maintain(t, server.Database(t), `ALTER DATABASE t1 ALLOW_CONNECTIONS false`,
		`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 't1'`)
	for name, token := range map[string]string{"used": used, "fresh": fresh} {
		_, other := issuertest.Key(t)
		if _, err := p.issue(token, other); !refused(err, wire.ProblemUnavailable) {
			t.Errorf("%s token without the database: %v", name, err)
		}
	}
	p.becomes(t, http.StatusServiceUnavailable)
	maintain(t, server.Database(t), `ALTER DATABASE t1 ALLOW_CONNECTIONS true`)
	p.becomes(t, http.StatusOK)
	_, other := issuertest.Key(t)
	if _, err := p.issue(used, other); !refused(err, wire.ProblemReplay) {
		t.Errorf("the used token, afterwards: %v", err)
	}
	if _, err := p.issue(fresh, other); err != nil {
		t.Errorf("the fresh token, afterwards: %v", err)
	}
	p.stop(t)
}

// maintain runs statements over another database of the same server.
func maintain(t *testing.T, url string, statements ...string) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.WithoutCancel(t.Context()))
	for _, s := range statements {
		if _, err := c.Exec(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}
