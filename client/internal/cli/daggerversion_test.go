package cli_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// TestDoctorComparesDagger checks that doctor prints the engine's version and warns
// if the local dagger program has another version.
func TestDoctorComparesDagger(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, engine, dagger string // dagger is its output; empty: no such program
		says, warns          string
	}{
		{"the same", "engine:v0.21.8", "dagger v0.21.8 (image://registry.dagger.io/engine:v0.21.8) linux/amd64", "engine default runs engine:v0.21.8, as dagger here, and proved", ""},
		{"another", "engine:v0.21.8", "dagger v0.21.4 (registry.dagger.io/engine:v0.21.4) linux/amd64", "engine default runs engine:v0.21.8 and proved", "dagger is v0.21.4 here, and engine default runs v0.21.8: install dagger v0.21.8"},
		{"a bare version", "v0.21.8", "dagger v0.21.4 linux/amd64", "engine default runs v0.21.8 and proved", "dagger is v0.21.4 here"},
		{"no dagger", "engine:v0.21.8", "", "engine default runs engine:v0.21.8 and proved", ""},
		{"BuildKit", "buildkit:v0.34.2", "dagger v0.21.8 linux/amd64", "engine default runs buildkit:v0.34.2 and proved", ""},
		{"a digest", "engine@sha256:0123456789ab", "dagger v0.21.8 linux/amd64", "engine default runs engine@sha256:0123456789ab and proved", ""},
		{"not known", "", "dagger v0.21.8 linux/amd64", "engine default proved", ""},
		{"another program", "engine:v0.21.8", "usage: dagger", "engine default runs engine:v0.21.8 and proved", ""},
		{"escapes", "engine:v0.21.8\x1b[31m", "dagger v0.21.8\x1b[31m linux/amd64", `engine default runs engine:v0.21.8\x1b[31m and proved`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newStand(t)
			s.set(func() { s.spoil = func(r *wire.IssueResponse) { r.Engines[0].Version = tt.engine } })
			dir := t.TempDir()
			if tt.dagger != "" {
				script := fmt.Sprintf("#!/bin/sh\n[ \"$*\" = version ] && printf '%%s\\n' '%s'\n", tt.dagger)
				if err := os.WriteFile(filepath.Join(dir, "dagger"), []byte(script), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			s.env = append(s.env, "PATH="+dir+":/usr/bin:/bin")
			o := s.run("doctor", "--wake-timeout", "5s")
			o.check(t, 0)
			if !strings.Contains(o.stdout, tt.says) {
				t.Errorf("doctor says:\n%s\nwant %q", o.stdout, tt.says)
			}
			if warned := strings.Contains(o.stderr, "dagger is"); warned != (tt.warns != "") || !strings.Contains(o.stderr, tt.warns) {
				t.Errorf("doctor warns:\n%s\nwant %q", o.stderr, tt.warns)
			}
		})
	}
}
