package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestSourceURL(t *testing.T) {
	t.Parallel()
	for remote, want := range map[string]string{
		"https://github.com/octo/app.git":                                 "https://github.com/octo/app.git",
		"https://gitlab-ci-token:hunter2@gitlab.example/octo/app.git":     "https://gitlab.example/octo/app.git",
		"https://hunter2@github.com/octo/app":                             "https://github.com/octo/app",
		"https://git.example:8443/octo/app?private_token=hunter2#hunter2": "https://git.example:8443/octo/app",
		"http://x:hunter2@127.0.0.1:3000/octo/app.git":                    "http://127.0.0.1:3000/octo/app.git",
		"ssh://git:hunter2@git.example:2222/octo/app.git":                 "ssh://git.example:2222/octo/app.git",
		"git@github.com:octo/app.git":                                     "ssh://github.com/octo/app.git",
		"hunter2@git.example:/srv/app.git":                                "ssh://git.example/srv/app.git",
		"github.com:octo/app.git":                                         "ssh://github.com/octo/app.git",
		"git@git.example:octo/app.git?token=hunter2":                      "ssh://git.example/octo/app.git",
		"https://x:hunter2%zz@git.example/octo/app":                       "", // not a URL
		"https:x:hunter2@git.example/octo/app":                            "",
		"ext::sh -c hunter2":                                              "",
		"/home/ann/app.git":                                               "", // a path on this machine
		"../app":                                                          "",
		"file:///home/ann/app.git":                                        "",
		`C:\Users\ann\app`:                                                "",
		"./a:b/app":                                                       "",
		"":                                                                "",
		"codecommit::eu-west-1://hunter2@app":                             "",
		"https://user:hunter2@[2001:db8::1]:8443/octo/app":                "https://[2001:db8::1]:8443/octo/app",
		"git://git.example/octo/app.git":                                  "git://git.example/octo/app.git",
	} {
		if got := sourceURL(remote); got != want {
			t.Errorf("sourceURL(%q) = %q, want %q", remote, got, want)
		}
	}
}

// TestSourceOfRepository also uses git itself, which applies url.<base>.insteadOf.
func TestSourceOfRepository(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{
		{"init", "-q", dir},
		{"-C", dir, "remote", "add", "origin", "https://git.example/octo/app.git"},
		{"-C", dir, "config", "url.https://ci:hunter2@git.example/.insteadOf", "https://git.example/"},
	} {
		if out, err := exec.Command("git", args...).CombinedOutput(); err != nil {
			t.Fatalf("git %q: %v\n%s", args, err, out)
		}
	}
	t.Chdir(dir)
	if got := git("remote", "get-url", "origin"); !strings.Contains(got, "hunter2") {
		t.Fatalf("git answers %q, without the token: this test shows nothing", got)
	}
	const want = "https://git.example/octo/app.git"
	p := &pipeline{revision: currentRevision(environment())}
	if got := p.labels()["org.opencontainers.image.source"]; got != want {
		t.Errorf("label source = %q, want %q", got, want)
	}
	p.revision = currentRevision(environment("GITHUB_ACTIONS", "true", "GITHUB_SERVER_URL", "https://x:hunter2@git.example/", "GITHUB_REPOSITORY", "octo/app.git"))
	if got := p.labels()["org.opencontainers.image.source"]; got != want {
		t.Errorf("label source in GitHub Actions = %q, want %q", got, want)
	}
	if got, ok := (&pipeline{revision: currentRevision(environment("GITHUB_ACTIONS", "true"))}).labels()["org.opencontainers.image.source"]; ok {
		t.Errorf("label source without a repository = %q, want none", got)
	}
}

// TestPlanShowsNoSecret checks the addresses in the first lines of the log.
func TestPlanShowsNoSecret(t *testing.T) {
	t.Parallel()
	nowhere := filepath.Join(t.TempDir(), "engine.sock")
	for _, o := range []options{
		{runnerHost: "tcp://x:hunter2@127.0.0.1:8080?token=hunter2"},
		{issuer: "https://x:hunter2@issuer.example?token=hunter2"},
		{runnerHost: "tcp://x:hunter2%zz@127.0.0.1:8080"},
	} {
		if got := describeEngine(o); strings.Contains(got, "hunter2") {
			t.Errorf("the log shows the password: %s", got)
		}
	}
	if got := describeEngine(options{runnerHost: "unix://" + nowhere}); !strings.Contains(got, nowhere) {
		t.Errorf("the log does not show the socket: %s", got)
	}
}
