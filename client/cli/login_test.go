package cli_test

import (
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestLogin logs in by a code that is typed elsewhere, and uses the login.
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
	var config string
	for _, kv := range s.env {
		if v, ok := strings.CutPrefix(kv, "XDG_CONFIG_HOME="); ok {
			config = v
		}
	}
	if fi, err := os.Stat(filepath.Join(config, "mayfly", "login.json")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	s.run("certs", "list").check(t, 0)
	s.run("login", "--provider", "nobody").check(t, 2, "staff")
	s.run("login", "--forget").check(t, 0)
	s.run("certs", "list").check(t, 1, "not logged in")
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
