package main_test

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/catest"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// killsEnv names the variable for how often each store's issuer is killed.
const (
	killsEnv     = "MAYFLY_TEST_KILLS"
	defaultKills = 100
)

func kills(t *testing.T) int {
	t.Helper()
	text := os.Getenv(killsEnv)
	if text == "" {
		return defaultKills
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want a count", killsEnv, text)
	}
	return n
}

// TestKilledUnderLoad is ATTACKS 35: repeated kill -9 under load. Each certificate
// that a client holds is recorded unchanged. A token whose response was lost still
// works, for the same certificate and only with the same key. Revoked certificates
// stay revoked.
func TestKilledUnderLoad(t *testing.T) {
	t.Parallel()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		killAgainAndAgain(t, newAuthority(t, ""))
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		killAgainAndAgain(t, newAuthority(t, catest.StartPostgres(t).Database(t)))
	})
}

func killAgainAndAgain(t *testing.T, a *authority) {
	j := &jobs{authority: a}
	begun, rounds := time.Now(), kills(t)
	for range rounds {
		j.killUnderLoad(t, 1+rand.IntN(40))
	}
	took := time.Since(begun)
	unrecorded := j.compare(t)
	a.run(t, "verify")
	p := a.serve(t)
	der, err := p.crl()
	if err != nil {
		t.Fatal(err)
	}
	listed := serialsOf(t, der)
	for _, serial := range j.revoked {
		if !listed[serial] {
			t.Errorf("certificate %s was revoked and is not in the CRL", serial)
		}
	}
	p.stop(t)
	t.Logf("%d kills, %v each: %d certificates held, %d of them unrecorded; %d answers lost and asked for again; %d revoked",
		rounds, (took / time.Duration(rounds)).Round(time.Millisecond), len(j.held), unrecorded, j.again, len(j.revoked))
}

// compare compares the clients' certificates with the records, and returns how many
// of them are not recorded as they are.
func (j *jobs) compare(t *testing.T) (unrecorded int) {
	t.Helper()
	records := j.records(t)
	for _, b := range j.held {
		switch r, ok := records[b.serial]; {
		case !ok:
			t.Errorf("certificate %s is held by a client and not recorded", b.serial)
			unrecorded++
		case !bytes.Equal(r.tbs, b.tbs):
			t.Errorf("certificate %s is recorded as another", b.serial)
			unrecorded++
		}
	}
	for _, serial := range j.revoked {
		if !records[serial].revoked {
			t.Errorf("certificate %s was revoked and is not", serial)
		}
	}
	bought := map[string]string{}
	for serial, r := range records {
		if other, ok := bought[r.token]; ok {
			t.Errorf("one token bought %s and %s", serial, other)
		}
		bought[r.token] = serial
	}
	return unrecorded
}

// bought is what a client has: a token, a key, and, unless the response was lost, a
// certificate.
type bought struct {
	token, csr string
	serial     string
	tbs        []byte
}

// jobs are the clients of an issuer that is killed.
type jobs struct {
	*authority
	mu      sync.Mutex
	run     int
	lost    []bought // requested, without a response
	held    []bought
	revoked []string // serials, as in the responses
	again   int      // number of lost ones that succeeded later
}

// next returns the next request of a client: one that got no response, else one of a
// new job.
func (j *jobs) next(t *testing.T) (b bought, again bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if n := len(j.lost); n > 0 {
		b, j.lost = j.lost[n-1], j.lost[:n-1]
		return b, true
	}
	j.run++
	_, csr := issuertest.Key(t)
	return bought{token: j.GitHubToken(map[string]any{"run_id": strconv.Itoa(j.run)}), csr: csr}, false
}

// killUnderLoad serves jobs until n of them have their certificates, and kills the
// issuer.
func (j *jobs) killUnderLoad(t *testing.T, n int) {
	t.Helper()
	p := j.serve(t)
	answers := make(chan struct{}, 1<<16)
	var clients sync.WaitGroup
	if len(j.held) > 0 {
		recent := j.held[max(0, len(j.held)-100):] // tokens live for five minutes
		before := recent[rand.IntN(len(recent))]
		clients.Go(func() { j.useAgain(t, p, before) })
		clients.Go(func() { j.revoke(t, p, before.serial) })
	}
	for range 8 {
		clients.Go(func() {
			for j.buy(t, p) {
				answers <- struct{}{}
			}
		})
	}
	for range n {
		select {
		case <-answers:
		case <-p.ended:
			t.Fatalf("the issuer ended by itself: %v\n%s", p.err, p.log)
		case <-time.After(time.Minute):
			t.Fatalf("the issuer is too slow for a load\n%s", p.log)
		}
	}
	p.kill()
	clients.Wait()
}

// buy runs one job. It reports whether there was a response.
func (j *jobs) buy(t *testing.T, p *process) bool {
	b, again := j.next(t)
	out, err := p.issue(b.token, b.csr)
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		if answered(err) {
			t.Errorf("a good token was refused, sent again %v: %v", again, err)
			return true
		}
		j.lost = append(j.lost, b)
		return false
	}
	b.serial = out.Serial
	if b.tbs, err = tbsOf(out.Certificate); err != nil {
		t.Error(err)
	}
	if j.held = append(j.held, b); again {
		j.again++
	}
	return true
}

// useAgain sends a token that an earlier process has seen, with another key.
func (j *jobs) useAgain(t *testing.T, p *process, b bought) {
	_, csr := issuertest.Key(t)
	if _, err := p.issue(b.token, csr); err == nil || answered(err) && !refused(err, wire.ProblemReplay) {
		t.Errorf("a token of before the kill, with another key: %v", err)
	}
}

// revoke revokes only one certificate, which an earlier process has issued.
func (j *jobs) revoke(t *testing.T, p *process, serial string) {
	var out wire.RevokeResponse
	err := p.call(http.MethodPost, wire.PathRevocations, j.AdminToken(), wire.RevokeRequest{Serial: serial, Block: wire.BlockNone}, &out)
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case err == nil && slices.Contains(out.Revoked, serial):
		j.revoked = append(j.revoked, serial)
	case err == nil || answered(err):
		t.Errorf("revoke %s: %v, %v", serial, out.Revoked, err)
	}
}

// crl requests GET /v1/crl.
func (p *process) crl() ([]byte, error) {
	resp, err := p.client.Get(p.url + wire.PathCRL)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// serialsOf returns the serials in a CRL.
func serialsOf(t *testing.T, der []byte) map[string]bool {
	t.Helper()
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]bool, len(list.RevokedCertificateEntries))
	for _, e := range list.RevokedCertificateEntries {
		out[fmt.Sprintf("%032x", e.SerialNumber)] = true
	}
	return out
}
