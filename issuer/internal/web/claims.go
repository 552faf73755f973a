package web

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"
)

// claim is one line of a token: its name, its label if it has one, and its value for
// people to read. For a time, At is set instead of Value.
type claim struct {
	Name, Means, Value string
	At                 time.Time
}

// claimsOf returns a token's claims in their order, with values as JSON.
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

// meanings lists the claims that identify the subject, with labels and in the order of
// display: those of GitHub, Fly, GitLab and logins.
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

// inWords splits the claims into those in meanings and the rest. Empty claims belong
// to the rest.
func inWords(all []claim) (said, rest []claim) {
	byName := make(map[string]claim, len(all))
	for _, c := range all {
		byName[c.Name] = c
	}
	shown := make(map[string]bool)
	for _, m := range meanings {
		c, ok := byName[m.name]
		at := timeOf(c)
		if text := readable(c.Value); ok && (text != "" || !at.IsZero()) {
			said = append(said, claim{m.name, m.means, text, at})
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

// readable returns a claim's JSON value for people: a string without quotes.
func readable(value string) string {
	var text string
	if json.Unmarshal([]byte(value), &text) == nil {
		return text
	}
	return value
}

// timeOf returns the time that a claim holds, or zero.
func timeOf(c claim) time.Time {
	if c.Name != "iat" && c.Name != "exp" {
		return time.Time{}
	}
	n, err := strconv.ParseInt(c.Value, 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.Unix(n, 0).UTC()
}
