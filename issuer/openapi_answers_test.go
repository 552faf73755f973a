package issuer_test

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// described is the document as a client reads it, by path and method.
type described struct {
	Paths map[string]map[string]struct {
		Responses map[string]struct {
			Ref     string `json:"$ref"`
			Content map[string]struct {
				Schema schema `json:"schema"`
			} `json:"content"`
		} `json:"responses"`
	} `json:"paths"`
	Components struct {
		Schemas   map[string]schema `json:"schemas"`
		Responses map[string]struct {
			Content map[string]any `json:"content"`
		} `json:"responses"`
	} `json:"components"`
}

type schema struct {
	Ref        string            `json:"$ref"`
	Properties map[string]schema `json:"properties"`
	Required   []string          `json:"required"`
	Items      *schema           `json:"items"`
}

// describes compares a value of a response with a schema: all its members must be
// described, and all required ones present.
func (d described) describes(t *testing.T, where string, s schema, v any) {
	t.Helper()
	if name, ok := strings.CutPrefix(s.Ref, "#/components/schemas/"); ok {
		s = d.Components.Schemas[name]
	}
	switch v := v.(type) {
	case map[string]any:
		if len(s.Properties) == 0 {
			return // claims, detail: any members
		}
		for _, name := range s.Required {
			if _, ok := v[name]; !ok {
				t.Errorf("%s: %s is required and missing", where, name)
			}
		}
		for name, member := range v {
			p, ok := s.Properties[name]
			if !ok {
				t.Errorf("%s: %s is not described", where, name)
			}
			d.describes(t, where+"."+name, p, member)
		}
	case []any:
		for _, e := range v {
			if s.Items == nil {
				t.Errorf("%s: a list is not described", where)
				return
			}
			d.describes(t, where+"[]", *s.Items, e)
		}
	}
}

// TestAnswersAreDescribed checks that the responses of a running issuer, good and bad,
// match /openapi.json.
func TestAnswersAreDescribed(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	var doc described
	if err := i.Call("GET", wire.PathOpenAPI, "", nil, &doc); err != nil {
		t.Fatal(err)
	}
	out, err := i.Issue(i.GitHubToken(map[string]any{"run_id": "1"}))
	if err != nil {
		t.Fatal(err)
	}
	used := i.GitHubToken(nil)
	if _, err := i.Issue(used); err != nil {
		t.Fatal(err)
	}
	aki := strings.TrimPrefix(leafOf(t, out.Certificate).CRLDistributionPoints[0], i.URL+wire.PathCRL+"/")
	_, csr := issuertest.Key(t)
	report := wire.SessionsRequest{Reports: []wire.SessionReport{
		{Kind: wire.SessionOpen, ID: strings.Repeat("1", 32), Serial: out.Serial, At: time.Now()},
		{Kind: wire.SessionOpen, ID: "x", Serial: out.Serial, At: time.Now()},
	}}
	status := wire.SessionsRequest{Status: goodStatus()}
	fingerprint := strings.TrimPrefix(i.TrustAnchor, "sha256:")
	for _, c := range []struct {
		method, route, path, token string
		in                         any
		status                     int
	}{
		{"POST", wire.PathCertificates, "", i.GitHubToken(map[string]any{"run_id": "2"}), wire.IssueRequest{CSR: csr}, 201},
		{"POST", wire.PathCertificates, "", i.GitHubToken(nil), wire.IssueRequest{CSR: "x"}, 400},
		{"POST", wire.PathCertificates, "", "garbage", wire.IssueRequest{CSR: csr}, 401},
		{"POST", wire.PathCertificates, "", i.GitHubToken(map[string]any{"ref": "x"}), wire.IssueRequest{CSR: csr}, 403},
		{"POST", wire.PathCertificates, "", used, wire.IssueRequest{CSR: csr}, 409},
		{"POST", wire.PathCertificates, "", used, wire.IssueRequest{CSR: strings.Repeat("x", wire.MaxBodyBytes)}, 413},
		{"POST", wire.PathSessions, "", i.SessionsToken(nil), report, 200},
		{"POST", wire.PathSessions, "", i.SessionsToken(nil), wire.SessionsRequest{}, 400},
		{"POST", wire.PathRevocations, "", i.AdminToken(), wire.RevokeRequest{Serial: out.Serial}, 200},
		{"POST", wire.PathRevocations, "", i.AdminToken(), wire.RevokeRequest{Serial: strings.Repeat("0", 32)}, 404},
		{"POST", wire.PathRevocations, "", i.ViewerToken(), wire.RevokeRequest{All: true}, 403},
		{"GET", wire.PathCertificates, "?limit=1", i.ViewerToken(), nil, 200},
		{"GET", wire.PathCertificates, "?limit=0", i.ViewerToken(), nil, 400},
		{"GET", wire.PathCertificates + "/{serial}", "/" + out.Serial, i.ViewerToken(), nil, 200},
		{"GET", wire.PathCertificates + "/{serial}", "/" + strings.Repeat("0", 32), i.ViewerToken(), nil, 404},
		{"GET", wire.PathBlocks, "", i.AdminToken(), nil, 200},
		{"DELETE", wire.PathBlocks + "/{id}", "/" + strings.Repeat("0", 32), i.AdminToken(), nil, 404},
		{"GET", wire.PathSessions, "", i.ViewerToken(), nil, 200},
		{"POST", wire.PathSessions, "", i.SessionsToken(nil), status, 200},
		{"GET", wire.PathEngines, "", i.ViewerToken(), nil, 200},
		{"GET", wire.PathEngines, "?limit=1", i.ViewerToken(), nil, 400},
		{"GET", wire.PathEngines, "", i.FlyToken(nil), nil, 403},
		{"GET", wire.PathEvents, "", i.ViewerToken(), nil, 200},
		{"GET", wire.PathEvents, "", "", nil, 401},
		{"GET", wire.PathWhoami, "", i.ViewerToken(), nil, 200},
		{"GET", wire.PathWhoami, "", "", nil, 401},
		{"GET", wire.PathWhoami, "", i.FlyToken(nil), nil, 403},
		{"POST", wire.PathPolicyExplain, "", i.ViewerToken(), wire.ExplainRequest{Provider: "github", Claims: []byte(`{"ref":"x"}`)}, 200},
		{"GET", wire.PathCRL, "", "", nil, 200},
		{"GET", wire.PathCRL + "/{aki}", "/" + aki, "", nil, 200},
		{"GET", wire.PathCRL + "/{aki}", "/00", "", nil, 404},
		{"GET", wire.PathCRLWait, "?after=1", "", nil, 200},
		{"GET", wire.PathTrustBundle, "", "", nil, 200},
		{"GET", wire.PathInfo, "", "", nil, 200},
		{"GET", wire.PathHealth, "", "", nil, 200},
		{"GET", wire.PathReady, "", "", nil, 200},
		{"GET", "/1.0/health", "", "", nil, 200},
		{"GET", "/1.0/version", "", "", nil, 200},
		{"GET", "/1.0/root/{sha}", "/" + fingerprint, "", nil, 200},
		{"GET", "/1.0/roots", "", "", nil, 201},
		{"GET", "/1.0/roots.pem", "", "", nil, 200},
		{"GET", "/1.0/provisioners", "", "", nil, 200},
		{"GET", "/1.0/crl", "", "", nil, 200},
	} {
		base, _, _ := strings.Cut(c.route, "/{")
		where := c.method + " " + base + c.path
		status, kind, body := answer(t, i, c.method, base+c.path, c.token, c.in)
		if status != c.status {
			t.Errorf("%s: %d, want %d: %s", where, status, c.status, body)
			continue
		}
		response, ok := doc.Paths[c.route][strings.ToLower(c.method)].Responses[strconv.Itoa(status)]
		if !ok {
			t.Errorf("%s: status %d is not described", where, status)
			continue
		}
		kinds := []string{}
		var s schema
		for k, content := range response.Content {
			if kinds = append(kinds, k); k == kind {
				s = content.Schema
			}
		}
		if name, ok := strings.CutPrefix(response.Ref, "#/components/responses/"); ok {
			s.Ref = "#/components/schemas/Problem"
			for k := range doc.Components.Responses[name].Content {
				kinds = append(kinds, k)
			}
		}
		if !slices.Contains(kinds, kind) {
			t.Errorf("%s: %s is not among the described %v", where, kind, kinds)
		}
		if strings.HasSuffix(kind, "json") {
			var v any
			if err := json.Unmarshal(body, &v); err != nil {
				t.Errorf("%s: %v", where, err)
			}
			doc.describes(t, where, s, v)
		}
	}
}

// answer makes a call and returns status, media type and body.
func answer(t *testing.T, i *issuertest.Issuer, method, path, token string, in any) (int, string, []byte) {
	t.Helper()
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		body = strings.NewReader(string(data))
	}
	req, err := http.NewRequest(method, i.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := i.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	kind, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return resp.StatusCode, kind, data
}
