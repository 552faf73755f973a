package wire_test

import (
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mayfly-ca/mayfly/client/wire"
)

func TestReadProblem(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, media, body, retry string
		status                   int
		want                     wire.Problem
	}{
		{"denied", wire.ProblemMediaType + "; charset=utf-8", `{"type":"urn:mayfly:problem:denied","title":"Denied","status":403,"claim":"ref","rule":"r"}`, "", 403,
			wire.Problem{Type: "urn:mayfly:problem:denied", Title: "Denied", Status: 403, Claim: "ref", Rule: "r"}},
		{"the transport's status counts", wire.ProblemMediaType, `{"type":"urn:mayfly:problem:denied","title":"Denied","status":200}`, "", 403,
			wire.Problem{Type: "urn:mayfly:problem:denied", Title: "Denied", Status: 403}},
		{"a proxy's page", "text/html", `{"type":"urn:mayfly:problem:denied"}`, "", 502, wire.Problem{Title: "Bad Gateway", Status: 502}},
		{"half a document", wire.ProblemMediaType, `{"title":"Denied","type":`, "", 500, wire.Problem{Title: "Internal Server Error", Status: 500}},
		{"the header's wait", wire.ProblemMediaType, `{"title":"t","retry_after":1}`, " 7 ", 429, wire.Problem{Title: "t", Status: 429, RetryAfter: 7}},
		{"the document's wait", wire.ProblemMediaType, `{"title":"t","retry_after":1}`, "Wed, 25 Nov 2026 17:00:00 GMT", 429, wire.Problem{Title: "t", Status: 429, RetryAfter: 1}},
	} {
		resp := &http.Response{StatusCode: tc.status, Header: http.Header{"Content-Type": {tc.media}, "Retry-After": {tc.retry}}}
		if d := cmp.Diff(tc.want, *wire.ReadProblem(resp, []byte(tc.body))); d != "" {
			t.Errorf("%s: %s", tc.name, d)
		}
	}
}
