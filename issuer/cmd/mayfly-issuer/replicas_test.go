package main_test

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/catest"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// TestTwoProcesses checks that two processes over one PostgreSQL behave as one issuer:
// ATTACKS 24, 54, 55, 59.
func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, catest.StartPostgres(t).Database(t))
	both := []*process{a.serve(t), a.serve(t)}
	t.Run("one token, two keys, at once", func(t *testing.T) { oneTokenAtOnce(t, a, both, 200) })
	t.Run("revoked while both issue", func(t *testing.T) { revokedWhileIssuing(t, a, both, 200) })
	for _, p := range both {
		p.stop(t)
	}
	a.run(t, "verify")
}

// oneTokenAtOnce sends each token to both processes at once, with different keys. One
// of them issues, and the other answers that the token was used.
func oneTokenAtOnce(t *testing.T, a *authority, both []*process, rounds int) {
	won := make([]int, len(both))
	for round := range rounds {
		token := a.GitHubToken(map[string]any{"run_id": "once-" + strconv.Itoa(round)})
		errs := make([]error, len(both))
		var wg sync.WaitGroup
		gate := make(chan struct{})
		for n, p := range both {
			_, csr := issuertest.Key(t)
			wg.Go(func() {
				<-gate
				_, errs[n] = p.issue(token, csr)
			})
		}
		close(gate)
		wg.Wait()
		sold := 0
		for n, err := range errs {
			if err == nil {
				sold++
				won[n]++
			} else if !refused(err, wire.ProblemReplay) {
				t.Errorf("the loser got %v", err)
			}
		}
		if sold != 1 {
			t.Fatalf("%d certificates for one token", sold)
		}
	}
	t.Logf("%d tokens, each sold once: %v", rounds, won)
}

// revokedWhileIssuing lets jobs mint at both processes until they are refused, while
// each job is revoked at one process. Afterwards a revoked run gets no certificate,
// and no CRL of either process lacks an earlier revocation.
func revokedWhileIssuing(t *testing.T, a *authority, both []*process, runs int) {
	var wg, watching sync.WaitGroup
	var done atomic.Bool
	watchers := make([]*watcher, len(both))
	for n, p := range both {
		watchers[n] = &watcher{process: p, sets: map[int64][]string{}, at: map[int64]time.Time{}}
		watching.Go(func() { watchers[n].watch(t, &done) })
	}
	revocations := make([]revocation, runs)
	gate := make(chan struct{}, 4)
	for run := range runs {
		gate <- struct{}{}
		wg.Go(func() {
			defer func() { <-gate }()
			revocations[run] = revokeWhileMinting(t, a, both, strconv.Itoa(run))
		})
	}
	wg.Wait()
	newest := slices.MaxFunc(revocations, func(a, b revocation) int { return int(a.number - b.number) }).number
	for _, w := range watchers {
		w.until(t, newest)
	}
	done.Store(true)
	revokeWhileMinting(t, a, both, "the last") // ends the watchers' last wait
	watching.Wait()

	var lags []time.Duration
	checked, held := 0, 0
	for _, r := range revocations {
		held += len(r.held)
		for n, w := range watchers {
			for number, listed := range w.sets {
				if number < r.number {
					continue
				}
				checked++
				for _, serial := range r.held {
					if _, ok := slices.BinarySearch(listed, serial); !ok {
						t.Errorf("CRL %d of process %d lacks %s, revoked by CRL %d", number, n, serial, r.number)
					}
				}
			}
			if n != r.by {
				lags = append(lags, w.heard(r.number).Sub(r.returned))
			}
		}
	}
	slices.Sort(lags)
	t.Logf("%d certificates of %d runs, all of them in each of %d later CRLs; the other process had the CRL p50 %v, p99 %v, at most %v after the revocation returned",
		held, runs, checked, lags[len(lags)/2], lags[len(lags)*99/100], lags[len(lags)-1])
}

// revocation is one revoked run.
type revocation struct {
	by       int      // the process that revoked it
	number   int64    // of the CRL that held the revocation when the call returned
	held     []string // serials of the run's jobs, the revoked one first
	returned time.Time
}

func revokeWhileMinting(t *testing.T, a *authority, both []*process, run string) (r revocation) {
	claims := map[string]any{"run_id": run}
	mint := func(p *process) (string, error) {
		_, csr := issuertest.Key(t)
		out, err := p.issue(a.GitHubToken(claims), csr)
		if err != nil {
			return "", err
		}
		return out.Serial, nil
	}
	first, err := mint(both[rand.IntN(len(both))])
	if err != nil {
		t.Error(err)
		return r
	}
	r.held, r.by = []string{first}, rand.IntN(len(both))
	var mu sync.Mutex
	var minting sync.WaitGroup
	for _, p := range both {
		minting.Go(func() {
			for range 1000 {
				serial, err := mint(p)
				if err != nil {
					if !refused(err, wire.ProblemBlocked) {
						t.Errorf("run %s: %v", run, err)
					}
					return
				}
				mu.Lock()
				r.held = append(r.held, serial)
				mu.Unlock()
			}
			t.Errorf("run %s was never refused", run)
		})
	}
	var out wire.RevokeResponse
	if err := both[r.by].call(http.MethodPost, wire.PathRevocations, a.AdminToken(), wire.RevokeRequest{Serial: first}, &out); err != nil {
		t.Errorf("run %s: %v", run, err)
	}
	r.number, r.returned = out.CRLNumber, time.Now()
	for _, p := range both {
		if _, err := mint(p); !refused(err, wire.ProblemBlocked) {
			t.Errorf("run %s minted after it was revoked: %v", run, err)
		}
	}
	minting.Wait()
	return r
}

// watcher follows crl/wait of one process, as a sidecar does.
type watcher struct {
	*process
	mu   sync.Mutex
	sets map[int64][]string // sorted serials by number
	at   map[int64]time.Time
	last int64
}

// watch collects every CRL until done.
func (w *watcher) watch(t *testing.T, done *atomic.Bool) {
	for number := int64(0); !done.Load(); {
		next, listed, err := w.wait(number)
		if err != nil {
			t.Errorf("crl/wait: %v", err)
			return
		}
		if next < number {
			t.Errorf("CRL %d after %d", next, number)
		}
		w.mu.Lock()
		w.sets[next], w.at[next] = listed, time.Now()
		w.last, number = next, next
		w.mu.Unlock()
	}
}

// until waits until the watcher has a CRL of at least number.
func (w *watcher) until(t *testing.T, number int64) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-tick.C {
		w.mu.Lock()
		last := w.last
		w.mu.Unlock()
		switch {
		case last >= number:
			return
		case time.Now().After(deadline):
			t.Fatalf("CRL %d was never published by the other process", number)
		}
	}
}

// heard returns when the watcher first had a CRL of at least number.
func (w *watcher) heard(number int64) (first time.Time) {
	for n, at := range w.at {
		if n >= number && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	return first
}

// wait requests GET /v1/crl/wait. It returns the number of the newest CRLs and the
// serials in the intermediate's.
func (p *process) wait(after int64) (number int64, listed []string, err error) {
	resp, err := p.client.Get(p.url + wire.PathCRLWait + "?after=" + strconv.FormatInt(after, 10))
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return 0, nil, errors.Join(fmt.Errorf("status %s", resp.Status), err)
	}
	if number, err = strconv.ParseInt(strings.Trim(resp.Header.Get("ETag"), `"`), 10, 64); err != nil {
		return 0, nil, err
	}
	for block, rest := pem.Decode(body); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "X509 CRL" {
			continue
		}
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return 0, nil, err
		}
		if list.Number.Int64() != number {
			continue // the CRL of the root
		}
		for _, e := range list.RevokedCertificateEntries {
			listed = append(listed, fmt.Sprintf("%032x", e.SerialNumber))
		}
		slices.Sort(listed)
		return number, listed, nil
	}
	return 0, nil, fmt.Errorf("no CRL of number %d in the answer", number)
}
