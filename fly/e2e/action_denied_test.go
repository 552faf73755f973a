package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// A job that the policy denies cannot run another command. So the action's failure,
// which the runner shows on the job's page, names the rule that would admit the job
// and the file for it.
func TestActionDenied(t *testing.T) {
	t.Parallel()
	needNode(t)
	i := issuertest.Start(t, issuertest.Options{})
	job := i.GitHub.NewJob(map[string]any{"ref": "refs/heads/evil"})
	r := newRunner(t, "PATH="+programs(t)+string(filepath.ListSeparator)+os.Getenv("PATH"),
		"ACTIONS_ID_TOKEN_REQUEST_URL="+job.RequestURL, "ACTIONS_ID_TOKEN_REQUEST_TOKEN="+job.RequestToken)
	for _, mode := range []string{"proxy", "files"} {
		out, err := r.node(t, "main.js", map[string]string{
			"issuer": i.URL, "ca-file": i.CAFile, "trust-anchor": i.TrustAnchor, "version": "path", "mode": mode,
		})
		if err == nil {
			t.Errorf("%s: a denied job succeeds:\n%s", mode, out)
		}
		_, failure, found := strings.Cut(out, "::error title=mayfly::")
		if !found {
			t.Errorf("%s: no failure:\n%s", mode, out)
		}
		for _, want := range []string{
			`exit code 3`, `the policy does not admit ref "refs/heads/evil" (nearest rule: app-main)`, "policy.yaml",
			"%0A      repository_id: \"" + issuertest.RepositoryID + "\"%0A      ref: \"refs/heads/evil\"%0A", "grant: {profile: client",
		} {
			if !strings.Contains(failure, want) {
				t.Errorf("%s: the failure lacks %q:\n%s", mode, want, failure)
			}
		}
	}
}
