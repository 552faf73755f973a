package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rhysd/actionlint"
	"go.yaml.in/yaml/v3"
)

// workflow holds the parts of a workflow that the tests check; actionlint checks
// the rest.
type workflow struct {
	Permissions map[string]string `yaml:"permissions"`
	Jobs        map[string]struct {
		TimeoutMinutes int               `yaml:"timeout-minutes"`
		Permissions    map[string]string `yaml:"permissions"`
		Steps          []struct {
			Uses string            `yaml:"uses"`
			Run  string            `yaml:"run"`
			With map[string]string `yaml:"with"`
		} `yaml:"steps"`
	} `yaml:"jobs"`
}

func readWorkflows(t *testing.T) map[string]workflow {
	t.Helper()
	files, err := filepath.Glob("../.github/workflows/*.yml")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]workflow{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var w workflow
		if err := yaml.Unmarshal(data, &w); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all[strings.TrimSuffix(filepath.Base(file), ".yml")] = w
	}
	return all
}

// TestWorkflowsLint runs actionlint on every workflow, and so on the metadata of
// this repository's actions that they use.
func TestWorkflowsLint(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../.github/workflows/*.yml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no workflows: %v", err)
	}
	linter, err := actionlint.NewLinter(io.Discard, &actionlint.LinterOptions{WorkingDir: root})
	if err != nil {
		t.Fatal(err)
	}
	found, err := linter.LintFiles(files, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range found {
		t.Errorf("actionlint: %v", e)
	}
}

// TestWorkflowPermissions lists all permissions of all jobs. Another permission
// needs a change of this test.
func TestWorkflowPermissions(t *testing.T) {
	t.Parallel()
	got := map[string]map[string]string{}
	for name, w := range readWorkflows(t) {
		if w.Permissions == nil || len(w.Permissions) != 0 {
			t.Errorf("%s: permissions are each job's own: permissions: {}", name)
		}
		for job, j := range w.Jobs {
			got[name+"/"+job] = j.Permissions
			if j.TimeoutMinutes == 0 || j.TimeoutMinutes > 60 {
				t.Errorf("%s/%s: a job that hangs ends within the hour: timeout-minutes", name, job)
			}
		}
	}
	want := map[string]map[string]string{
		"ci/test":           {"contents": "read"},
		"pipeline/pipeline": {"contents": "read", "id-token": "write", "packages": "write"},
		"release/binaries":  {"contents": "write", "id-token": "write", "attestations": "write"},
		"release/image":     {"contents": "read", "id-token": "write", "attestations": "write", "packages": "write"},
		"release/publish":   {"contents": "write"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("permissions differ:\n%s", diff)
	}
}

var pinned = regexp.MustCompile(`uses: (\S+)@[0-9a-f]{40} # v\d+\.\d+\.\d+\n`)

// TestWorkflowActionsArePinned: each action is pinned to a commit, with its version
// in a comment. There is one commit per version. A checkout keeps no credentials.
func TestWorkflowActionsArePinned(t *testing.T) {
	t.Parallel()
	commits := map[string]string{}
	for name, w := range readWorkflows(t) {
		data, err := os.ReadFile("../.github/workflows/" + name + ".yml")
		if err != nil {
			t.Fatal(err)
		}
		uses := 0
		for job, j := range w.Jobs {
			for _, s := range j.Steps {
				action, commit, _ := strings.Cut(s.Uses, "@")
				if action == "" {
					continue
				}
				uses++
				if before, ok := commits[action]; ok && before != commit {
					t.Errorf("%s is pinned to %s and to %s", action, before, commit)
				}
				commits[action] = commit
				if action == "actions/checkout" && s.With["persist-credentials"] != "false" {
					t.Errorf("%s/%s: the checkout keeps its token on disk: persist-credentials: false", name, job)
				}
			}
		}
		if got := len(pinned.FindAll(data, -1)); got != uses {
			t.Errorf("%s: %d of its %d actions are pinned as uses: NAME@COMMIT # vX.Y.Z", name, got, uses)
		}
	}
}

// TestWorkflowCommands parses the workflows' commands of this program.
func TestWorkflowCommands(t *testing.T) {
	t.Parallel()
	want := map[string]string{"pipeline/pipeline": "all", "release/image": "publish"}
	env := environment("PIPELINE_IMAGE", "ghcr.io/o/r", "PIPELINE_REGISTRY_USER", "u", "PIPELINE_REGISTRY_PASSWORD", "env:REGISTRY_TOKEN", "PIPELINE_FLY_APP", "a")
	got := map[string]string{}
	for name, w := range readWorkflows(t) {
		for job, j := range w.Jobs {
			for _, s := range j.Steps {
				args, ok := strings.CutPrefix(s.Run, "go run ./pipeline ")
				if !ok {
					continue
				}
				o, err := parse(strings.Fields(strings.ReplaceAll(args, `"$GITHUB_REF_NAME"`, "v1.2.3")), env)
				if err != nil {
					t.Errorf("%s/%s: %v", name, job, err)
				}
				got[name+"/"+job] = o.command
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestReleaseScript makes a release of this checkout's commit, for one platform, in
// a clone that has the tag. It compares the names, sums and versions with the
// action and the README. A dirty clone makes no release.
func TestReleaseScript(t *testing.T) {
	t.Parallel()
	if _, err := exec.Command("git", "rev-parse", "HEAD").Output(); err != nil {
		if os.Getenv("MAYFLY_TEST_REQUIRE") == "all" {
			t.Fatal("a release wants git and a clone")
		}
		t.Skip("a release wants git and a clone: run the test in one")
	}
	const version = "v1.98.7"
	clone, dist := filepath.Join(t.TempDir(), "clone"), filepath.Join(t.TempDir(), "dist")
	command(t, "..", "git", "clone", "--quiet", "--no-hardlinks", ".", clone)
	for _, file := range []string{".github/release.sh", "client/action/release.sh"} { // the working files, committed or not
		data, err := os.ReadFile("../" + file)
		if err != nil {
			t.Fatal(err)
		}
		if file == ".github/release.sh" && !(strings.Contains(string(data), sbomTool) && strings.Contains(string(data), "-tags "+releaseTags+" ")) {
			t.Errorf("%s builds otherwise than the pipeline, which wants %s and -tags %s", file, sbomTool, releaseTags)
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(clone, file)), 0o755), os.WriteFile(filepath.Join(clone, file), data, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	command(t, clone, "git", "add", "--all")
	command(t, clone, "git", "-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "--quiet", "--allow-empty", "--message", "release")
	command(t, clone, "git", "tag", version)
	platform := "linux/" + runtime.GOARCH
	command(t, clone, ".github/release.sh", version, dist, platform)

	suffix := "_" + version + "_linux_" + runtime.GOARCH
	want := []string{"SHA256SUMS"}
	for _, program := range []string{"mayfly", "mayfly-issuer", "mayfly-sidecar"} {
		file := program + suffix
		want = append(want, file, file+".cdx.json", program+".1")
		checkSBOM(t, filepath.Join(dist, file), filepath.Join(dist, file+".cdx.json"), version)
	}
	entries, err := os.ReadDir(dist)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("a release holds other files:\n%s", diff)
	}
	if said := command(t, dist, "sha256sum", "--check", "SHA256SUMS"); strings.Count(said, ": OK") != 9 {
		t.Errorf("SHA256SUMS: %s", said)
	}
	for _, program := range []string{"mayfly", "mayfly-issuer", "mayfly-sidecar"} {
		page, err := os.ReadFile(filepath.Join(dist, program+".1"))
		if title := ".TH \"" + strings.ReplaceAll(strings.ToUpper(program), "-", `\-`) + "\" \"1\" \"\" \"" + strings.ReplaceAll(program+" "+version, "-", `\-`); err != nil || !strings.HasPrefix(string(page), title) {
			t.Errorf("%s.1: %v %.80q, want %q", program, err, page, title)
		}
	}
	if runtime.GOOS == "linux" {
		for _, program := range []string{"mayfly", "mayfly-issuer", "mayfly-sidecar"} {
			if said := command(t, dist, "./"+program+suffix, "version"); !strings.HasPrefix(said, program+" "+version+"\n") {
				t.Errorf("%s version: %q", program, said)
			}
		}
	}

	twice := exec.Command(".github/release.sh", version, dist, platform)
	twice.Dir = clone
	if out, err := twice.CombinedOutput(); err == nil || !bytes.Contains(out, []byte("is not empty")) {
		t.Errorf("what lay about is released: %v\n%s", err, out)
	}

	if err := os.WriteFile(filepath.Join(clone, "README.md"), []byte("changed"), 0o600); err != nil {
		t.Fatal(err)
	}
	dirty := exec.Command(".github/release.sh", version, filepath.Join(t.TempDir(), "dirty"), platform)
	dirty.Dir = clone
	if out, err := dirty.CombinedOutput(); err == nil || !bytes.Contains(out, []byte("has to be clean")) {
		t.Errorf("a dirty checkout is released: %v\n%s", err, out)
	}
}

// TestReleaseSteps: published files were pinned, summed and attested before. The
// tag of the major version moves afterwards.
func TestReleaseSteps(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../.github/workflows/release.yml")
	if err != nil {
		t.Fatal(err)
	}
	at := 0
	for _, step := range []string{
		`.github/release.sh "$GITHUB_REF_NAME" dist`, `pin.js --check "$GITHUB_REF_NAME" dist`, "subject-checksums: dist/SHA256SUMS",
		`gh release create "$GITHUB_REF_NAME" --draft`, "needs: image", `gh release edit "$GITHUB_REF_NAME" --draft=false`, `.github/major-tag.sh "$GITHUB_REF_NAME"`,
	} {
		i := bytes.Index(data[at:], []byte(step))
		if i < 0 {
			t.Fatalf("release.yml lacks %q, or has it too early", step)
		}
		at += i
	}
}

// TestMajorTag: the tag v1 is the newest release of v1.
func TestMajorTag(t *testing.T) {
	t.Parallel()
	script, err := filepath.Abs("../.github/major-tag.sh")
	if err != nil {
		t.Fatal(err)
	}
	remote, clone := filepath.Join(t.TempDir(), "remote"), filepath.Join(t.TempDir(), "clone")
	command(t, ".", "git", "init", "--quiet", "--bare", remote)
	command(t, ".", "git", "clone", "--quiet", remote, clone)
	release := func(version string) string {
		command(t, clone, "git", "-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "--quiet", "--allow-empty", "--message", version)
		command(t, clone, "git", "-c", "user.name=test", "-c", "user.email=test@example.com", "tag", "--annotate", "--message", version, version)
		command(t, clone, script, version)
		return command(t, clone, "git", "rev-parse", "HEAD")
	}
	major := func(name string) string {
		return command(t, remote, "git", "for-each-ref", "--format=%(objectname)", "refs/tags/"+name)
	}
	for _, tt := range []struct {
		version string
		moves   bool
	}{
		{"v1.9.0", true}, {"v1.10.0-rc.1", false}, {"v1.10.0", true}, {"v1.9.1", false}, {"v2.0.0-rc.1", false}, {"v1.10.1", true}, {"v2.0.0", true},
	} {
		name, _, _ := strings.Cut(tt.version, ".")
		before := major(name)
		want := release(tt.version)
		if !tt.moves {
			want = before
		}
		if got := major(name); got != want {
			t.Errorf("after %s, %s is %q, want %q", tt.version, name, got, want)
		}
	}
}

// command runs a program and returns its standard output.
func command(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, said.String())
	}
	return string(out)
}
