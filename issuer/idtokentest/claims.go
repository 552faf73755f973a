package idtokentest

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

// Default claims. Those for GitHub are from a published sample token, those for Fly
// from Fly's documentation.
const (
	flyOrganization = "example-org"
	gitSHA          = "b8962f4e2a1c0d9e8f7a6b5c4d3e2f1a0b9c8d7e"
)

// lifetimeOf returns exp - iat of tokens from the type's real provider.
func lifetimeOf(t idtoken.Type) time.Duration {
	switch t {
	case idtoken.GitHub:
		return 5 * time.Minute
	case idtoken.Fly:
		return 10 * time.Minute
	case idtoken.People:
		return time.Hour
	}
	return 24 * time.Hour
}

// SetDefaults overrides claims of all tokens minted from now on. It adds to earlier
// overrides; nil values remove claims.
func (p *Provider) SetDefaults(claims map[string]any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.Copy(p.defaults, claims)
}

// Mint returns a token of the default claims with overrides; nil values remove claims.
// Claims that follow from others (sub, workflow_ref, exp) follow the overrides too,
// unless they are overridden themselves.
func (p *Provider) Mint(overrides map[string]any) (string, error) {
	payload, err := encode(p.Claims(overrides))
	if err != nil {
		return "", err
	}
	return p.Sign(payload, nil)
}

// Claims returns the claims that Mint signs.
func (p *Provider) Claims(overrides map[string]any) map[string]any {
	p.mu.Lock()
	given := maps.Clone(p.defaults)
	p.mu.Unlock()
	maps.Copy(given, overrides)

	iat := time.Now().Unix()
	if n, ok := seconds(given["iat"]); ok {
		iat = n
	}
	out := map[string]any{
		"iss": p.issuer, "jti": newUUID(),
		"iat": iat, "nbf": iat, "exp": iat + int64(p.options.Lifetime/time.Second),
	}
	// value returns the final value of a claim, for claims that follow from it.
	value := func(name, otherwise string) string {
		if v, ok := given[name]; ok {
			s, _ := v.(string)
			return s
		}
		return otherwise
	}
	switch p.options.Type {
	case idtoken.GitHub:
		out["nbf"] = iat - 300
		githubClaims(out, value)
	case idtoken.Fly:
		flyClaims(out, value)
	case idtoken.People:
		email := value("email", "ops@example.com")
		maps.Copy(out, map[string]any{
			"aud": p.options.ClientID, "sub": "person-" + email, "email": email, "email_verified": true,
			"name": "Example Operator", "auth_time": iat,
		})
	default:
		maps.Copy(out, map[string]any{
			"aud": "mayfly:ci.example.com", "sub": "system:serviceaccount:builds:runner",
		})
	}
	maps.Copy(out, given)
	maps.DeleteFunc(out, func(_ string, v any) bool { return v == nil })
	return out
}

func seconds(v any) (int64, bool) {
	switch v := v.(type) {
	case int:
		return int64(v), true
	case int64:
		return v, true
	case float64:
		return int64(v), true
	case json.Number:
		n, err := v.Int64()
		return n, err == nil
	}
	return 0, false
}

func githubClaims(out map[string]any, value func(name, otherwise string) string) {
	repo := value("repository", "andreaso/actions-tester")
	owner, name, _ := strings.Cut(repo, "/")
	owner = value("repository_owner", owner)
	ownerID, repoID := value("repository_owner_id", "285964"), value("repository_id", "1339936803")
	ref, event := value("ref", "refs/heads/main"), value("event_name", "push")
	refType := "branch"
	if strings.HasPrefix(ref, "refs/tags/") {
		refType = "tag"
	}
	workflowRef := value("workflow_ref", repo+"/.github/workflows/ci.yml@"+ref)
	sha := value("sha", gitSHA)
	maps.Copy(out, map[string]any{
		"aud":        "https://github.com/" + owner,
		"sub":        githubSubject(owner, ownerID, name, repoID, ref, event, value("environment", "")),
		"repository": repo, "repository_id": repoID, "repository_owner": owner, "repository_owner_id": ownerID,
		"repository_visibility": "private", "workflow": "CI", "workflow_ref": workflowRef, "workflow_sha": sha,
		"job_workflow_ref": workflowRef, "job_workflow_sha": sha,
		"run_id": "32291736541", "run_number": "1", "run_attempt": "1", "check_run_id": "96193868770",
		"ref": ref, "ref_type": refType, "ref_protected": "false", "sha": sha,
		"head_ref": "", "base_ref": "", "event_name": event, "actor": owner, "actor_id": ownerID,
		"runner_environment": "github-hosted",
	})
}

// githubSubject returns sub in the immutable form, by GitHub's order: environment,
// pull request, ref.
func githubSubject(owner, ownerID, name, repoID, ref, event, environment string) string {
	repo := "repo:" + owner + "@" + ownerID + "/" + name + "@" + repoID
	switch {
	case environment != "":
		return repo + ":environment:" + strings.ReplaceAll(environment, ":", "%3A")
	case event == "pull_request":
		return repo + ":pull_request"
	}
	return repo + ":ref:" + strings.ReplaceAll(ref, ":", "%3A")
}

func flyClaims(out map[string]any, value func(name, otherwise string) string) {
	org, app := value("org_name", flyOrganization), value("app_name", "example-app")
	machine := value("machine_name", "example-machine")
	maps.Copy(out, map[string]any{
		"aud":    "https://fly.io/" + org,
		"sub":    org + ":" + app + ":" + machine,
		"org_id": "11111111", "org_name": org, "app_id": "22222222", "app_name": app,
		"machine_id": "148e21ea7e46e8", "machine_name": machine, "machine_version": "01HTGGC1TZ2JHK83J4AC0R3VET",
		"image": "docker-hub-mirror.fly.io/example/image:latest", "image_digest": "sha256:" + strings.Repeat("2c", 32),
		"region": "sea",
	})
}

// newUUID returns a random UUID (RFC 9562 section 5.4).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return fmt.Sprintf("%s-%s-%s-%s-%s", h[:8], h[8:12], h[12:16], h[16:20], h[20:])
}
