package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mayfly-ca/mayfly/client/internal/api"
	"github.com/mayfly-ca/mayfly/client/wire"
)

func token(context.Context) (string, error) { return "tok", nil }

func serve(t *testing.T, h http.HandlerFunc) *api.Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c, err := api.New(api.Config{Issuer: srv.URL, HTTPClient: srv.Client(), Token: token})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestRequests compares each call's request with the expected one.
func TestRequests(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600))
	for _, tt := range []struct {
		name string
		call func(ctx context.Context, c *api.Client) error
		want string
	}{
		{"all filters", func(ctx context.Context, c *api.Client) error {
			_, err := c.Certificates(ctx, api.CertificateFilter{Serial: "ab", Repository: "a/b&c", RepositoryID: "1", RunID: "2", Actor: "x y",
				Identity: "spiffe://a", Profile: "client", Status: "valid", Since: at, Until: at, Limit: 7, Cursor: "c+/="})
			return err
		}, "GET /v1/certificates?actor=x+y&cursor=c%2B%2F%3D&identity=spiffe%3A%2F%2Fa&limit=7&profile=client&repository=a%2Fb%26c&repository_id=1&run_id=2&serial=ab&since=2026-01-02T02%3A04%3A05Z&status=valid&until=2026-01-02T02%3A04%3A05Z "},
		{"no filters", func(ctx context.Context, c *api.Client) error {
			_, err := c.Certificates(ctx, api.CertificateFilter{})
			return err
		}, "GET /v1/certificates "},
		{"one", func(ctx context.Context, c *api.Client) error { _, err := c.Certificate(ctx, "00ff"); return err }, "GET /v1/certificates/00ff "},
		{"revoke", func(ctx context.Context, c *api.Client) error {
			_, err := c.Revoke(ctx, wire.RevokeRequest{Match: &wire.Match{RunID: "2"}, Block: wire.BlockNone, Reason: "r"})
			return err
		}, `POST /v1/revocations {"match":{"run_id":"2"},"block":"none","reason":"r"}`},
		{"sessions", func(ctx context.Context, c *api.Client) error {
			_, err := c.Sessions(ctx, api.SessionFilter{Live: true, Engine: "e"})
			return err
		}, "GET /v1/sessions?engine=e&live=true "},
		{"events", func(ctx context.Context, c *api.Client) error {
			_, err := c.Events(ctx, api.EventFilter{After: 9, Type: "issued"})
			return err
		}, "GET /v1/events?after=9&type=issued "},
		{"events from the first", func(ctx context.Context, c *api.Client) error {
			_, err := c.Events(ctx, api.EventFilter{Forward: true})
			return err
		}, "GET /v1/events?after=0 "},
		{"blocks", func(ctx context.Context, c *api.Client) error { _, err := c.Blocks(ctx); return err }, "GET /v1/blocks "},
		{"unblock", func(ctx context.Context, c *api.Client) error { return c.RemoveBlock(ctx, "00/../..") }, "DELETE /v1/blocks/00%2F..%2F.. "},
		{"explain", func(ctx context.Context, c *api.Client) error {
			_, err := c.Explain(ctx, wire.ExplainRequest{Provider: "github", Claims: json.RawMessage(`{}`)})
			return err
		}, `POST /v1/policy/explain {"provider":"github","claims":{}}`},
	} {
		var got, bearer string
		c := serve(t, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			got, bearer = r.Method+" "+r.RequestURI+" "+string(body), r.Header.Get("Authorization")
			io.WriteString(w, "{}")
		})
		if err := tt.call(t.Context(), c); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if d := cmp.Diff(tt.want, got); d != "" || bearer != "Bearer tok" {
			t.Errorf("%s: authorization %q\n%s", tt.name, bearer, d)
		}
	}
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	body := `{"items":[{"serial":"00ff","later":1}],"next_cursor":"n"}` + "\n"
	a, err := serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) }).Certificates(t.Context(), api.CertificateFilter{})
	if err != nil || string(a.Body) != body || a.Value.Items[0].Serial != "00ff" || a.Value.NextCursor != "n" {
		t.Errorf("%+v, %v", a, err)
	}
	for _, tt := range []struct {
		name, media, body, retry string
		status                   int
		want                     wire.Problem
	}{
		{"denied", wire.ProblemMediaType, `{"type":"urn:mayfly:problem:denied","title":"Denied","status":200,"claim":"ref","rule":"r"}`, "", 403,
			wire.Problem{Type: "urn:mayfly:problem:denied", Title: "Denied", Status: 403, Claim: "ref", Rule: "r"}},
		{"a proxy's page", "text/html", "<html>", "", 502, wire.Problem{Title: "Bad Gateway", Status: 502}},
		{"half a document", wire.ProblemMediaType, `{"type":`, "", 500, wire.Problem{Title: "Internal Server Error", Status: 500}},
		{"slow down", wire.ProblemMediaType, `{"type":"urn:mayfly:problem:rate-limited","title":"t"}`, "7", 429,
			wire.Problem{Type: "urn:mayfly:problem:rate-limited", Title: "t", Status: 429, RetryAfter: 7}},
	} {
		c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", tt.media)
			w.Header().Set("Retry-After", tt.retry)
			w.WriteHeader(tt.status)
			io.WriteString(w, tt.body)
		})
		_, err := c.Blocks(t.Context())
		var p *wire.Problem
		if !errors.As(err, &p) {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if d := cmp.Diff(tt.want, *p); d != "" {
			t.Errorf("%s: %s", tt.name, d)
		}
	}
	if _, err := serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "[]") }).Blocks(t.Context()); err == nil {
		t.Error("an answer of another form is taken")
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.NotFoundHandler())
	c, err := api.New(api.Config{Issuer: srv.URL, HTTPClient: srv.Client(), Token: token})
	if err != nil {
		t.Fatal(err)
	}
	srv.Close()
	var u *api.UnreachableError
	if _, err := c.Certificates(t.Context(), api.CertificateFilter{Actor: "private"}); !errors.As(err, &u) || strings.Contains(err.Error(), "private") {
		t.Errorf("%v", err)
	}
	none := errors.New("no token")
	c, _ = api.New(api.Config{Issuer: srv.URL, HTTPClient: srv.Client(), Token: func(context.Context) (string, error) { return "", none }})
	if _, err := c.Blocks(t.Context()); !errors.Is(err, none) {
		t.Errorf("%v", err)
	}
	for _, issuer := range []string{"", "mayfly.example.com", "ftp://a", "https://"} {
		if _, err := api.New(api.Config{Issuer: issuer, HTTPClient: http.DefaultClient, Token: token}); err == nil {
			t.Errorf("%q: no error", issuer)
		}
	}
}

// TestImports checks that the package imports only the standard library and wire.
func TestImports(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"github.com/mayfly-ca/mayfly/client/wire", "github.com/mayfly-ca/mayfly/client/internal/api"}
	if d := cmp.Diff(want, strings.Fields(string(out))); d != "" {
		t.Error(d)
	}
}
