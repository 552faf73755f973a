package policy

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/invopop/jsonschema"

	"github.com/mayfly-ca/mayfly/client/configfile/schematest"
)

var fileSchema = schematest.File{
	Type: &file{}, Source: "file.go", Path: "policy.schema.json", Home: "issuer/internal/policy/policy.schema.json",
	Title: "policy.yaml: who gets which certificate, and who is an admin",
	Edit:  describeClaims,
}

// describeClaims describes match and a test's claims with the known claims. Any
// provider may have others.
func describeClaims(s *jsonschema.Schema) {
	name := &jsonschema.Schema{Pattern: "^[a-z][a-z0-9-]{0,62}$"}
	for _, key := range []string{"providers", "engines"} {
		s.Properties.Value(key).PropertyNames = name
	}
	s.Properties.Value("rules").MinItems = new(uint64(1))
	value := &jsonschema.Schema{Ref: "#/$defs/value"}
	scalar := []*jsonschema.Schema{{Type: "string"}, {Type: "boolean"}, {Type: "integer"}}
	s.Definitions = jsonschema.Definitions{
		"value": {AnyOf: append(slices.Clone(scalar), &jsonschema.Schema{
			Type: "array", MinItems: new(uint64(1)), Items: &jsonschema.Schema{AnyOf: scalar},
		})},
	}
	known := map[string]claimInfo{}
	for _, t := range []map[string]claimInfo{githubClaims, flyClaims, personClaims, workloadClaims} {
		maps.Copy(known, t)
	}
	match := s.Properties.Value("rules").Items.Properties.Value("match")
	match.AdditionalProperties = value
	match.Properties = jsonschema.NewProperties()
	for _, claim := range slices.Sorted(maps.Keys(known)) {
		if known[claim].form != structured {
			match.Properties.Set(claim, value)
		}
	}
	match.MinProperties = new(uint64(1))
}

const schemaExample = `version: 1
trust_domain: ci.example.com
providers:
  fly: {type: fly, issuer: https://oidc.fly.io/example-org}
engines:
  default: {endpoint: "tcp://engine.example.com:8080", server_name: engine.example.com}
rules:
  - name: engine
    provider: fly
    match: {org_id: "1", app_id: ["2", "3"], region: ams}
    grant: {profile: server, engines: [default], dns: [engine.example.com], ttl: 24h}
tests:
  - provider: fly
    claims: {org_id: "1", any: {thing: ["1"]}}
    rule: engine
`

func TestSchema(t *testing.T) {
	t.Parallel()
	fileSchema.Hold(t)
	fileSchema.CheckKeys(t)
	for name, text := range map[string]string{"fly's": fileSchema.Shipped(t, "../../../fly/issuer/policy.yaml"), "the example": schemaExample} {
		if err := fileSchema.Validate(t, text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := Parse([]byte(text), Options{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The program refuses everything that the schema refuses.
	for name, edit := range map[string][2]string{
		"an unknown key":               {"version: 1", "version: 1\nextra: 1"},
		"an unknown key of a provider": {"{type: fly", "{kind: fly, type: fly"},
		"an unknown key of a rule":     {"    grant:", "    when: now\n    grant:"},
		"an unknown key of a grant":    {"ttl: 24h", "ttl: 24h, days: 1"},
		"another version":              {"version: 1", "version: 2"},
		"another type":                 {"type: fly", "type: flyy"},
		"another profile":              {"profile: server", "profile: both"},
		"no rules":                     {schemaExample[strings.Index(schemaExample, "rules:"):], "rules: []\n"},
		"no grant":                     {"    grant: {profile: server, engines: [default], dns: [engine.example.com], ttl: 24h}\n", ""},
		"no match":                     {`    match: {org_id: "1", app_id: ["2", "3"], region: ams}` + "\n", ""},
		"an empty match":               {`match: {org_id: "1", app_id: ["2", "3"], region: ams}`, "match: {}"},
		"a list in a list":             {`["2", "3"]`, `[["2"]]`},
		"an object":                    {"region: ams", "region: {a: b}"},
		"an engine's name":             {"  default: {", "  Default: {"},
	} {
		text := strings.Replace(schemaExample, edit[0], edit[1], 1)
		if text == schemaExample {
			t.Fatalf("%s: nothing is changed", name)
		}
		if fileSchema.Validate(t, text) == nil {
			t.Errorf("%s: the schema accepts it", name)
		}
		if _, err := Parse([]byte(text), Options{}); err == nil {
			t.Errorf("%s: the program accepts it", name)
		}
	}
}

// TestSchemaOffersClaims checks that an editor can offer the known claims.
func TestSchemaOffersClaims(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(fileSchema.Path)
	if err != nil {
		t.Fatal(err)
	}
	var s struct {
		Properties struct {
			Rules struct {
				Items struct {
					Properties struct {
						Match struct{ Properties map[string]any }
					}
				}
			}
		}
	}
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	offered := s.Properties.Rules.Items.Properties.Match.Properties
	for _, claim := range []string{"repository_id", "event_name", "job_workflow_ref", "app_id", "email", "project_id"} {
		if offered[claim] == nil {
			t.Errorf("%s is not offered", claim)
		}
	}
	if offered["groups"] != nil {
		t.Error("groups, which never matches, is offered")
	}
}
