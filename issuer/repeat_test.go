package issuer_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// TestRepeatAsksAgain repeats a request with the same token and key. It gets the same
// certificate, signed again over the same bytes, only while policy and blocks admit
// it.
func TestRepeatAsksAgain(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	rules, err := os.ReadFile(i.PolicyFile)
	if err != nil {
		t.Fatal(err)
	}
	token := i.GitHubToken(map[string]any{"run_id": "1"})
	_, csr := issuertest.Key(t)
	first, err := i.IssueCSR(token, csr)
	if err != nil {
		t.Fatal(err)
	}
	same := func(when string) {
		t.Helper()
		again, err := i.IssueCSR(token, csr)
		if err != nil || again.Serial != first.Serial || !bytes.Equal(tbsOf(t, again), tbsOf(t, first)) {
			t.Errorf("%s: another certificate, %v", when, err)
		}
	}
	same("at once")
	rule := func(text, admittedBy string) {
		t.Helper()
		if err := os.WriteFile(i.PolicyFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		i.Reload()
		eventually(t, "the rules", func() bool {
			var out wire.ExplainResponse
			claims := `{"repository_owner_id":"` + issuertest.OwnerID + `","repository_id":"` + issuertest.RepositoryID + `","ref":"refs/heads/main","event_name":"push"}`
			err := i.Call("POST", wire.PathPolicyExplain, i.ViewerToken(), wire.ExplainRequest{Provider: "github", Claims: []byte(claims)}, &out)
			return err == nil && out.Allowed == (admittedBy != "") && (!out.Allowed || out.Rule == admittedBy)
		})
	}
	rule(strings.ReplaceAll(string(rules), "refs/heads/main", "refs/heads/other"), "")
	_, err = i.IssueCSR(token, csr)
	wantProblem(t, err, wire.ProblemDenied)
	rule(strings.ReplaceAll(string(rules), "name: app-main", "name: app-other"), "app-other")
	_, err = i.IssueCSR(token, csr)
	wantProblem(t, err, wire.ProblemReplay) // the certificate has the rule's name
	rule(string(rules), "app-main")
	same("when the rules admit it again")

	blocked, err := i.Revoke(wire.RevokeRequest{Serial: first.Serial})
	if err != nil {
		t.Fatal(err)
	}
	_, err = i.IssueCSR(token, csr)
	wantProblem(t, err, wire.ProblemBlocked)
	for _, id := range blocked.BlockIDs {
		if err := i.Call("DELETE", wire.PathBlocks+"/"+id, i.AdminToken(), nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	_, err = i.IssueCSR(token, csr)
	wantProblem(t, err, wire.ProblemReplay) // a revoked certificate is not signed again
	if _, err := i.Issue(i.GitHubToken(map[string]any{"run_id": "1"})); err != nil {
		t.Errorf("a fresh token of the same run, unblocked: %v", err)
	}
}
