package issuer_test

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// TestRestoreRaisesTheFloor is ATTACKS 51: backup, revoke, restore. The floor keeps
// revoked certificates out and refuses earlier tokens. The CRL number continues, and
// new tokens work.
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
