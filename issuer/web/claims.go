package web

import (
	"encoding/json"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// claim is one line of a token: its name, what that means where it is known,
// and its value as people read it.
type claim struct{ Name, Means, Value string }

// claimsOf lists a token's claims in their order, values as JSON.
func claimsOf(raw json.RawMessage) []claim {
	dec := json.NewDecoder(strings.NewReader(string(raw)))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil
	}
	var out []claim
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return out
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return out
		}
		text, _ := name.(string) // a key is a string
		out = append(out, claim{Name: text, Value: string(v)})
	}
	return out
}

// meanings are the claims that tell who somebody is, in the order in which
// people ask: those of GitHub, of Fly, of GitLab and of logins.
var meanings = []struct{ name, means string }{
	{"repository", "Repository"}, {"repository_id", "Repository id"}, {"repository_owner_id", "Owner id"}, {"repository_visibility", "Visibility"},
	{"project_path", "Project"}, {"project_id", "Project id"},
	{"ref", "Ref"}, {"head_ref", "From branch"}, {"base_ref", "Into branch"}, {"sha", "Commit"}, {"event_name", "Started by event"}, {"environment", "Environment"},
	{"workflow", "Workflow"}, {"workflow_ref", "Workflow file"}, {"job_workflow_ref", "Job's workflow file"},
	{"run_id", "Run"}, {"run_number", "Run number"}, {"run_attempt", "Attempt"}, {"actor", "Actor"}, {"actor_id", "Actor id"}, {"runner_environment", "Runner"},
	{"org_name", "Organization"}, {"org_id", "Organization id"}, {"app_name", "App"}, {"app_id", "App id"}, {"machine_name", "Machine"}, {"machine_id", "Machine id"},
	{"region", "Region"}, {"image", "Image"}, {"image_digest", "Image digest"},
	{"email", "E-mail"}, {"name", "Name"}, {"sub", "Subject"}, {"iat", "Token issued"}, {"exp", "Token ended"},
}

// inWords parts the claims into those that people ask for and the rest.
// Empty ones tell nothing and are among the rest.
func inWords(all []claim) (said, rest []claim) {
	byName := make(map[string]claim, len(all))
	for _, c := range all {
		byName[c.Name] = c
	}
	shown := make(map[string]bool)
	for _, m := range meanings {
		c, ok := byName[m.name]
		if text := readable(m.name, c.Value); ok && text != "" {
			said = append(said, claim{m.name, m.means, text})
			shown[m.name] = true
		}
	}
	for _, c := range all {
		if !shown[c.Name] {
			rest = append(rest, c)
		}
	}
	return said, rest
}

// readable writes a claim's JSON for people: strings bare, times as dates.
func readable(name, value string) string {
	var text string
	if json.Unmarshal([]byte(value), &text) == nil {
		return text
	}
	if name == "iat" || name == "exp" {
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			return time.Unix(n, 0).UTC().Format("2006-01-02 15:04:05 UTC")
		}
	}
	return value
}

// githubIssuer is the one whose runs are at github.com.
const githubIssuer = "https://token.actions.githubusercontent.com"

// runURL is where GitHub shows the run, "" for others. Its parts were signed by
// GitHub, and are still held to the form of a link on that site.
func runURL(c *wire.CertificateDetail) string {
	if c.TokenIssuer != githubIssuer || c.Repository == "" || strings.Trim(c.RunID, "0123456789") != "" || c.RunID == "" {
		return ""
	}
	owner, name, ok := strings.Cut(c.Repository, "/")
	if !ok || strings.Contains(name, "/") {
		return ""
	}
	return "https://github.com/" + url.PathEscape(owner) + "/" + url.PathEscape(name) + "/actions/runs/" + c.RunID
}
