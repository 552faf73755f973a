package issuer

import (
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// TestOpenAPIFilters checks that the parameters in a list's description are those of
// its handler and of DESIGN section 4.
func TestOpenAPIFilters(t *testing.T) {
	t.Parallel()
	doc := document(t)
	samples := map[string]string{
		"serial": strings.Repeat("a", 32), "since": "2026-01-02T15:04:05Z", "until": "2026-01-02T15:04:05Z", "limit": "1", "after": "1",
		"profile": "client", "status": wire.StatusValid, "live": "true", "cut": "true",
	}
	for path, list := range map[string]struct {
		read func(url.Values) error
		want string
	}{
		wire.PathCertificates: {func(v url.Values) error { _, err := certificateFilter(v); return err }, "serial repository repository_id run_id actor identity profile status since until limit cursor"},
		wire.PathSessions:     {func(v url.Values) error { _, err := sessionFilter(v); return err }, "engine serial run_id repository live cut since until limit cursor"},
		wire.PathEvents:       {func(v url.Values) error { _, err := eventFilter(v); return err }, "type serial repository run_id since until after limit cursor"},
	} {
		var described []string
		for _, p := range doc.Paths[path]["get"].Parameters {
			described = append(described, p.Name)
			sample := samples[p.Name]
			if sample == "" {
				sample = "x"
			}
			if err := list.read(url.Values{p.Name: {sample}}); err != nil {
				t.Errorf("%s?%s=%s is described, and refused: %v", path, p.Name, sample, err)
			}
		}
		if want := strings.Fields(list.want); !slices.Equal(slices.Sorted(slices.Values(described)), slices.Sorted(slices.Values(want))) {
			t.Errorf("%s describes %v, want %v", path, described, want)
		}
		if err := list.read(url.Values{"nonsense": {"x"}}); err == nil {
			t.Errorf("%s takes a parameter that it does not describe", path)
		}
	}
}

// TestOpenAPIProblems checks that every problem type is described, only under its own
// status.
func TestOpenAPIProblems(t *testing.T) {
	t.Parallel()
	doc := document(t)
	described := map[string]string{}
	for name, r := range doc.Components.Responses {
		text, _ := r.(map[string]any)["description"].(string)
		for word := range strings.FieldsSeq(strings.NewReplacer(",", " ", ".", " ").Replace(text)) {
			if problem, ok := strings.CutPrefix(word, wire.ProblemPrefix); ok {
				described[problem] = strings.TrimPrefix(name, "Problem")
			}
		}
	}
	want := map[string]string{}
	for _, name := range []string{
		wire.ProblemBadRequest, wire.ProblemBadCSR, wire.ProblemBadToken, wire.ProblemDenied, wire.ProblemBlocked, wire.ProblemForbiddenRole,
		wire.ProblemNotFound, wire.ProblemReplay, wire.ProblemTooLarge, wire.ProblemRateLimited, wire.ProblemUnavailable, wire.ProblemInternal,
	} {
		want[name] = strconv.Itoa(wire.ProblemStatus(name))
	}
	if !maps.Equal(described, want) {
		t.Errorf("described %v, want %v", described, want)
	}
}
