package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/mayfly-ca/mayfly/client/tokensource"
)

type policyCommands struct {
	Suggest suggestCommand `cmd:"" help:"Print the rule that would admit this job."`
}

type suggestCommand struct {
	Engine string `help:"Name of the engine that the rule grants." env:"MAYFLY_ENGINE" default:"default" placeholder:"NAME"`
	Name   string `help:"Name of the rule. Default: from the repository and the ref." placeholder:"NAME"`
}

func (suggestCommand) Help() string {
	return `Run it in the job, or wherever the token comes from: it reads the claims of a token of its own, and prints the rule, in the policy file's form, that admits exactly this repository, ref and event. Nobody knows the numeric ids by heart.

The token is sent nowhere, and its claims are not verified: what is printed is a proposal for the person who owns the policy.`
}

// suggestAudience is the audience of the token if none is given. No issuer
// accepts such a token.
const suggestAudience = tokensource.AudiencePrefix + "policy-suggest"

// Run prints the rule.
func (c *suggestCommand) Run(ctx context.Context, p *program) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	source, err := p.source()
	if err != nil {
		return err
	}
	audience := p.Audience
	if audience == "" {
		audience = suggestAudience
	}
	token, err := source.Token(ctx, audience)
	if err != nil {
		return err
	}
	claims, err := readClaims(token)
	_, claims.person = source.(tokensource.LoginSource)
	if err != nil {
		return failf(exitFailed, "name a source of ID tokens with --token-source", "what %s gave is no ID token: %w", source, err)
	}
	s, err := suggest(claims, c.Name, c.Engine)
	if err != nil {
		return failf(exitFailed, "write the rule by hand from the claims that `mayfly doctor` shows", "%w", err)
	}
	if p.JSON {
		p.json(s)
		return nil
	}
	p.printf("%s", s.yaml())
	return nil
}

// suggestion is one rule in the policy file's form.
type suggestion struct {
	Name     string           `json:"name"`
	Provider string           `json:"provider"`
	Issuer   string           `json:"issuer"`
	Type     string           `json:"type"`
	ClientID string           `json:"client_id,omitempty"` // of type people
	Match    []suggestedClaim `json:"match"`
	Engine   string           `json:"engine"`
	Profile  string           `json:"profile"`
	DNS      bool             `json:"-"` // profile server needs the engine's DNS name
	Remarks  []string         `json:"remarks,omitempty"`
}

type suggestedClaim struct {
	Claim string          `json:"claim"`
	Value json.RawMessage `json:"value"`
}

// suggest makes the rule for a token's claims, according to the kind of issuer.
func suggest(c claimSet, name, engine string) (*suggestion, error) {
	s := &suggestion{Name: name, Issuer: c.text("iss"), Engine: engine, Profile: "client"}
	var keys []string
	switch {
	case s.Issuer == "":
		return nil, fmt.Errorf("the token has no issuer")
	case c.text("repository_id") != "" && c.text("repository_owner_id") != "":
		s.Provider, s.Type = "github", "github"
		keys = []string{"repository_owner_id", "repository_id", "ref", "event_name"}
		s.Remarks = githubRemarks(c)
		s.defaultName(c.text("repository") + "-" + c.text("ref"))
	case strings.HasPrefix(s.Issuer, "https://oidc.fly.io/"), c.text("app_id") != "" && c.text("machine_id") != "":
		s.Provider, s.Type, s.Profile, s.DNS = "fly", "fly", "server", true
		keys = []string{"org_id", "app_id"}
		s.Remarks = []string{"app " + c.text("app_name") + " of organisation " + c.text("org_name") + ", as an engine"}
		s.defaultName("engine-" + c.text("app_name"))
	case c.text("project_id") != "":
		s.Provider, s.Type = "gitlab", "oidc"
		keys = []string{"project_id", "ref", "ref_type"}
		s.Remarks = []string{"project " + c.text("project_path")}
		s.defaultName(c.text("project_path") + "-" + c.text("ref"))
	case c.person:
		s.Provider, s.Type, s.ClientID = "staff", "people", c.audience()
		keys = []string{"sub"}
		if email := c.text("email"); email != "" {
			s.Remarks = []string{email}
		}
		s.defaultName(cmp.Or(c.text("email"), c.text("sub")))
	default:
		s.Provider, s.Type = "workloads", "oidc"
		keys = []string{"sub"}
		s.defaultName(c.text("sub"))
	}
	for _, k := range keys {
		v, ok := c.values[k]
		if !ok {
			return nil, fmt.Errorf("the token has no claim %s", k)
		}
		s.Match = append(s.Match, suggestedClaim{k, v})
	}
	return s, nil
}

// githubRemarks explains the numbers and the dangers of the rule.
func githubRemarks(c claimSet) []string {
	r := []string{fmt.Sprintf("%s, started by %s, workflow %s", c.text("repository"), c.text("event_name"), c.text("workflow_ref"))}
	switch ev := c.text("event_name"); ev {
	case "push", "workflow_dispatch", "schedule", "merge_group", "release", "deployment":
	case "pull_request":
		r = append(r, "a pull request runs code under review: give it an engine of its own, or its build can poison the cache that others build from",
			"the ref names this one pull request: \"refs/pull/*/merge\" admits all of the repository's")
	default:
		r = append(r, "event "+ev+" runs with the trust of the default branch and often on foreign input: it also needs unsafe_allow_privileged_events: true next to match")
	}
	return r
}

func (s *suggestion) defaultName(from string) {
	if s.Name != "" {
		return
	}
	from = strings.ReplaceAll(from, "refs/heads/", "")
	var b strings.Builder
	for _, r := range strings.ToLower(from) {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	s.Name = strings.Trim(cutBytes(b.String(), 60), "-")
	if s.Name == "" {
		s.Name = "suggested"
	}
}

func cutBytes(s string, n int) string { return s[:min(len(s), n)] }

// yaml returns the rule, to paste under rules. Values are JSON strings, which are
// valid double-quoted YAML strings. So numbers stay quoted, and a claim's text
// cannot break out of its value.
func (s *suggestion) yaml() string {
	var b strings.Builder
	for _, r := range s.Remarks {
		fmt.Fprintf(&b, "  # %s\n", escapeText(r))
	}
	client := ""
	if s.ClientID != "" {
		client = ", client_id: " + yamlString(s.ClientID)
	}
	fmt.Fprintf(&b, "  # under providers, if it is not there: %s: {type: %s, issuer: %s%s}\n", s.Provider, s.Type, escapeText(yamlString(s.Issuer)), escapeText(client))
	fmt.Fprintf(&b, "  - name: %s\n    provider: %s\n    match:\n", yamlString(s.Name), s.Provider)
	for _, m := range s.Match {
		fmt.Fprintf(&b, "      %s: %s\n", m.Claim, yamlValue(m.Value))
	}
	grant := fmt.Sprintf("{profile: %s, engines: [%s], ttl: 1h}", s.Profile, yamlString(s.Engine))
	if s.DNS {
		grant = fmt.Sprintf("{profile: %s, engines: [%s], dns: [\"the engine's server_name\"], ttl: 24h}", s.Profile, yamlString(s.Engine))
	}
	fmt.Fprintf(&b, "    grant: %s\n", grant)
	return b.String()
}

// yamlString returns a string in ASCII with double quotes.
func yamlString(s string) string {
	raw, err := json.Marshal(s)
	if err != nil {
		return `""`
	}
	return yamlValue(raw)
}

// yamlValue returns a JSON value in ASCII. It escapes all characters that a
// terminal or an editor may display wrongly.
func yamlValue(raw json.RawMessage) string {
	var compact bytes.Buffer
	if json.Compact(&compact, raw) != nil {
		return `""`
	}
	var b strings.Builder
	for _, r := range compact.String() {
		switch {
		case r < 0x80 && r != 0x7f:
			b.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08X`, r)
		default:
			fmt.Fprintf(&b, `\u%04X`, r)
		}
	}
	return b.String()
}
