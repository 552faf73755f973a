package cli_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// TestLogin logs in with a device code and uses the login.
func TestLogin(t *testing.T) {
	t.Parallel()
	a := newAdmins(t)
	s := a.as("")
	s.run("certs", "list").check(t, 1, "not logged in", "mayfly login")
	cmd, out := s.start("type the code", "login", "--device")
	m := regexp.MustCompile(`open (\S+) and type the code (\S+)`).FindStringSubmatch(out.String())
	if m == nil {
		t.Fatalf("no code:\n%s", out)
	}
	resp, err := http.PostForm(m[1], url.Values{"user_code": {m[2]}, "answer": {"allow"}})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(out.String(), "logged in as ops@example.com until ") || strings.Contains(out.String(), "eyJ") {
		t.Errorf("output:\n%s", out)
	}
	if fi, err := os.Stat(filepath.Join(s.getenv("XDG_CONFIG_HOME"), "mayfly", "login.json")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	s.run("certs", "list").check(t, 0)
	s.run("login", "--provider", "nobody").check(t, 2, "staff")

	// The login stores its issuer and the issuer's trust settings.
	remembered := &stand{tb: t, env: append(append([]string(nil), s.env...), "MAYFLY_ISSUER=", "MAYFLY_CA_FILE=", "MAYFLY_TRUST_ANCHOR=")}
	remembered.run("certs", "list").check(t, 0)
	remembered.run("--trust-anchor", "sha256:"+strings.Repeat("ab", 32), "certs", "list").check(t, 4)
	o := remembered.run("whoami")
	o.check(t, 0)
	for _, want := range []string{"staff/ops@example.com\n", "admin, by rule admins", "until", a.URL} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("whoami lacks %q:\n%s", want, o.stdout)
		}
	}
	if o := remembered.run("policy", "suggest"); o.code != 0 || !strings.Contains(o.stdout, "ops@example.com") {
		t.Errorf("the stored login is no source of tokens: %+v", o)
	}
	var who wire.Whoami
	o = remembered.run("whoami", "--json")
	if err := json.Unmarshal([]byte(o.stdout), &who); err != nil || who.Role != "admin" || time.Until(who.Until) > time.Hour {
		t.Errorf("%v\n%s", err, o.stdout)
	}
	remembered.run("logout").check(t, 0, "logged out of "+a.URL)
	remembered.run("logout").check(t, 0, "there was no login")
	remembered.run("whoami").check(t, 2, "no issuer is named")
	s.run("login", "--forget").check(t, 0, "there was no login for "+a.URL)
	s.run("whoami").check(t, 1, "not logged in", "mayfly login")
	s.run("certs", "list").check(t, 1, "not logged in")
}

// TestLoginInTheBrowser checks that the browser gets a URL that leads back to a port
// of this machine, and that no code is shown.
func TestLoginInTheBrowser(t *testing.T) {
	t.Parallel()
	a := newAdmins(t)
	s := a.as("")
	bin := t.TempDir()
	opened := filepath.Join(bin, "opened")
	for _, name := range []string{"xdg-open", "open"} {
		script := "#!/bin/sh\nprintf '%s\\n' \"$1\" >" + opened + ".new && mv " + opened + ".new " + opened + "\n"
		if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s.env = append(s.env, "DISPLAY=:0", "CI=", "SSH_CONNECTION=", "PATH="+bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
	done := make(chan outcome, 1)
	go func() { done <- s.run("login") }()
	var address string
	waitFor(t, func() bool {
		b, err := os.ReadFile(opened)
		address = strings.TrimSpace(string(b))
		return err == nil
	})
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	back, err := url.Parse(q.Get("redirect_uri"))
	if err != nil || back.Hostname() != "127.0.0.1" || q.Get("code_challenge_method") != "S256" || len(q.Get("code_challenge")) != 43 || q.Get("state") == "" || q.Get("nonce") == "" {
		t.Errorf("the browser was sent to %s", address)
	}
	q.Set("email", "ops@example.com")
	q.Set("answer", "allow")
	u.RawQuery = ""
	resp, err := http.PostForm(u.String(), q) // the provider sends the browser back
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	o := <-done
	o.check(t, 0, "logged in as ops@example.com until ")
	if strings.Contains(o.stderr, "type the code") {
		t.Errorf("a code was shown:\n%s", o.stderr)
	}
	s.run("certs", "list").check(t, 0)
}

// TestLoginEnds checks that mayfly reports an expired login and refuses a file that
// others may read.
func TestLoginEnds(t *testing.T) {
	t.Parallel()
	a := newAdmins(t)
	s := a.as("")
	dir := filepath.Join(s.getenv("XDG_CONFIG_HOME"), "mayfly")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "login.json")
	store := func(expires time.Time, mode os.FileMode) {
		b, err := json.Marshal(map[string]any{a.URL: map[string]any{"id_token": a.AdminToken(), "expires_at": expires}})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.WriteFile(file, b, 0o600), os.Chmod(file, mode)); err != nil {
			t.Fatal(err)
		}
	}
	store(time.Now().Add(time.Hour), 0o600)
	s.run("certs", "list").check(t, 0)
	store(time.Now().Add(-time.Hour), 0o600)
	s.run("certs", "list").check(t, 1, "the login has expired at 20", "mayfly login")
	store(time.Now().Add(time.Hour), 0o644)
	s.run("certs", "list").check(t, 1, "others must not read it", "chmod 600")
	(&stand{tb: t, env: append(s.env, "MAYFLY_ISSUER=")}).run("certs", "list").check(t, 1, "others must not read it", "--issuer")
	a.as(a.PersonToken(map[string]any{"email": "eve@example.com"})).run("whoami").check(t, 3, "people")
}

// getenv returns a variable of the stand's environment.
func (s *stand) getenv(name string) string {
	value := ""
	for _, kv := range s.env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			value = v
		}
	}
	return value
}

func TestLoginRefused(t *testing.T) {
	t.Parallel()
	a := newAdmins(t)
	s := a.as("")
	cmd, out := s.start("type the code", "login", "--device")
	m := regexp.MustCompile(`open (\S+) and type the code (\S+)`).FindStringSubmatch(out.String())
	resp, err := http.PostForm(m[1], url.Values{"user_code": {m[2]}, "answer": {"deny"}})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(out.String(), "access_denied") || !strings.Contains(out.String(), "hint: ") {
		t.Errorf("code %d:\n%s", code, out)
	}
	newStand(t).run("login").check(t, 1, "offers no login")
}
