package main

import (
	"os/exec"
	"regexp"
	"strings"
)

// revision is what is being built, from CI's variables or from git.
type revision struct {
	sha  string // 40 hex digits; "" outside a repository
	ref  string // refs/heads/main
	url  string // where the source is, for the image's labels
	ci   bool
	main bool // on the main branch
}

func currentRevision(env func(string) string) revision {
	r := revision{sha: env("GITHUB_SHA"), ref: env("GITHUB_REF"), ci: env("GITHUB_ACTIONS") == "true"}
	if r.ci {
		r.url = strings.TrimSuffix(env("GITHUB_SERVER_URL"), "/") + "/" + env("GITHUB_REPOSITORY")
	} else {
		r.sha, r.ref = git("rev-parse", "HEAD"), git("symbolic-ref", "--quiet", "HEAD")
		r.url = git("remote", "get-url", "origin")
	}
	// A pull request's event may name any branch; only a push's ref is main.
	r.main = r.ref == "refs/heads/main"
	return r
}

func git(args ...string) string {
	out, err := exec.Command("git", args...).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

var notInTag = regexp.MustCompile(`[^A-Za-z0-9_.-]+`)

// tag is <ref>-<sha>: the branch or tag, and twelve digits of the commit, in the
// letters that an image tag may have (OCI distribution: 128 at most).
func (r revision) tag() string {
	ref := strings.TrimPrefix(strings.TrimPrefix(r.ref, "refs/heads/"), "refs/tags/")
	ref = strings.Trim(notInTag.ReplaceAllString(ref, "-"), "-.")
	if ref == "" {
		ref = "detached"
	}
	sha := r.sha
	if len(sha) > 12 {
		sha = sha[:12]
	}
	if sha == "" {
		sha = "unknown"
	}
	if len(ref) > 100 {
		ref = ref[:100]
	}
	return ref + "-" + sha
}
