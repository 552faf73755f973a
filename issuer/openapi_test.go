package issuer

import (
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"

	"github.com/mayfly-ca/mayfly/client/wire"
)

type openAPISchema struct {
	Ref        string                   `json:"$ref"`
	Properties map[string]openAPISchema `json:"properties"`
	Required   []string                 `json:"required"`
	Items      *openAPISchema           `json:"items"`
}

type openAPIDoc struct {
	Paths      map[string]map[string]openAPIOperation `json:"paths"`
	Components struct {
		Schemas   map[string]openAPISchema `json:"schemas"`
		Responses map[string]any           `json:"responses"`
	} `json:"components"`
}

type openAPIOperation struct {
	ID         string `json:"operationId"`
	Parameters []struct {
		Name string `json:"name"`
		In   string `json:"in"`
	} `json:"parameters"`
	Responses map[string]any `json:"responses"`
}

func document(t *testing.T) openAPIDoc {
	t.Helper()
	var doc openAPIDoc
	if err := json.Unmarshal(openAPIDocument, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

// TestOpenAPIRoutes checks that every route is described, and every description is a
// route.
func TestOpenAPIRoutes(t *testing.T) {
	t.Parallel()
	var described, routed []string
	for path, ops := range document(t).Paths {
		for method, op := range ops {
			described = append(described, strings.ToUpper(method)+" "+path)
			if op.ID == "" || len(op.Responses) == 0 {
				t.Errorf("%s %s has no id or no responses", method, path)
			}
			for part := range strings.SplitSeq(path, "/") {
				name, ok := strings.CutPrefix(part, "{")
				name = strings.TrimSuffix(name, "}")
				if ok && !slices.ContainsFunc(op.Parameters, func(p struct {
					Name string `json:"name"`
					In   string `json:"in"`
				}) bool {
					return p.Name == name && p.In == "path"
				}) {
					t.Errorf("%s %s does not describe {%s}", method, path, name)
				}
			}
		}
	}
	s := &Server{policies: &Policies{}, metrics: NewMetrics(), draining: make(chan struct{})}
	err := chi.Walk(s.routes(nil), func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		routed = append(routed, method+" "+route)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(described)
	slices.Sort(routed)
	for _, d := range described {
		if !slices.Contains(routed, d) {
			t.Errorf("described and not served: %s", d)
		}
	}
	for _, r := range routed {
		if !slices.Contains(described, r) {
			t.Errorf("served and not described: %s", r)
		}
	}
}

// TestOpenAPISchemas checks that the schemas have exactly the members of the wire's
// types.
func TestOpenAPISchemas(t *testing.T) {
	t.Parallel()
	doc := document(t)
	for name, v := range map[string]any{
		"Problem": wire.Problem{}, "IssueRequest": wire.IssueRequest{}, "IssueResponse": wire.IssueResponse{}, "Engine": wire.Engine{},
		"Certificate": wire.Certificate{}, "CertificateDetail": wire.CertificateDetail{}, "Match": wire.Match{}, "RevokeRequest": wire.RevokeRequest{},
		"RevokeResponse": wire.RevokeResponse{}, "Block": wire.Block{}, "Session": wire.Session{}, "SessionReport": wire.SessionReport{},
		"SessionsRequest": wire.SessionsRequest{}, "SessionsResponse": wire.SessionsResponse{}, "Event": wire.Event{}, "Info": wire.Info{},
		"SidecarStatus": wire.SidecarStatus{}, "EngineStatus": wire.EngineStatus{}, "MachineStatus": wire.MachineStatus{},
		"Whoami": wire.Whoami{}, "ExplainRequest": wire.ExplainRequest{}, "ExplainResponse": wire.ExplainResponse{},
	} {
		schema, ok := doc.Components.Schemas[name]
		if !ok {
			t.Errorf("no schema %s", name)
			continue
		}
		want := members(reflect.TypeOf(v))
		for m := range schema.Properties {
			if !slices.Contains(want, m) {
				t.Errorf("%s: %s is described and not sent", name, m)
			}
		}
		for _, m := range want {
			if _, ok := schema.Properties[m]; !ok {
				t.Errorf("%s: %s is sent and not described", name, m)
			}
		}
		for _, m := range schema.Required {
			if !slices.Contains(want, m) {
				t.Errorf("%s: requires %s, which is none of its members", name, m)
			}
		}
	}
}

func members(t reflect.Type) []string {
	var out []string
	for f := range t.Fields() {
		if f.Anonymous {
			out = append(out, members(f.Type)...)
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		out = append(out, name)
	}
	return out
}

// TestOpenAPIReferences checks that every reference resolves.
func TestOpenAPIReferences(t *testing.T) {
	t.Parallel()
	doc := document(t)
	var tree any
	if err := json.Unmarshal(openAPIDocument, &tree); err != nil {
		t.Fatal(err)
	}
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				name, isSchema := strings.CutPrefix(ref, "#/components/schemas/")
				_, found := doc.Components.Schemas[name]
				if !isSchema {
					name = strings.TrimPrefix(ref, "#/components/responses/")
					_, found = doc.Components.Responses[name]
				}
				if !found {
					t.Errorf("%s leads nowhere", ref)
				}
			}
			for _, e := range v {
				walk(e)
			}
		case []any:
			for _, e := range v {
				walk(e)
			}
		}
	}
	walk(tree)
}
