package supervise

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEnvironment(t *testing.T) {
	t.Parallel()
	sidecar := map[string]string{
		"PATH": "/bin", "HOME": "/home", "HTTP_PROXY": "http://proxy", "MAYFLY_SIDECAR_ISSUER": "x", "FLY_API_TOKEN": "x",
		"ACTIONS_ID_TOKEN_REQUEST_TOKEN": "x", "FLY_REGION": "iad", "SECRET": "x",
	}
	lookup := func(name string) (string, bool) { v, ok := sidecar[name]; return v, ok }
	for _, c := range []struct {
		name string
		own  []string
		want []string
	}{
		{"nothing is passed on but PATH and HOME", nil, []string{"PATH=/bin", "HOME=/home"}},
		{"values", []string{"A=b=c", "EMPTY="}, []string{"PATH=/bin", "HOME=/home", "A=b=c", "EMPTY="}},
		{"names", []string{"HTTP_PROXY", "FLY_REGION", "ABSENT"}, []string{"PATH=/bin", "HOME=/home", "HTTP_PROXY=http://proxy", "FLY_REGION=iad"}},
		{"the last wins", []string{"PATH=/opt", "A=1", "A=2"}, []string{"PATH=/opt", "HOME=/home", "A=2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, err := environment(c.own, lookup)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	for _, entry := range []string{
		"MAYFLY_SIDECAR_ISSUER", "MAYFLY_X=y", "mayfly_x=y", "FLY_API_TOKEN", "FLY_API_HOSTNAME=x", "FLY_ACCESS_TOKEN=x", "FLY_SOME_TOKEN=x",
		"ACTIONS_ID_TOKEN_REQUEST_TOKEN", "ACTIONS_RUNTIME_URL=x", "NOTIFY_SOCKET=/x", "=x", "", "A=b\x00c",
	} {
		t.Run("refused "+entry, func(t *testing.T) {
			t.Parallel()
			if env, err := environment([]string{entry}, lookup); err == nil {
				t.Errorf("passed on: %v", env)
			} else if strings.Contains(err.Error(), "=x") {
				t.Errorf("the error tells a value: %v", err)
			}
		})
	}
}

// FuzzEnvironment: whatever is configured, a variable of the sidecar's own, or
// one that was not named, never reaches the engine.
func FuzzEnvironment(f *testing.F) {
	f.Add("A=b", "HOME")
	f.Add("MAYFLY_X", "fly_api_token=1")
	f.Fuzz(func(t *testing.T, one, two string) {
		env, err := environment([]string{one, two}, func(string) (string, bool) { return "secret", true })
		if err != nil {
			return
		}
		for _, entry := range env {
			name, value, ok := strings.Cut(entry, "=")
			named := name == "PATH" || name == "HOME" || name == one || name == two ||
				strings.HasPrefix(one, name+"=") || strings.HasPrefix(two, name+"=")
			if !ok || withheld(name) != "" || !named || strings.ContainsRune(value, 0) {
				t.Errorf("%q of %q, %q", entry, one, two)
			}
		}
	})
}

func TestHiddenPaths(t *testing.T) {
	t.Parallel()
	got := Options{Hide: []string{"/run/token/", "/.fly/oidc_token", "/.fly"}}.spec().Hide
	if diff := cmp.Diff([]string{FlyDir, "/run/token"}, got); diff != "" {
		t.Error(diff)
	}
}
