package main_test

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// TestOnTheHost checks what an operator does on the host while the issuer serves. The
// serving process publishes a revocation made by another process. A backup holds
// everything issued before it. Then the store is lost and restored from the backup
// (ATTACKS 51).
func TestOnTheHost(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "")
	p := a.serve(t)
	issue := func(run string) (token, csr string, out *wire.IssueResponse) {
		t.Helper()
		token = a.GitHubToken(map[string]any{"run_id": run})
		_, csr = issuertest.Key(t)
		out, err := p.issue(token, csr)
		if err != nil {
			t.Fatal(err)
		}
		return token, csr, out
	}
	_, _, revoked := issue("revoked on the host")
	number, _, err := p.wait(0)
	if err != nil {
		t.Fatal(err)
	}
	said := a.run(t, "revoke", revoked.Serial, "--reason", "stolen")
	for {
		next, listed, err := p.wait(number)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(listed, revoked.Serial) {
			break
		}
		number = next
	}
	if _, err := p.issue(a.GitHubToken(map[string]any{"run_id": "revoked on the host"}), mustCSR(t)); !refused(err, wire.ProblemBlocked) {
		t.Errorf("its run mints: %v\n%s", err, said)
	}

	// An engine's own certificate needs a confirmation, a job's does not.
	engine, err := p.issue(a.FlyToken(nil), mustCSR(t))
	if err != nil {
		t.Fatal(err)
	}
	asked := exec.Command(binary, "revoke", "--config", a.config, engine.Serial)
	if out, err := asked.CombinedOutput(); err == nil || asked.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), "admit no build until") || !strings.Contains(string(out), "--yes") {
		t.Errorf("an engine's certificate: %v\n%s", err, out)
	}
	if said := a.run(t, "revoke", engine.Serial, "--block", "none"); !strings.Contains(said, "revoked 1") {
		t.Errorf("without a block: %s", said)
	}
	if engine, err = p.issue(a.FlyToken(nil), mustCSR(t)); err != nil {
		t.Fatalf("it gets no other: %v", err)
	}
	if said := a.run(t, "revoke", engine.Serial, "--yes"); !strings.Contains(said, "admit no build until") || !strings.Contains(said, engine.Identity) {
		t.Errorf("with --yes: %s", said)
	}
	if _, err := p.issue(a.FlyToken(nil), mustCSR(t)); !refused(err, wire.ProblemBlocked) {
		t.Errorf("the blocked engine mints: %v", err)
	}

	_, _, held := issue("before the backup")
	var done atomic.Bool
	var load sync.WaitGroup
	for worker := range 4 {
		load.Go(func() {
			for n := 0; !done.Load(); n++ {
				if _, err := p.issue(a.GitHubToken(map[string]any{"run_id": strconv.Itoa(worker) + "-" + strconv.Itoa(n)}), mustCSR(t)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	backup := filepath.Join(t.TempDir(), "backup")
	a.run(t, "backup", "--out", backup)
	done.Store(true)
	load.Wait()
	token, csr, late := issue("after the backup")
	p.stop(t)
	if text, err := os.ReadFile(backup); err != nil || strings.Contains(string(text), "PRIVATE KEY") {
		t.Errorf("backup: %v, or it holds a key", err)
	}

	for _, end := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(a.Config.Store + end); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	a.run(t, "restore", "--from", backup)
	a.run(t, "verify")
	p = a.serve(t)
	if _, err := p.issue(token, csr); !refused(err, wire.ProblemBadToken) {
		t.Errorf("a token of before the floor, used after the backup: %v", err)
	}
	var detail wire.CertificateDetail
	if err := p.call(http.MethodGet, wire.PathCertificates+"/"+held.Serial, a.ViewerToken(), nil, &detail); err != nil || detail.Status != wire.StatusRevoked {
		t.Errorf("what the backup held: %s, %v", detail.Status, err)
	}
	if err := p.call(http.MethodGet, wire.PathCertificates+"/"+late.Serial, a.ViewerToken(), nil, &detail); !refused(err, wire.ProblemNotFound) {
		t.Errorf("what it could not hold: %v", err)
	}
	p.stop(t)
}

func mustCSR(t *testing.T) string {
	t.Helper()
	_, csr := issuertest.Key(t)
	return csr
}
