package supervise

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEnvironment(t *testing.T) {
	t.Parallel()
	environ := []string{
		"PATH=/bin", "HOME=/home", "https_proxy=http://u:p@proxy", "NO_PROXY=localhost,10.0.0.0/8", "LC_ALL=C",
		"DAGGER_GO_SDK_MANIFEST_DIGEST=sha256:1", "BUILDKIT_SETUP_CGROUPV2_ROOT=1", "OTEL_EXPORTER_OTLP_ENDPOINT=http://otel",
		"OTEL_EXPORTER_OTLP_TRACES_HEADERS=x", "DAGGER_CLOUD_TOKEN=x", "BUILDKIT_SIGN_KEY=x", "dagger_password=x",
		"AWS_REGION=eu", "FLY_REGION=iad", "SITE_NAME=a", "SITE_URL=b", "SITE_API_KEY=x",
		"MAYFLY_SIDECAR_ISSUER=x", "FLY_API_TOKEN=x", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=x", "NOTIFY_SOCKET=/x", "=x", "x", "PATH=/second",
	}
	byDefault := []string{
		"BUILDKIT_SETUP_CGROUPV2_ROOT=1", "DAGGER_GO_SDK_MANIFEST_DIGEST=sha256:1", "HOME=/home", "LC_ALL=C",
		"NO_PROXY=localhost,10.0.0.0/8", "OTEL_EXPORTER_OTLP_ENDPOINT=http://otel", "PATH=/bin", "https_proxy=http://u:p@proxy",
	}
	dropped := []string{
		"ACTIONS_ID_TOKEN_REQUEST_TOKEN", "AWS_REGION", "BUILDKIT_SIGN_KEY", "DAGGER_CLOUD_TOKEN", "FLY_API_TOKEN", "FLY_REGION",
		"MAYFLY_SIDECAR_ISSUER", "NOTIFY_SOCKET", "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "SITE_API_KEY", "SITE_NAME", "SITE_URL", "dagger_password",
	}
	for _, c := range []struct {
		name   string
		own    []string
		more   []string // in addition to byDefault
		passed []string // of dropped
	}{
		{"by default", nil, nil, nil},
		{"values", []string{"A=b=c", "EMPTY="}, []string{"A=b=c", "EMPTY="}, nil},
		{"names", []string{"SITE_NAME", "ABSENT"}, []string{"SITE_NAME=a"}, []string{"SITE_NAME"}},
		{"secrets by exact name", []string{"DAGGER_CLOUD_TOKEN", "AWS_REGION", "FLY_REGION"}, []string{"DAGGER_CLOUD_TOKEN=x", "AWS_REGION=eu", "FLY_REGION=iad"}, []string{"DAGGER_CLOUD_TOKEN", "AWS_REGION", "FLY_REGION"}},
		{"a prefix, but for secrets", []string{"SITE_*", "DAGGER_*"}, []string{"SITE_NAME=a", "SITE_URL=b"}, []string{"SITE_NAME", "SITE_URL"}},
		{"a prefix of what never passes", []string{"MAY*", "F*"}, nil, nil},
		{"the last wins", []string{"B=1", "B=2"}, []string{"B=2"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			env, drop, err := environment(c.own, nil, environ)
			if err != nil {
				t.Fatal(err)
			}
			want := slices.Sorted(slices.Values(append(slices.Clone(byDefault), c.more...)))
			if diff := cmp.Diff(want, env); diff != "" {
				t.Errorf("environment: %s", diff)
			}
			wantDropped := slices.DeleteFunc(slices.Clone(dropped), func(name string) bool { return slices.Contains(c.passed, name) })
			if diff := cmp.Diff(wantDropped, drop); diff != "" {
				t.Errorf("dropped: %s", diff)
			}
		})
	}
	if env, _, err := environment([]string{"PATH=/opt"}, nil, nil); err != nil || !slices.Equal(env, []string{"HOME=/root", "PATH=/opt"}) {
		t.Errorf("without an environment: %q, %v", env, err)
	}
	env, drop, err := environment([]string{"SITE_*", "SITE_NAME"}, []string{"SITE_NAME", "HOME"}, environ)
	if err != nil || slices.Contains(env, "SITE_NAME=a") || !slices.Contains(env, "SITE_URL=b") || !slices.Contains(drop, "SITE_NAME") || slices.Contains(env, "HOME=/home") {
		t.Errorf("withheld: %q, dropped %q, %v", env, drop, err)
	}
}

func TestCheckEnvironment(t *testing.T) {
	t.Parallel()
	for _, entry := range []string{
		"MAYFLY_SIDECAR_ISSUER", "MAYFLY_X=hush", "mayfly_x=hush", "MAYFLY_*", "FLY_API_TOKEN", "FLY_API_HOSTNAME=hush", "FLY_ACCESS_TOKEN=hush", "FLY_SOME_TOKEN=hush",
		"ACTIONS_ID_TOKEN_REQUEST_TOKEN", "ACTIONS_RUNTIME_URL=hush", "NOTIFY_SOCKET=hush", "=hush", "", "A=b\x00c",
		"*", "*_NAME", "A*B", "A*=hush", "AWS_*", "FLY_*", "DAGGER_CLOUD_TOKEN*", "aws_*",
	} {
		if err := CheckEnvironment([]string{"FINE", entry}); err == nil {
			t.Errorf("%q is accepted", entry)
		} else if strings.Contains(err.Error(), "hush") {
			t.Errorf("%q: the error tells a value: %v", entry, err)
		}
	}
	if err := CheckEnvironment([]string{"A=1,2", "AWS_REGION", "AWS_SECRET_ACCESS_KEY=hush", "SITE_*", "DAGGER_*"}); err != nil {
		t.Error(err)
	}
}

func TestMatches(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"A", "A", true}, {"A", "AB", false}, {"A*", "A", true}, {"A*", "BA", false}, {"*_KEY", "A_KEY_KEY", true}, {"*_KEY", "A_KEYS", false},
		{"*B*", "ABC", true}, {"*B*", "B", true}, {"*B*", "AC", false}, {"A_*_B", "A_B", false}, {"A_*_B", "A__B", true}, {"A*A", "A", false},
		{"F_*T*", "F_T", true}, {"F_*T*", "F_XTY", true}, {"F_*T*", "T_F_", false}, {"", "A", false},
	} {
		if got := matches([]string{c.pattern}, c.name); got != c.want {
			t.Errorf("%q, %q: %v", c.pattern, c.name, got)
		}
	}
}

// FuzzEnvironment: with any configuration, the sidecar's own variables never
// reach the engine. Possible secrets need their exact name. Every variable is
// passed on or in dropped.
func FuzzEnvironment(f *testing.F) {
	f.Add("A=b", "HOME", "HOME")
	f.Add("MAYFLY_X", "fly_api_token=1", "DAGGER_X")
	f.Add("SITE_*", "B", "SITE_API_KEY")
	f.Fuzz(func(t *testing.T, one, two, set string) {
		env, dropped, err := environment([]string{one, two}, nil, []string{set + "=secret"})
		if err != nil {
			return
		}
		for _, entry := range env {
			name, value, ok := strings.Cut(entry, "=")
			upper := strings.ToUpper(name)
			exact := name == one || name == two || strings.HasPrefix(one, name+"=") || strings.HasPrefix(two, name+"=")
			if !ok || matches(Rules.Never, upper) || matches(Rules.Named, upper) && !exact || strings.ContainsRune(value, 0) && !strings.ContainsRune(set, 0) {
				t.Errorf("%q of %q, %q", entry, one, two)
			}
		}
		name, _, _ := strings.Cut(set, "=")
		passed := slices.ContainsFunc(env, func(entry string) bool { return strings.HasPrefix(entry, name+"=") })
		if name != "" && !passed && !slices.Contains(dropped, name) {
			t.Errorf("%q is lost", name)
		}
	})
}
