package supervise

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHiddenPaths(t *testing.T) {
	t.Parallel()
	got := Options{Hide: []string{"/run/token/", "/.fly/oidc_token", "/.fly"}}.spec().Hide
	if diff := cmp.Diff([]string{FlyDir, "/run/token"}, got); diff != "" {
		t.Error(diff)
	}
}
