package main

import (
	"bytes"
	"strings"
	"testing"
)

func environment(kv ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(kv); i += 2 {
			if kv[i] == name {
				return kv[i+1]
			}
		}
		return ""
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		args []string
		env  []string
		err  string // "" if parsing must succeed
	}{
		{name: "nothing builds"},
		{name: "flags on both sides", args: []string{"--out", "x", "publish", "--image", "localhost:5000/mayfly"}},
		{name: "image from the environment", args: []string{"publish"}, env: []string{"PIPELINE_IMAGE", "ghcr.io/o/r"}},
		{name: "unknown step", args: []string{"ship"}, err: `"ship" is none of`},
		{name: "two steps", args: []string{"build", "test"}, err: "one step at a time"},
		{name: "publish where", args: []string{"publish"}, err: "wants --image"},
		{name: "image with a tag", args: []string{"publish", "--image", "ghcr.io/o/r:latest"}, err: "without tag"},
		{name: "image with a digest", args: []string{"publish", "--image", "ghcr.io/o/r@sha256:00"}, err: "without tag"},
		{name: "a release's tag", args: []string{"publish", "--image", "ghcr.io/o/r", "--tag", "v1.2.3-rc.1"}},
		{name: "latest by hand", args: []string{"publish", "--image", "ghcr.io/o/r", "--tag", "latest"}, err: "which main has"},
		{name: "no tag", args: []string{"publish", "--image", "ghcr.io/o/r", "--tag", "a/b"}, err: "not a tag"},
		{name: "deploy what", args: []string{"deploy", "--image", "ghcr.io/o/r"}, err: "wants --fly-app"},
		{name: "password on the command line", args: []string{"publish", "--image", "ghcr.io/o/r", "--registry-user", "u", "--registry-password", "hunter2"}, err: "none of env:NAME"},
		{name: "password without user", args: []string{"publish", "--image", "ghcr.io/o/r", "--registry-password", "env:P"}, err: "wants --registry-user"},
		{name: "password by name", args: []string{"publish", "--image", "ghcr.io/o/r", "--registry-user", "u", "--registry-password", "env:P"}},
		{name: "platform", args: []string{"--platforms", "windows/amd64"}, err: "no linux/ARCH"},
		{name: "builder", args: []string{"--builder", "make"}, err: "neither go nor bazel"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, err := parse(tc.args, environment(tc.env...))
			switch {
			case tc.err == "" && err != nil:
				t.Fatalf("parse: %v", err)
			case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
				t.Fatalf("parse: %v, want %q", err, tc.err)
			case err != nil && strings.Contains(err.Error(), "hunter2"):
				t.Fatalf("the error tells the password: %v", err)
			}
		})
	}
}

func TestRegistry(t *testing.T) {
	t.Parallel()
	for image, want := range map[string]string{
		"ghcr.io/o/r": "ghcr.io", "localhost:5000/r": "localhost:5000", "localhost/r": "localhost", "o/r": "docker.io", "r": "docker.io",
	} {
		if got := (options{image: image}).registry(); got != want {
			t.Errorf("registry of %q = %q, want %q", image, got, want)
		}
	}
}

func TestTag(t *testing.T) {
	t.Parallel()
	const sha = "0123456789abcdef0123456789abcdef01234567"
	for _, tc := range []struct{ ref, sha, want string }{
		{"refs/heads/main", sha, "main-0123456789ab"},
		{"refs/heads/feature/a b", sha, "feature-a-b-0123456789ab"},
		{"refs/tags/v1.2.3", sha, "v1.2.3-0123456789ab"},
		{"", "", "detached-unknown"},
		{"refs/heads/" + strings.Repeat("x", 300), sha, strings.Repeat("x", 100) + "-0123456789ab"},
	} {
		if got := (revision{ref: tc.ref, sha: tc.sha}).tag(); got != tc.want {
			t.Errorf("tag of %q = %q, want %q", tc.ref, got, tc.want)
		}
	}
}

func TestLatestOnMainOnly(t *testing.T) {
	t.Parallel()
	o := options{image: "ghcr.io/o/r"}
	if got := tags(o, revision{ref: "refs/heads/main", main: true}); len(got) != 2 || got[1] != "ghcr.io/o/r:latest" {
		t.Errorf("on main: %q", got)
	}
	if got := tags(o, revision{ref: "refs/heads/other"}); len(got) != 1 || strings.HasSuffix(got[0], ":latest") {
		t.Errorf("elsewhere: %q", got)
	}
	o.tag = "v1.2.3"
	if got := tags(o, revision{ref: "refs/tags/v1.2.3"}); len(got) != 2 || got[1] != "ghcr.io/o/r:v1.2.3" {
		t.Errorf("a release: %q", got)
	}
}

func TestDeployOnMainOnly(t *testing.T) {
	t.Parallel()
	deploy := options{command: "deploy", builder: "go", image: "ghcr.io/o/r", flyApp: "a"}
	if err := (plan{options: deploy, revision: revision{ref: "refs/heads/main", main: true}}).allowed(); err != nil {
		t.Errorf("on main: %v", err)
	}
	for _, ref := range []string{"refs/heads/main2", "refs/tags/main", "refs/pull/1/merge", ""} {
		r := currentRevision(environment("GITHUB_ACTIONS", "true", "GITHUB_REF", ref))
		if err := (plan{options: deploy, revision: r}).allowed(); err == nil {
			t.Errorf("deploy from %q is allowed", ref)
		}
	}
}

func TestPlanIsWholeAndDry(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	o, err := parse([]string{"all", "--image", "ghcr.io/o/r", "--fly-app", "a", "--dry-run", "--runner-host", "unix:///run/e.sock"}, environment())
	if err != nil {
		t.Fatal(err)
	}
	planFor(o).print(&out)
	for _, want := range []string{"1. build:", "2. test:", "3. publish:", "4. deploy:", "unix:///run/e.sock"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("plan lacks %q:\n%s", want, out.String())
		}
	}
}
