package web_test

import (
	"bytes"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// lockedBuffer receives the log of an issuer.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// database changes the issuer's database directly.
func database(t *testing.T, i *issuertest.Issuer, query string, args ...any) {
	t.Helper()
	db, err := sql.Open("sqlite", i.Config.Store+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(query, args...); err != nil {
		t.Fatal(err)
	}
}

// TestForgedLogin checks that write access to the database does not make an admin:
// neither with a new row nor with an admin's claims in another row. The admin stays
// logged in.
func TestForgedLogin(t *testing.T) {
	t.Parallel()
	var log lockedBuffer
	i := issuertest.Start(t, issuertest.Options{Log: &log})
	admin, viewer := loggedIn(t, i, issuertest.Admin), loggedIn(t, i, issuertest.Viewer)

	const secret = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	sum := sha256.Sum256([]byte(secret))
	database(t, i, `INSERT INTO logins SELECT ?, provider, subject, claims, created_at, expires_at, mac FROM logins WHERE CAST(claims AS TEXT) LIKE '%ops@%'`, hex.EncodeToString(sum[:]))
	thief := newBrowser(t, i)
	home, err := url.Parse(i.URL)
	if err != nil {
		t.Fatal(err)
	}
	thief.Jar.SetCookies(home, []*http.Cookie{{Name: "__Host-mayfly", Value: secret, Path: "/", Secure: true}})
	resp, body := thief.get("/")
	wantStatus(t, "a row written by hand", resp, body, http.StatusSeeOther)
	resp, body = thief.post("/revocations", url.Values{"all": {"true"}, "reason": {"x"}})
	wantStatus(t, "a revocation by it", resp, body, http.StatusUnauthorized)

	resp, body = viewer.get("/blocks")
	wantStatus(t, "a viewer", resp, body, http.StatusForbidden)
	database(t, i, `UPDATE logins SET claims = (SELECT claims FROM logins WHERE CAST(claims AS TEXT) LIKE '%ops@%' LIMIT 1) WHERE CAST(claims AS TEXT) LIKE '%eyes@%'`)
	resp, body = viewer.get("/blocks")
	wantStatus(t, "a viewer's row with an admin's claims", resp, body, http.StatusSeeOther)
	if !strings.Contains(log.String(), "login refused: its row was changed by hand") {
		t.Errorf("the log does not say so:\n%s", log.String())
	}
	resp, body = admin.get("/blocks")
	wantStatus(t, "the admin", resp, body, http.StatusOK)
}

// TestStateKeyReplaced checks that a login survives a restart and works at every
// replica, while its signing key is in the list.
func TestStateKeyReplaced(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	replica := i.Replica()
	b := loggedIn(t, i, issuertest.Admin)
	home, err := url.Parse(i.URL)
	if err != nil {
		t.Fatal(err)
	}
	cookies := b.Jar.Cookies(home) // a cookie is valid for every port
	visit := func(what string, i *issuertest.Issuer, want int) {
		t.Helper()
		b := newBrowser(t, i)
		home, err := url.Parse(i.URL)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cookies {
			c.Path, c.Secure = "/", true
		}
		b.Jar.SetCookies(home, cookies)
		resp, body := b.get("/")
		wantStatus(t, what, resp, body, want)
	}
	visit("here", i, http.StatusOK)
	visit("at the replica", replica, http.StatusOK)

	old := i.Config.StateKey
	next := filepath.Join(t.TempDir(), "next.key")
	if err := os.WriteFile(next, []byte(store.EncodeStateKey(store.NewStateKey())+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	i.Config.StateKey = append([]string{next}, old...)
	i.Restart()
	visit("the key before is in the list", i, http.StatusOK)
	i.Config.StateKey = []string{next}
	i.Restart()
	visit("the key before is not in the list", i, http.StatusSeeOther)
	i.Config.StateKey = nil
	i.Restart()
	b = loggedIn(t, i, issuertest.Admin)
	if home, err = url.Parse(i.URL); err != nil {
		t.Fatal(err)
	}
	cookies = b.Jar.Cookies(home)
	visit("without a key", i, http.StatusOK)
	i.Restart()
	visit("after a restart without a key", i, http.StatusSeeOther)
}

// TestLoginNotProlonged checks that a login ends after 8 h, whatever the database
// holds.
func TestLoginNotProlonged(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	b := loggedIn(t, i, issuertest.Admin)
	database(t, i, `UPDATE logins SET expires_at = ?`, time.Now().Add(1000*time.Hour).UnixMicro())
	resp, body := b.get("/")
	wantStatus(t, "a login that was prolonged by hand", resp, body, http.StatusSeeOther)
}
