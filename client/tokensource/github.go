package tokensource

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
)

const githubHint = `give the job the permission to ask for ID tokens, in the workflow file:
  permissions:
    id-token: write
    contents: read   # naming one permission drops the others`

const forkHint = `GitHub gives no ID token to pull requests from forks (nor to Dependabot's), whatever the permissions say.
Run the build on push or merge_group, or after a maintainer has pushed the branch to this repository.`

// GitHubActions returns the source of a GitHub Actions job, from its environment
// variables. The hint of its error says what to write into the workflow file.
func GitHubActions() (Source, error) {
	g, err := newGitHub(os.Getenv("ACTIONS_ID_TOKEN_REQUEST_URL"), os.Getenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN"))
	if err == nil {
		return g, nil
	}
	hint := githubHint
	if fromFork() {
		hint = forkHint
	}
	return nil, &Error{Source: githubName, Hint: hint, Err: err}
}

const githubName = "GitHub Actions"

type github struct {
	url   *url.URL
	token string
	// client and http1 reuse no connections.
	client, http1 *http.Client
}

func newGitHub(rawURL, token string) (*github, error) {
	if rawURL == "" || token == "" {
		return nil, errors.New("the job has no ACTIONS_ID_TOKEN_REQUEST_URL and ACTIONS_ID_TOKEN_REQUEST_TOKEN")
	}
	u, err := url.Parse(rawURL)
	if err != nil || u.Host == "" || u.User != nil || !(u.Scheme == "https" || u.Scheme == "http" && loopback(u.Hostname())) {
		return nil, errors.New("ACTIONS_ID_TOKEN_REQUEST_URL is not an https URL")
	}
	g := &github{url: u, token: token}
	g.client, g.http1 = newHTTPS()
	return g, nil
}

func (g *github) String() string { return githubName }

func (g *github) Token(ctx context.Context, audience string) (string, error) {
	if err := CheckAudience(audience); err != nil {
		return "", &Error{Source: githubName, Err: err}
	}
	f := fetcher{
		client:   g.client,
		fallback: g.http1,
		request: func(ctx context.Context) (*http.Request, error) {
			u := *g.url
			q := u.Query()
			q.Set("audience", audience)
			u.RawQuery = q.Encode()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
			if err != nil {
				return nil, errors.New("build request")
			}
			req.Header.Set("Authorization", "bearer "+g.token)
			req.Header.Set("Accept", "application/json")
			req.Header.Set("User-Agent", "mayfly")
			return req, nil
		},
		parse: parseGitHub,
		retry: func(status int, body []byte) bool {
			return status == http.StatusForbidden && notYet(body)
		},
	}
	token, err := f.fetch(ctx)
	if err != nil {
		return "", &Error{Source: githubName, Hint: g.hint(err), Temporary: temporary(err), Err: err}
	}
	return token, nil
}

// hint returns the remedy for errors that have a known one.
func (g *github) hint(err error) string {
	var status *statusError
	if !errors.As(err, &status) {
		return ""
	}
	switch {
	case status.Status == http.StatusForbidden && notYet([]byte(status.Body)):
		return "GitHub still counts the job as not started; run it again"
	case status.Status == http.StatusUnauthorized, status.Status == http.StatusForbidden:
		if fromFork() {
			return forkHint
		}
		return "GitHub refused the job's request token, which ends with its job; where the permission is missing, " + githubHint
	case isTransient(status.Status):
		return "GitHub's token service is failing: see https://www.githubstatus.com"
	}
	return ""
}

// notYet reports whether body is of the transient 403: "Can't issue ID_TOKEN for
// job in 'Pending' state" (aws-actions/configure-aws-credentials#469), or 'Delayed'.
func notYet(body []byte) bool {
	return bytes.Contains(body, []byte("Pending")) || bytes.Contains(body, []byte("Delayed"))
}

func parseGitHub(body []byte) (string, error) {
	var answer struct {
		Value string `json:"value"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return "", errors.New("the answer is not JSON with a token")
	}
	if err := checkToken(answer.Value); err != nil {
		return "", err
	}
	return answer.Value, nil
}

// fromFork reports whether the job runs for a pull request for which GitHub issues
// no token: one from a fork, or Dependabot's.
func fromFork() bool {
	if !strings.HasPrefix(os.Getenv("GITHUB_EVENT_NAME"), "pull_request") {
		return false
	}
	if os.Getenv("GITHUB_ACTOR") == "dependabot[bot]" {
		return true
	}
	f, err := os.Open(os.Getenv("GITHUB_EVENT_PATH"))
	if err != nil {
		return false
	}
	defer f.Close()
	var event struct {
		PullRequest struct {
			Head, Base struct {
				Repo struct {
					FullName string `json:"full_name"`
				}
			}
		} `json:"pull_request"`
	}
	const maxEvent = 25 << 20 // GitHub caps a payload at 25 MB
	if err := json.NewDecoder(io.LimitReader(f, maxEvent)).Decode(&event); err != nil {
		return false
	}
	head, base := event.PullRequest.Head.Repo.FullName, event.PullRequest.Base.Repo.FullName
	return base != "" && head != base
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
