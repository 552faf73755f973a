package e2e

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// patience bounds a wait, so that no test hangs. The log has the real times.
const patience = 90 * time.Second

// running starts a build and waits until its step runs.
func (d *distant) running(runID string) *run {
	d.t.Helper()
	r := d.build(runID)
	r.out.await(patience, " tick 1\n")
	return r
}

// goesOn checks that a build's step still ticks.
func (r *run) goesOn() {
	r.out.t.Helper()
	now := r.out.position()
	for range 2 {
		r.out.awaitAfter(now, patience, " tick ")
		now = r.out.position()
	}
}

// TestPacketsLost: the path between the runner and the engine loses every packet
// during a build. Both ends notice and report it. When the path works again, the
// next build does too.
func TestPacketsLost(t *testing.T) {
	t.Parallel()
	d := newDistant(t, distantOptions{})
	build := d.running("6100")
	d.buildctlWithFiles("6102")
	d.engine.drop("toRunner")
	lost := time.Now()
	build.out.await(patience, "machine did not answer for 20s")
	t.Logf("the job knew after %v", time.Since(lost))
	d.sidecarLog.await(patience, `"relay ended"`, `"reason":"silence"`, `"run":"6100/`)
	t.Logf("the sidecar knew after %v", time.Since(lost))
	d.engine.pass("toRunner")
	d.running("6101")
	if code := build.wait(patience); code == 0 {
		t.Error("a build that was cut off ended well")
	}
}

// buildctlWithFiles runs buildctl's own TLS with the files of mayfly cert, until
// their certificate is revoked.
func (d *distant) buildctlWithFiles(runID string) {
	t := d.t
	t.Helper()
	dir := filepath.Join(t.TempDir(), "files")
	do := func(argv ...string) (string, error) {
		argv = d.job.command(argv...)
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Env = d.environ(runID)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := do(filepath.Join(d.bin, "mayfly"), "cert", "--out", dir); err != nil {
		t.Fatalf("mayfly cert: %v\n%s", err, out)
	}
	workers := []string{engineTool(t, "buildctl"), "--timeout", "5", "--addr", "tcp://" + engineAddr + ":8080", "--tlsservername", issuertest.ServerName,
		"--tlscacert", dir + "/ca.pem", "--tlscert", dir + "/cert.pem", "--tlskey", dir + "/key.pem", "debug", "workers"}
	if out, err := do(workers...); err != nil || !strings.Contains(out, "linux/amd64") {
		t.Fatalf("buildctl: %v\n%s", err, out)
	}
	data, err := os.ReadFile(dir + "/cert.pem")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	serial := mtls.Serial(cert.SerialNumber)
	if _, err := d.issuer.Revoke(wire.RevokeRequest{Serial: serial, Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); ; {
		out, err := do(workers...)
		if err != nil && strings.Contains(out, "bad certificate") {
			break
		}
		if time.Since(began) > patience {
			t.Fatalf("buildctl with a revoked certificate: %v\n%s", err, out)
		}
	}
	d.sidecarLog.await(patience, `"client refused"`, `"reason":"revoked"`, serial, `"alpn":"h2"`)
}

// TestIssuerCutOff: the engine cannot reach its issuer, but the runner can. The
// running build continues. A new build is refused with the reason once the
// revocation list is older than max_staleness. When the path works again, builds
// are admitted again.
func TestIssuerCutOff(t *testing.T) {
	t.Parallel()
	d := newDistant(t, distantOptions{env: []string{"MAYFLY_SIDECAR_MAX_STALENESS=15s"}})
	d.keepListFresh()
	build := d.running("6200")
	d.engine.drop("toIssuer")
	cut := time.Now()
	d.awaitReady("revocation feed is stale")
	t.Logf("stale after %v", time.Since(cut))
	refused := d.build("6201", "--wake-timeout", "2s")
	if code := refused.wait(patience); code != 5 {
		t.Errorf("exit code %d, want 5", code)
	}
	refused.out.await(patience, "no fresh revocation list", "feed_stale")
	d.sidecarLog.await(patience, `"client refused"`, `"reason":"feed_stale"`, `"run":"6201/`)
	build.goesOn()
	d.engine.pass("toIssuer")
	d.awaitReady("ok")
	d.running("6202")
	build.goesOn()
}

// keepListFresh revokes a certificate every other second. Otherwise the issuer
// signs its list again only once a minute, and a max_staleness of seconds would
// refuse all clients.
func (d *distant) keepListFresh() {
	revoke := func() {
		spare, err := d.issuer.Issue(d.issuer.GitHubToken(map[string]any{"run_id": "6666"}))
		if err == nil {
			_, err = d.issuer.Revoke(wire.RevokeRequest{Serial: spare.Serial, Block: wire.BlockNone, Reason: "to have a list of now"})
		}
		if err != nil {
			d.t.Error(err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		for {
			revoke()
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	d.t.Cleanup(func() { stop(); <-ended })
}

// awaitReady waits until the answer of the sidecar's /readyz contains what.
func (d *distant) awaitReady(what string) {
	d.t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for d.ready() != what {
		select {
		case <-tick.C:
		case <-late:
			d.t.Fatalf("readyz says %q, want %q", d.ready(), what)
		}
	}
}

// TestEngineAndRunnerKilled: behind the proxy, the engine's machine first dies
// during a build. The job reports it at once, and the next job wakes the machine
// again. Then the runner disappears, while the proxy keeps the engine's side of the
// connection open. The sidecar notices the missing pings, and the machine stops.
func TestEngineAndRunnerKilled(t *testing.T) {
	t.Parallel()
	d := newDistant(t, distantOptions{proxy: true, env: []string{"MAYFLY_SIDECAR_IDLE_EXIT=3s"}})
	build := d.running("6300")
	killed := time.Now()
	d.machine.Kill()
	// The job reports it before a ping could be missing.
	build.out.await(wire.ControlSilence, "engine default: the connection broke")
	t.Logf("the job knew after %v", time.Since(killed))
	if code := build.wait(patience); code == 0 {
		t.Error("a build whose engine is gone ended well")
	}

	build = d.running("6301")
	if starts := d.machine.Starts(); starts < 2 {
		t.Errorf("the machine was started %d times", starts)
	}
	d.engine.drop("toRunner") // a virtual machine that is taken away sends no FIN
	gone := time.Now()
	build.kill()
	d.sidecarLog.await(patience, `"relay ended"`, `"reason":"silence"`, `"run":"6301/`)
	t.Logf("the relays were gone after %v", time.Since(gone))
	if d.proxy.Load() == 0 {
		t.Error("the proxy has noticed by itself: that shows nothing")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := d.machine.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("the machine was stopped after %v", time.Since(gone))
	if code := d.machine.ExitCode(); code != 0 {
		t.Errorf("the sidecar ended with %d", code)
	}
}
