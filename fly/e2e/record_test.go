package e2e

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// recorded maps each event of TestRecord to its text.
var recorded = map[string]string{
	"issued":        "acme/app, run 7, got a certificate by rule app-main",
	"denied":        `was refused: claim ref is "refs/heads/evil"; nearest rule app-main`,
	"replay":        "sent a token that was used before: another key",
	"connected":     "acme/app, run 7, connected to engine default from 192.0.2.7:4242",
	"disconnected":  "acme/app, run 7, left engine default: revoked, 1.0 kB sent, 2.0 kB received",
	"revoked":       "staff/ops@example.com revoked a certificate of acme/app, run 7: seen mining",
	"blocked":       "staff/ops@example.com blocked run 7 until ",
	"unblocked":     "staff/ops@example.com ended a block before its time",
	"admin_read":    "staff/ops@example.com looked at everything recorded of a certificate",
	"forbidden":     "staff/viewer tried what the policy does not let them do: POST /v1/revocations",
	"login":         "staff/ops@example.com logged in to the page by rule admins",
	"logout":        "staff/ops@example.com logged out of the page",
	"policy_loaded": "the policy was loaded, rules: 4",
	"rotation":      "rotated keys: intermediate or root CRL installed",
	"feed_stale":    "engine default had no revocation list for 5m0s",
}

// Every action is recorded. The page shows a text for it, the export has it in JSON
// lines, and the chain of events reveals a changed word.
func TestRecord(t *testing.T) {
	i := issuertest.Start(t, issuertest.Options{})
	serial := happen(t, i)
	rotate(t, i)
	admin := adminOf(t, i)
	fetch(t, admin, http.MethodGet, i.URL+"/certificates/"+serial, nil, i.URL)
	fetch(t, admin, http.MethodPost, i.URL+"/logout", url.Values{}, i.URL)

	t.Setenv("MAYFLY_ISSUER", i.URL)
	t.Setenv("MAYFLY_CA_FILE", i.CAFile)
	t.Setenv("MAYFLY_ADMIN_TOKEN", i.AdminToken())
	if code, _, errs := output(t, "mayfly", "certs", "show", serial); code != 0 {
		t.Fatalf("show: %d: %s", code, errs)
	}
	code, exported, errs := output(t, "mayfly", "events", "--export")
	if code != 0 {
		t.Fatalf("export: %d: %s", code, errs)
	}
	said := map[string][]string{}
	last := int64(0)
	for line := range strings.Lines(exported) {
		var e wire.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if e.Seq != last+1 {
			t.Errorf("event %d follows %d", e.Seq, last)
		}
		last = e.Seq
		said[e.Type] = append(said[e.Type], e.Text())
	}
	if n := len(said["admin_read"]); n != 2 {
		t.Errorf("%d reads were recorded, want the page's and the API's", n)
	}
	page := fetch(t, adminOf(t, i), http.MethodGet, i.URL+"/events", nil, i.URL)
	for kind, words := range recorded {
		if !strings.Contains(strings.Join(said[kind], "\n"), words) {
			t.Errorf("%s: %q, want %q", kind, said[kind], words)
		}
		if words = strings.NewReplacer(`"`, "&#34;").Replace(words); !strings.Contains(page, words) {
			t.Errorf("the page does not say %q", words)
		}
	}
	verify(t, i, last+1) // and the login to the page
}

// happen causes one event of each kind, and returns a certificate's serial.
func happen(t *testing.T, i *issuertest.Issuer) string {
	t.Helper()
	job := map[string]any{"repository": "acme/app", "run_id": "7", "actor": "octocat"}
	token := i.GitHubToken(job)
	issued, err := i.Issue(token)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.Issue(token); err == nil {
		t.Fatal("a token bought two certificates")
	}
	if _, err := i.Issue(i.GitHubToken(map[string]any{"ref": "refs/heads/evil"})); err == nil {
		t.Fatal("another branch got a certificate")
	}
	id, at := strings.Repeat("a", 32), time.Now()
	for _, r := range []wire.SessionReport{
		{Kind: wire.SessionOpen, ID: id, Serial: issued.Serial, At: at, RemoteAddr: "192.0.2.7:4242"},
		{Kind: wire.SessionClose, ID: id, Serial: issued.Serial, At: at, Reason: "revoked", BytesIn: 1000, BytesOut: 2000},
		{Kind: wire.SessionFeedStale, ID: strings.Repeat("b", 32), At: at, Reason: "no revocation list for 5m0s"},
	} {
		if err := i.Call("POST", wire.PathSessions, i.SessionsToken(nil), wire.SessionsRequest{Reports: []wire.SessionReport{r}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	done, err := i.Revoke(wire.RevokeRequest{Serial: issued.Serial, Reason: "seen mining"})
	if err != nil || len(done.BlockIDs) != 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	if err := i.Call("DELETE", wire.PathBlocks+"/"+done.BlockIDs[0], i.AdminToken(), nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := i.Call("POST", wire.PathRevocations, i.ViewerToken(), wire.RevokeRequest{All: true}, nil); err == nil {
		t.Fatal("a viewer revoked everything")
	}
	return issued.Serial
}

// onHost runs mayfly-issuer on the issuer's host.
func onHost(t *testing.T, i *issuertest.Issuer, args ...string) (int, string) {
	t.Helper()
	c := i.Config
	config := filepath.Join(filepath.Dir(i.CAFile), "host.yaml")
	text := fmt.Sprintf("listen: 127.0.0.1:0\npublic_url: %s\nca: {root: %s, root_crl: %s, intermediate: %s, key: %s}\nstore: %s\npolicy: %s\n",
		i.URL, c.CA.Root, c.CA.RootCRL, c.CA.Intermediate, c.CA.Key, c.Store, c.Policy)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for n, a := range args {
		if a == "CONFIG" {
			args[n] = config
		}
	}
	code, out, errs := output(t, "mayfly-issuer", args...)
	return code, out + errs
}

// rotate installs the CA's next intermediate while the issuer serves.
func rotate(t *testing.T, i *issuertest.Issuer) {
	t.Helper()
	dir := t.TempDir()
	online := filepath.Dir(i.CAFile)
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte("for a test"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"rotate", "request", "--config", "CONFIG"},
		{"rotate", "sign", "--root", filepath.Join(filepath.Dir(online), "root"), "--root-password-file", password, "--request", filepath.Join(online, "next.csr"), "--out", filepath.Join(dir, "signed")},
		{"rotate", "install", "--config", "CONFIG", "--signed", filepath.Join(dir, "signed")},
	} {
		if code, said := onHost(t, i, args...); code != 0 {
			t.Fatalf("%v: %d: %s", args, code, said)
		}
	}
}

// verify stops the issuer and verifies its chain, first unchanged, then with one
// word of an event changed.
func verify(t *testing.T, i *issuertest.Issuer, events int64) {
	t.Helper()
	if err := i.Stop(); err != nil {
		t.Fatal(err)
	}
	if code, said := onHost(t, i, "verify", "--config", "CONFIG"); code != 0 || !strings.Contains(said, fmt.Sprintf("%d events checked", events)) {
		t.Errorf("verify: %d, want %d events: %s", code, events, said)
	}
	db, err := sql.Open("sqlite", i.Config.Store)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(`UPDATE events SET reason = 'a mistake' WHERE type = 'revoked'`); err != nil {
		t.Fatal(err)
	}
	if code, said := onHost(t, i, "verify", "--config", "CONFIG"); code != 1 || !strings.Contains(said, "is broken") {
		t.Errorf("verify after a changed word: %d: %s", code, said)
	}
}
