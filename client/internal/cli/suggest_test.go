package cli

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func compact(payload string) string {
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(`{"alg":"RS256"}`)) + "." + enc([]byte(payload)) + ".c2ln"
}

func suggested(t *testing.T, payload string) (*suggestion, error) {
	t.Helper()
	c, err := readClaims(compact(payload))
	if err != nil {
		return nil, err
	}
	return suggest(c, "", "default")
}

// rules parses the output of suggest as a part of a policy file.
func rules(t *testing.T, text string) []map[string]any {
	t.Helper()
	var doc struct {
		Rules []map[string]any `yaml:"rules"`
	}
	if err := yaml.Unmarshal([]byte("rules:\n"+text), &doc); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	return doc.Rules
}

func TestSuggest(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, payload, provider string
		match                   map[string]string
		remark                  string
	}{
		{"push", `{"iss":"https://token.actions.githubusercontent.com","repository":"acme/app","repository_id":"7","repository_owner_id":"285964","ref":"refs/heads/main","event_name":"push"}`,
			"github", map[string]string{"repository_id": "7", "repository_owner_id": "285964", "ref": "refs/heads/main", "event_name": "push"}, "acme/app"},
		{"pull request", `{"iss":"https://token.actions.githubusercontent.com","repository":"acme/app","repository_id":"7","repository_owner_id":"285964","ref":"refs/pull/3/merge","event_name":"pull_request"}`,
			"github", map[string]string{"event_name": "pull_request"}, "poison the cache"},
		{"privileged", `{"iss":"https://token.actions.githubusercontent.com","repository":"acme/app","repository_id":"7","repository_owner_id":"285964","ref":"refs/heads/main","event_name":"pull_request_target"}`,
			"github", map[string]string{"event_name": "pull_request_target"}, "unsafe_allow_privileged_events"},
		{"fly", `{"iss":"https://oidc.fly.io/acme","org_id":"1","app_id":"2","app_name":"engine","machine_id":"m"}`,
			"fly", map[string]string{"org_id": "1", "app_id": "2"}, "app engine"},
		{"gitlab", `{"iss":"https://gitlab.com","project_id":"9","project_path":"a/b","ref":"main","ref_type":"branch"}`,
			"gitlab", map[string]string{"project_id": "9", "ref": "main"}, "project a/b"},
		{"kubernetes", `{"iss":"https://kubernetes.default","sub":"system:serviceaccount:ci:build"}`,
			"workloads", map[string]string{"sub": "system:serviceaccount:ci:build"}, ""},
	} {
		s, err := suggested(t, tt.payload)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		text := s.yaml()
		got := rules(t, text)
		if len(got) != 1 || got[0]["provider"] != tt.provider || !strings.Contains(text, tt.remark) {
			t.Errorf("%s:\n%s", tt.name, text)
			continue
		}
		match, _ := got[0]["match"].(map[string]any)
		for k, want := range tt.match {
			if match[k] != want { // a string, so suggest has quoted it
				t.Errorf("%s: %s is %#v, want %q", tt.name, k, match[k], want)
			}
		}
	}
	for _, payload := range []string{`{}`, `{"iss":"https://a"}`, `[]`, `null`} {
		if s, err := suggested(t, payload); err == nil {
			t.Errorf("%s: suggests\n%s", payload, s.yaml())
		}
	}
}

// FuzzSuggest checks that for any claims, the output is one rule that matches exactly
// these claims, and that no claim breaks out of its value.
func FuzzSuggest(f *testing.F) {
	f.Add("refs/heads/main", "push")
	f.Add("refs/heads/a\"\n  - name: evil\n    grant: {role: admin}", "push\u2028\u202e\U0001f600")
	f.Fuzz(func(t *testing.T, ref, event string) {
		payload, err := json.Marshal(map[string]string{"iss": "https://token.actions.githubusercontent.com", "repository": ref,
			"repository_id": "7", "repository_owner_id": "8", "ref": ref, "event_name": event, "workflow_ref": ref})
		if err != nil {
			t.Skip()
		}
		s, err := suggested(t, string(payload))
		if err != nil {
			return
		}
		got := rules(t, s.yaml())
		var sent map[string]string
		json.Unmarshal(payload, &sent) // Marshal has replaced invalid UTF-8
		if len(got) != 1 {
			t.Fatalf("%d rules:\n%s", len(got), s.yaml())
		}
		match := got[0]["match"].(map[string]any)
		if len(match) != 4 || match["ref"] != sent["ref"] || match["event_name"] != sent["event_name"] {
			t.Fatalf("%q is not what was sent: %q", match, sent)
		}
		if _, role := got[0]["role"]; role {
			t.Fatal("a role")
		}
	})
}

// FuzzReadClaims checks that any token is parsed or refused.
func FuzzReadClaims(f *testing.F) {
	f.Add(compact(`{"iss":"a","iat":1,"aud":["a","b"]}`))
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		c, err := readClaims(token)
		if err != nil {
			return
		}
		_, _, _ = c.audience(), c.at("exp"), claimFacts(c.raw)
		if s, err := suggest(c, "", "default"); err == nil {
			_ = s.yaml()
		}
	})
}

// A person's login gets a rule of type people, which also names the client.
func TestSuggestPerson(t *testing.T) {
	t.Parallel()
	c, err := readClaims(compact(`{"iss":"https://accounts.example.com","sub":"1042","aud":"mayfly","email":"ann@example.com"}`))
	if err != nil {
		t.Fatal(err)
	}
	c.person = true
	s, err := suggest(c, "", "default")
	if err != nil {
		t.Fatal(err)
	}
	text := s.yaml()
	got := rules(t, text)
	match, _ := got[0]["match"].(map[string]any)
	if got[0]["name"] != "ann-example-com" || got[0]["provider"] != "staff" || match["sub"] != "1042" ||
		!strings.Contains(text, `staff: {type: people, issuer: "https://accounts.example.com", client_id: "mayfly"}`) {
		t.Errorf("%s", text)
	}
}
