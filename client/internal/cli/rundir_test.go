package cli_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// A folder that cannot hold the socket is skipped.
func TestRunFolder(t *testing.T) {
	t.Parallel()
	parent := shortDir(t)
	folder := func(name string, mode os.FileMode) string {
		dir := filepath.Join(parent, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	good := shortDir(t)
	// In the first folder the temporary socket name just fits; in the second it does not.
	room := 103 - len("/mayfly-"+strconv.Itoa(os.Getuid())+"-0123456789/.m0123456789/s") - len(parent) - 1
	longest, long := folder(strings.Repeat("l", room), 0o700), folder(strings.Repeat("l", room+1), 0o700)
	foreign := folder("foreign", 0o777|os.ModeSticky)
	if os.Getuid() == 0 {
		if err := os.Chown(foreign, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	} else if err := os.Chmod(foreign, 0o555); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, runtime, tmp, want string
	}{
		{"run-time folder", good, shortDir(t), good},
		{"temporary folder", "", good, good},
		{"longest", longest, good, longest},
		{"too long", long, good, good},
		{"both too long", long, long, "/tmp"},
		{"another user's", foreign, good, good},
		{"others may rename in it", folder("open", 0o777), good, good},
		{"a space", folder("a b", 0o700), good, good},
		{"a percent sign", folder("a%20b", 0o700), good, good},
		{"a comma", good, folder("a,b", 0o700), good},
		{"neither is ASCII", folder("größe", 0o700), filepath.Join(parent, "größe"), "/tmp"},
		{"relative", "tmp", good, good},
		{"no folder", filepath.Join(good, "absent"), good, good},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newStand(t)
			s.env = append(s.env, "XDG_RUNTIME_DIR="+tt.runtime, "TMPDIR="+tt.tmp)
			o := s.run("exec", "--", "sh", "-c", `dialer echo && echo "$BUILDKIT_HOST"`)
			o.check(t, 0)
			said, host, _ := strings.Cut(strings.TrimSpace(o.stdout), "\n")
			made := filepath.Dir(strings.TrimPrefix(host, "unix://"))
			if said != "through the tunnel" || filepath.Dir(made) != tt.want {
				t.Errorf("said %q through %q, want a folder in %s", said, host, tt.want)
			}
			if _, err := os.Stat(made); err == nil {
				t.Errorf("%s was left", made)
			}
		})
	}
	s := newStand(t)
	s.run("proxy", "--listen", "unix:"+filepath.Join(long, strings.Repeat("s", 50))).check(t, 2, "is too long", "103 bytes")
}
