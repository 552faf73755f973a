package cli

import "testing"

// FuzzDaggerVersion checks that for any output of a program or an engine, the result
// is a version or empty.
func FuzzDaggerVersion(f *testing.F) {
	for _, s := range []string{"dagger v0.21.8 (image://registry.dagger.io/engine:v0.21.8) linux/amd64", "engine:v0.21.8", "v0.21.8-dev.1+x", "buildkit:v0.34.2", "dagger", "dagger \x1b[31m", "::error::v1", "v1 v2", "vé"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, v := range []string{parseDaggerVersion(s), daggerTag(s)} {
			if v == "" {
				continue
			}
			for _, r := range v {
				if r <= ' ' || r > '~' || r == ':' || r == '%' {
					t.Fatalf("%q of %q holds %q", v, s, r)
				}
			}
			if v[0] != 'v' || !isReleaseTag(v) {
				t.Fatalf("%q of %q is no version", v, s)
			}
		}
	})
}
