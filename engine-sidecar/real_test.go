package sidecar_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client"
	"github.com/mayfly-ca/mayfly/client/tokensource"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// job is the token source of a GitHub job with its own claims.
type job struct {
	issuer *issuertest.Issuer
	claims map[string]any
}

func (j job) Token(context.Context, string) (string, error) {
	return j.issuer.GitHubToken(j.claims), nil
}
func (j job) String() string { return "job of a test" }

var _ tokensource.Source = job{}

// realWorld returns a sidecar with a real issuer, as a Fly machine.
func realWorld(t *testing.T) (*world, *issuertest.Issuer) {
	t.Helper()
	return realWorldOf(t, issuertest.Options{})
}

// realWorldOf is realWorld with options for the issuer.
func realWorldOf(t *testing.T, o issuertest.Options) (*world, *issuertest.Issuer) {
	t.Helper()
	issuer := issuertest.Start(t, o)
	w := setUp(t)
	w.echo()
	return w.runAt(issuer), issuer
}

// runAt starts the sidecar with a real issuer.
func (w *world) runAt(issuer *issuertest.Issuer) *world {
	t := w.tb
	t.Helper()
	socket := filepath.Join(filepath.Dir(w.cfg.EngineSocket), "fly.sock")
	fly, err := issuer.Fly.ServeFlySocket(socket, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fly.Close() })
	w.cfg.Issuer, w.cfg.CAFile, w.cfg.TrustAnchor = issuer.URL, issuer.CAFile, issuer.TrustAnchor
	w.cfg.TokenSource, w.cfg.FlyAPISocket = "fly", socket
	return w.run()
}

// realClient returns a job's client with its own run.
func (w *world) realClient(issuer *issuertest.Issuer, run string) *client.Client {
	w.tb.Helper()
	c, err := client.New(w.tb.Context(), client.Config{
		Issuer: issuer.URL, CAFile: issuer.CAFile, TrustAnchor: issuer.TrustAnchor,
		Source: job{issuer, map[string]any{"run_id": run}}, WakeTimeout: 5 * time.Second,
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == "127.0.0.1:8080" { // the policy's endpoint
				addr = w.addr
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
	})
	if err != nil {
		w.tb.Fatal(err)
	}
	w.tb.Cleanup(func() { c.Close() })
	return c
}

func (w *world) realDial(c *client.Client) net.Conn {
	w.tb.Helper()
	conn, err := c.DialContext(w.tb.Context(), "tcp", "default")
	if err != nil {
		w.tb.Fatalf("%v\n%s", err, w.log)
	}
	w.tb.Cleanup(func() { conn.Close() })
	w.echoes(conn)
	return conn
}

// TestRealIssuerAndClient measures from the return of the revoke call until
// the client knows of the cut, and checks the reason.
func TestRealIssuerAndClient(t *testing.T) {
	t.Parallel()
	w, issuer := realWorld(t)
	bystander := w.realDial(w.realClient(issuer, "1000"))
	var took []time.Duration
	for i := range 12 {
		c := w.realClient(issuer, []string{"2000", "2001", "2002"}[i%3]+string(rune('a'+i)))
		conn := w.realDial(c)
		answer, err := issuer.Revoke(wire.RevokeRequest{Serial: c.Credential().Serial(), Block: wire.BlockNone, Reason: "test"})
		if err != nil {
			t.Fatal(err)
		}
		returned := time.Now()
		_, err = conn.Read(make([]byte, 1))
		took = append(took, time.Since(returned))
		var cut *client.CutError
		if !errors.As(err, &cut) || cut.Reason != wire.ReasonRevoked || answer.CRLNumber == 0 {
			t.Fatalf("the client heard %v\n%s", err, w.log)
		}
	}
	w.echoes(bystander)
	slices.Sort(took)
	t.Logf("revoke -> the client knows over %d: p50 %v, max %v", len(took), took[len(took)/2], took[len(took)-1])
	if most := took[len(took)-1]; most > time.Second {
		t.Fatalf("max %v, want at most 1s", most)
	}
}

// TestRealSessions: an admin sees the relay's session.
func TestRealSessions(t *testing.T) {
	t.Parallel()
	w, issuer := realWorld(t)
	c := w.realClient(issuer, "3000")
	conn := w.realDial(c)
	serial := c.Credential().Serial()
	find := func() (found wire.Session) {
		var list wire.List[wire.Session]
		if err := issuer.Call(http.MethodGet, wire.PathSessions+"?serial="+serial, issuer.ViewerToken(), nil, &list); err != nil {
			t.Fatal(err)
		}
		if len(list.Items) > 0 {
			found = list.Items[0]
		}
		return found
	}
	eventually(t, "the session to be told", func() bool { return find().Serial == serial })
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its end to be told", func() bool { return find().ClosedAt != nil })
	if s := find(); s.BytesIn != 4 || s.BytesOut != 4 || s.Engine != "default" {
		t.Fatalf("session %+v\n%s", s, w.log)
	}
}

// TestRealStatus: a viewer and a job see the engine's status.
func TestRealStatus(t *testing.T) {
	t.Parallel()
	issuer := issuertest.Start(t, issuertest.Options{})
	w := setUp(t)
	w.cfg.EngineVersion = "registry.dagger.io/engine:v0.21.8"
	w.echo()
	w.runAt(issuer)
	machine := func() (m wire.MachineStatus) {
		var list wire.List[wire.EngineStatus]
		if err := issuer.Call(http.MethodGet, wire.PathEngines, issuer.ViewerToken(), nil, &list); err != nil {
			t.Fatal(err)
		}
		if len(list.Items) == 1 && len(list.Items[0].Machines) == 1 {
			m = list.Items[0].Machines[0]
		}
		return m
	}
	eventually(t, "the engine to be awake", func() bool { return machine().State == wire.EngineAwake })
	if m := machine(); m.EngineVersion != "engine:v0.21.8" || m.EngineSocket != wire.SocketOK || time.Until(m.CertificateNotAfter) < time.Hour || time.Since(m.FeedAt) > time.Minute {
		t.Errorf("%+v", m)
	}
	if got := w.realClient(issuer, "4000").Info().Engines[0].Version; got != "engine:v0.21.8" {
		t.Errorf("a job hears of version %q", got)
	}
	w.stop()
	w.wantEnd(0, "")
	if m := machine(); m.State != wire.EngineAsleep {
		t.Errorf("after the stop: %+v", m)
	}
}

// TestRelaysThroughIssuerRestart: an issuer's restart does not affect relays.
func TestRelaysThroughIssuerRestart(t *testing.T) {
	t.Parallel()
	w := start(t)
	var conns []net.Conn
	for range 100 {
		conns = append(conns, w.admitted(w.clientCert(nil)))
	}
	w.issuer.set(func() { w.issuer.down = true })
	w.issuer.srv.CloseClientConnections()
	eventually(t, "the sidecar to notice", func() bool { return w.log.has("revocation feed fails") })
	w.issuer.set(func() { w.issuer.down = false })
	eventually(t, "it to be back", func() bool { return w.log.has("revocation feed works again") })
	for _, c := range conns {
		w.echoes(c)
	}
}
