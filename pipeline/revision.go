package main

import (
	"net/url"
	"os/exec"
	"regexp"
	"strings"
)

// revision is what is being built, from CI's variables or from git.
type revision struct {
	sha  string // 40 hex digits; "" outside a repository
	ref  string // refs/heads/main
	url  string // URL of the source, for the image's labels; no user, no query
	ci   bool
	main bool // on the main branch
}

func currentRevision(env func(string) string) revision {
	r := revision{sha: env("GITHUB_SHA"), ref: env("GITHUB_REF"), ci: env("GITHUB_ACTIONS") == "true"}
	if r.ci {
		r.url = sourceURL(strings.TrimSuffix(env("GITHUB_SERVER_URL"), "/") + "/" + env("GITHUB_REPOSITORY"))
	} else {
		r.sha, r.ref = git("rev-parse", "HEAD"), git("symbolic-ref", "--quiet", "HEAD")
		r.url = sourceURL(git("remote", "get-url", "origin"))
	}
	// A pull request's event may name any branch; only a push's ref is main.
	r.main = r.ref == "refs/heads/main"
	return r
}

// sourceURL returns the public form of a git remote: scheme, host, port and path.
// CI systems write a token before the host (GitLab: gitlab-ci-token:TOKEN@), so
// user and query are dropped. The scp form user@host:path becomes ssh://host/path.
// It returns "" for a path on this machine and for anything that it cannot parse.
func sourceURL(remote string) string {
	if !strings.Contains(remote, "://") {
		host, path, _ := strings.Cut(remote, ":")
		host = host[strings.LastIndex(host, "@")+1:]
		if path == "" || len(host) < 2 || strings.Contains(host, "/") || strings.ContainsAny(path, ":@") { // a path, or not a form that git accepts
			return ""
		}
		remote = "ssh://" + host + "/" + strings.TrimPrefix(path, "/")
	}
	u, err := url.Parse(remote)
	if err != nil || u.Host == "" {
		return ""
	}
	switch u.Scheme {
	case "https", "http", "ssh", "git":
		return withoutSecrets(remote)
	}
	return ""
}

// withoutSecrets returns a URL without the parts that may be secret: user, query
// and fragment. If the URL cannot be parsed, none of it is shown.
func withoutSecrets(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "(not a URL)"
	}
	u.User, u.RawQuery, u.ForceQuery, u.Fragment = nil, "", false, ""
	return u.String()
}

func git(args ...string) string {
	out, err := exec.Command("git", args...).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

var notInTag = regexp.MustCompile(`[^A-Za-z0-9_.-]+`)

// tag returns <ref>-<sha>: the branch or tag, and twelve digits of the commit, in
// the letters that an image tag may have (OCI distribution: at most 128).
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
