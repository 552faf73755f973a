package main

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/client/configfile"
)

// demoPolicy is the demonstration's own policy. This machine's issuers and endpoint
// replace those in it, as they do in the files of --config.
const demoPolicy = `version: 1
trust_domain: local.mayfly.example
providers:
  github: {type: github, issuer: https://token.actions.githubusercontent.com}
  fly:    {type: fly,    issuer: https://oidc.fly.io/example-org}
  staff:  {type: people, issuer: https://accounts.example.com, client_id: mayfly}
engines:
  default: {endpoint: "tcp://engine.mayfly.example:8080", server_name: engine.mayfly.example}
rules:
  - name: app-main
    provider: github
    match: {repository_owner_id: "285964", repository_id: "1339936803", ref: refs/heads/main, event_name: [push, workflow_dispatch]}
    grant: {profile: client, engines: [default], ttl: 1h}
  - name: engine
    provider: fly
    match: {org_id: "11111111", app_id: "22222222"}
    grant: {profile: server, engines: [default], dns: [engine.mayfly.example], ttl: 24h}
  - name: admins
    provider: staff
    match: {email: [ops@example.com], email_verified: true}
    grant: {role: admin}
`

// settings are the policy and the issuer's configuration of a run, as YAML maps
// that keep every key of the user's files.
type settings struct {
	policy, issuer map[string]any
}

// loadSettings reads DIR/policy.yaml and DIR/issuer.yaml, or the demonstration's
// own files.
func loadSettings(dir string) (settings, error) {
	s := settings{policy: map[string]any{}, issuer: map[string]any{}}
	policy := []byte(demoPolicy)
	if dir != "" {
		var err error
		if policy, err = os.ReadFile(filepath.Join(dir, "policy.yaml")); err != nil {
			return s, remedy(err, "--config DIR wants DIR/policy.yaml and DIR/issuer.yaml")
		}
		issuer, err := os.ReadFile(filepath.Join(dir, "issuer.yaml"))
		if err != nil {
			return s, remedy(err, "--config DIR wants DIR/policy.yaml and DIR/issuer.yaml")
		}
		if s.issuer, err = parseMap(filepath.Join(dir, "issuer.yaml"), issuer); err != nil {
			return s, err
		}
	}
	var err error
	if s.policy, err = parseMap(filepath.Join(dir, "policy.yaml"), policy); err != nil {
		return s, err
	}
	if s.trustDomain() == "" || len(section(s.policy, "engines")) == 0 {
		return s, errors.New("policy.yaml names no trust_domain or no engines")
	}
	return s, nil
}

// parseMap parses the YAML of file into a map that keeps every key.
func parseMap(file string, data []byte) (map[string]any, error) {
	doc, err := configfile.Parse(file, data)
	if err != nil {
		return nil, err
	}
	m := map[string]any{}
	return m, doc.Decode(&m)
}

func section(m map[string]any, key string) map[string]any {
	inner, _ := m[key].(map[string]any)
	return inner
}

func (s settings) trustDomain() string {
	name, _ := s.policy["trust_domain"].(string)
	return name
}

// engine returns the engine that the machine serves: that of the first server rule,
// or else the first by name.
func (s settings) engine() string {
	for _, rule := range s.rules() {
		grant := section(rule, "grant")
		if grant["profile"] != "server" {
			continue
		}
		if names, ok := grant["engines"].([]any); ok && len(names) > 0 {
			name, _ := names[0].(string)
			return name
		}
	}
	var first string
	for name := range section(s.policy, "engines") {
		if first == "" || name < first {
			first = name
		}
	}
	return first
}

func (s settings) rules() []map[string]any {
	list, _ := s.policy["rules"].([]any)
	var rules []map[string]any
	for _, item := range list {
		if rule, ok := item.(map[string]any); ok {
			rules = append(rules, rule)
		}
	}
	return rules
}

// serverNames returns the names that the CA's name constraints must permit.
func (s settings) serverNames() []string {
	var names []string
	seen := map[string]bool{}
	for _, engine := range section(s.policy, "engines") {
		m, _ := engine.(map[string]any)
		if name, _ := m["server_name"].(string); name != "" && !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	return names
}

func (s settings) serverName(engine string) string {
	name, _ := section(section(s.policy, "engines"), engine)["server_name"].(string)
	return name
}

// clientID returns the client id of the first people provider.
func (s settings) clientID() string {
	for _, provider := range section(s.policy, "providers") {
		m, _ := provider.(map[string]any)
		if id, _ := m["client_id"].(string); m["type"] == "people" && id != "" {
			return id
		}
	}
	return "mayfly"
}

// useProviders replaces the issuers, by type, with this machine's stand-ins. Only
// the first provider of a type gets one, since no two may share an issuer. Rules of
// another provider of that type match no token here.
func (s settings) useProviders(issuers map[string]string) {
	used := map[string]bool{}
	for _, name := range s.providersInRuleOrder() {
		m := section(section(s.policy, "providers"), name)
		kind, _ := m["type"].(string)
		if local := issuers[kind]; local != "" && !used[kind] {
			used[kind] = true
			m["issuer"], m["unsafe_http"] = local, true
			delete(m, "jwks_uri")
		}
	}
}

// providersInRuleOrder returns each provider once, those named in rules first.
func (s settings) providersInRuleOrder() []string {
	var names []string
	seen := map[string]bool{}
	add := func(name string) {
		if name != "" && !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	for _, rule := range s.rules() {
		name, _ := rule["provider"].(string)
		add(name)
	}
	for name := range section(s.policy, "providers") {
		add(name)
	}
	return names
}

// useEndpoint replaces every engine's endpoint with this machine's.
func (s settings) useEndpoint(endpoint string) {
	for _, engine := range section(s.policy, "engines") {
		if m, ok := engine.(map[string]any); ok {
			m["endpoint"] = endpoint
		}
	}
}

// admitted returns claims that the first rule of a provider type admits.
func (s settings) admitted(kind string) map[string]any {
	for _, rule := range s.rules() {
		if s.kindOf(rule) == kind {
			return admittedBy(rule)
		}
	}
	return map[string]any{}
}

// admin returns the claims that turn the stand-in's person into an admin. That
// person has the claims of the first rule of type people. The result is empty if
// that same rule grants the role admin, or if no rule does.
func (s settings) admin() map[string]any {
	claims := map[string]any{}
	for _, rule := range s.rules() {
		switch {
		case s.kindOf(rule) != "people":
			continue
		case section(rule, "grant")["role"] != "admin":
			// Remove this rule's claims, which would match before the admin's rule.
			// sub, which every token has, gets another value.
			for claim := range section(rule, "match") {
				claims[claim] = nil
			}
			claims["sub"] = "admin"
			continue
		case len(claims) > 0:
			maps.Copy(claims, admittedBy(rule))
		}
		return claims
	}
	return map[string]any{}
}

func (s settings) kindOf(rule map[string]any) string {
	name, _ := rule["provider"].(string)
	kind, _ := section(section(s.policy, "providers"), name)["type"].(string)
	return kind
}

// admittedBy returns claims that rule matches. It takes the first value of a list,
// and a value that matches a pattern.
func admittedBy(rule map[string]any) map[string]any {
	claims := map[string]any{}
	for claim, want := range section(rule, "match") {
		if list, ok := want.([]any); ok && len(list) > 0 {
			want = list[0]
		}
		if text, ok := want.(string); ok {
			want = strings.ReplaceAll(text, "*", "main")
		}
		claims[claim] = want
	}
	return claims
}

// useIssuer sets the values of this machine: addresses, URL and key paths. It keeps
// the user's PostgreSQL store; a file is made new.
func (s settings) useIssuer(listen, publicURL, dir string) {
	s.issuer["listen"] = listen
	s.issuer["public_url"] = publicURL
	s.issuer["tls"] = map[string]any{"mode": "self"}
	s.issuer["ca"] = map[string]any{
		"root":         filepath.Join(dir, "root.crt"),
		"root_crl":     filepath.Join(dir, "root.crl"),
		"intermediate": filepath.Join(dir, "intermediate.crt"),
		"key":          filepath.Join(dir, "intermediate.key"),
	}
	s.issuer["state_key"] = []string{filepath.Join(dir, "state.key")}
	if !s.foreignStore() {
		s.issuer["store"] = filepath.Join(dir, "store")
	}
	s.issuer["policy"] = filepath.Join(dir, "policy.yaml")
	delete(s.issuer, "run_as") // that user could not read this run's folder, which only root can
	if s.issuer["metrics_listen"] != nil {
		s.issuer["metrics_listen"] = "127.0.0.1:0"
	}
}

// foreignStore reports whether the user's store is on a database server.
func (s settings) foreignStore() bool {
	store, _ := s.issuer["store"].(string)
	return strings.HasPrefix(store, "postgres://") || strings.HasPrefix(store, "postgresql://") || strings.HasPrefix(store, "env:")
}

// write puts both files into dir.
func (s settings) write(dir string) error {
	for name, content := range map[string]map[string]any{"policy.yaml": s.policy, "issuer.yaml": s.issuer} {
		data, err := yaml.Marshal(content)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}
