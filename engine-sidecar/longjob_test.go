package sidecar_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client"
	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// shortTTL is a client certificate's lifetime in these tests. NotBefore is a
// minute before the issue, so half life is two seconds after the issue.
const shortTTL = 64 * time.Second

func shortLived(policy string) string {
	return strings.ReplaceAll(policy, "profile: client, engines: [default], ttl: 1h", "profile: client, engines: [default], ttl: 64s")
}

// firstOnly returns one token and then errors, like a job whose runner lost
// its connection to GitHub.
type firstOnly struct {
	job
	used atomic.Bool
}

func (f *firstOnly) Token(ctx context.Context, audience string) (string, error) {
	if f.used.Swap(true) {
		return "", errors.New("no more tokens in this test")
	}
	return f.job.Token(ctx, audience)
}

// steal opens a relay with another job's certificate and key, which a real
// client never writes to disk. The channel gets the time when the relay has
// ended.
func (w *world) steal(stolen *client.Credential) <-chan time.Time {
	w.tb.Helper()
	tcp, err := net.Dial("tcp", w.addr)
	if err != nil {
		w.tb.Fatal(err)
	}
	w.tb.Cleanup(func() { tcp.Close() })
	conn := tls.Client(tcp, mtls.ClientConfig(stolen, stolen.TrustDomain, issuertest.ServerName, []string{wire.ALPNRelay},
		func(mtls.Peer) error { return nil }))
	if reason := w.verdict(conn); reason != "" {
		w.tb.Fatalf("refused: %s", reason)
	}
	w.echoes(conn)
	ended := make(chan time.Time, 1)
	go func() {
		_, _ = conn.Read(make([]byte, 1))
		ended <- time.Now()
	}()
	return ended
}

// TestLongJob: a connection outlives its certificate, because its client
// renews and holds it. A job that cannot renew is cut at NotAfter, with the
// reason. A thief with the first job's certificate and key does not profit
// from that job's renewals (ATTACKS 61).
func TestLongJob(t *testing.T) {
	t.Parallel()
	w, issuer := realWorldOf(t, issuertest.Options{Policy: shortLived})
	renews := w.realClient(issuer, "5000")
	held := w.realDial(renews)
	first := renews.Credential().Serial()
	stolenUntil, thief := renews.Info().NotAfter, w.steal(renews.Credential())

	stuck, err := client.New(t.Context(), client.Config{
		Issuer: issuer.URL, CAFile: issuer.CAFile, TrustAnchor: issuer.TrustAnchor,
		Source: &firstOnly{job: job{issuer, map[string]any{"run_id": "5001"}}},
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == "127.0.0.1:8080" { // the policy's endpoint
				addr = w.addr
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stuck.Close() })
	doomed := w.realDial(stuck)
	notAfter := stuck.Info().NotAfter

	ended := make(chan error, 1)
	go func() {
		_, err := doomed.Read(make([]byte, 1))
		ended <- err
	}()
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	late := time.After(shortTTL + 20*time.Second)
	for cut := false; !cut; {
		select {
		case <-tick.C:
			w.echoes(held)
		case err := <-ended:
			var told *client.CutError
			if !errors.As(err, &told) || told.Reason != wire.ReasonExpired {
				t.Errorf("the job that cannot renew heard %v\n%s", err, w.log)
			}
			if early := time.Until(notAfter); early > time.Second {
				t.Errorf("cut %v before NotAfter", early)
			}
			cut = true
		case <-late:
			t.Fatalf("a relay whose certificate ended at %v goes on\n%s", notAfter, w.log)
		}
	}
	select {
	case at := <-thief:
		if early := stolenUntil.Sub(at); early > time.Second {
			t.Errorf("the thief's relay ended %v before NotAfter", early)
		}
	case <-late:
		t.Errorf("a relay of a stolen certificate outlives it, since its owner renews\n%s", w.log)
	}
	w.echoes(held)
	if now := renews.Credential().Serial(); now == first || renews.Stats().Renewals < 2 {
		t.Errorf("%d renewals: the connection did not outlive its certificate", renews.Stats().Renewals)
	}
}
