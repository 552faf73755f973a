package issuer_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/store/postgres/postgrestest"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

func unlimited(c *issuer.Config) { c.Rate = issuer.RateConfig{} }

// Two issuers over one PostgreSQL behave as one: ATTACKS 24, 54 and 55.
func TestReplicasOverPostgreSQL(t *testing.T) {
	t.Parallel()
	a := issuertest.Start(t, issuertest.Options{Store: postgrestest.Start(t).Database(t), Config: unlimited})
	b := a.Replica()
	both := []*issuertest.Issuer{a, b}
	t.Run("one token, two keys, at once", func(t *testing.T) { oneTokenAtOnce(t, both, 200) })
	t.Run("revoked while issuing", func(t *testing.T) { revokedWhileIssuing(t, both, 40) })
}

func oneTokenAtOnce(t *testing.T, both []*issuertest.Issuer, rounds int) {
	for range rounds {
		token := both[0].GitHubToken(nil)
		errs := make(chan error, len(both))
		for _, i := range both {
			go func() {
				_, err := i.Issue(token)
				errs <- err
			}()
		}
		won := 0
		for range both {
			err := <-errs
			if p := (*wire.Problem)(nil); err == nil {
				won++
			} else if !errors.As(err, &p) || p.Name() != wire.ProblemReplay {
				t.Errorf("loser got %v", err)
			}
		}
		if won != 1 {
			t.Fatalf("%d certificates for one token", won)
		}
	}
}

// revokedWhileIssuing has each run mint at both issuers until it is refused,
// while it is revoked at one of them. A certificate is refused, or in the list;
// never between.
func revokedWhileIssuing(t *testing.T, both []*issuertest.Issuer, runs int) {
	var (
		mu      sync.Mutex
		serials []string
		newest  int64
		wg      sync.WaitGroup
	)
	gate := make(chan struct{}, 4)
	for run := range runs {
		gate <- struct{}{}
		wg.Go(func() {
			defer func() { <-gate }()
			job := map[string]any{"run_id": strconv.Itoa(run)}
			first, err := both[0].Issue(both[0].GitHubToken(job))
			if err != nil {
				t.Error(err)
				return
			}
			held := []string{first.Serial}
			var minting sync.WaitGroup
			for _, i := range both {
				minting.Go(func() {
					for range 200 {
						out, err := i.Issue(i.GitHubToken(job))
						if err != nil {
							if p := (*wire.Problem)(nil); !errors.As(err, &p) || p.Name() != wire.ProblemBlocked {
								t.Errorf("run %d: %v", run, err)
							}
							return
						}
						mu.Lock()
						held = append(held, out.Serial)
						mu.Unlock()
					}
					t.Errorf("run %d was never refused", run)
				})
			}
			res, err := both[rand.IntN(len(both))].Revoke(wire.RevokeRequest{Serial: first.Serial})
			if err != nil {
				t.Error(err)
				return
			}
			for _, i := range both {
				if _, err := i.Issue(i.GitHubToken(job)); err == nil {
					t.Errorf("run %d minted after it was revoked", run)
				}
			}
			minting.Wait()
			mu.Lock()
			defer mu.Unlock()
			serials = append(serials, held...)
			newest = max(newest, res.CRLNumber)
		})
	}
	wg.Wait()
	for _, i := range both {
		listed := revoked(t, crlOfNumber(t, i, newest))
		slices.Sort(listed)
		for _, s := range serials {
			if _, ok := slices.BinarySearch(listed, s); !ok {
				t.Errorf("%s is held and not in the CRL", s)
			}
		}
	}
	t.Logf("%d certificates of %d runs, all out", len(serials), runs)
}

// ATTACKS 51: backup, revoke, restore. What was revoked stays out by the floor, a
// token of before it buys nothing, the CRL number goes on, and new tokens work.
func TestRestoreRaisesTheFloor(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	out, err := i.Issue(i.GitHubToken(map[string]any{"run_id": "1"}))
	if err != nil {
		t.Fatal(err)
	}
	st, err := issuer.OpenStore(t.Context(), i.Config)
	if err != nil {
		t.Fatal(err)
	}
	var copied bytes.Buffer
	if err := errors.Join(st.Backup(t.Context(), &copied), st.Close()); err != nil {
		t.Fatal(err)
	}
	res, err := i.Revoke(wire.RevokeRequest{Serial: out.Serial})
	if err != nil {
		t.Fatal(err)
	}
	before := i.GitHubToken(map[string]any{"run_id": "2"})
	if err := i.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, end := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(i.Config.Store + end); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	floor, err := ca.RestoreStore(t.Context(), i.Config.Store, &copied, i.Root, "test")
	if err != nil {
		t.Fatal(err)
	}
	if issued := leafOf(t, out.Certificate).NotBefore.Add(time.Minute); !issued.Before(floor) {
		t.Errorf("what was revoked was issued at %v, not before the floor %v", issued, floor)
	}
	i.Restart()
	crlOfNumber(t, i, res.CRLNumber+1)
	_, err = i.Issue(before)
	wantProblem(t, err, wire.ProblemBadToken)
	eventually(t, "the floor to pass", func() bool {
		_, err := i.Issue(i.GitHubToken(map[string]any{"run_id": "3"}))
		return err == nil
	})
	if evs := events(t, i, "restored"); len(evs) != 1 {
		t.Errorf("events %+v", evs)
	}
}
