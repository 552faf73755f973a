package command

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/alecthomas/kong"
)

// release is the version of a released program. The linker sets it
// (client/action/release.sh). A released binary contains no commit, because the
// commit contains the checksums of the binaries.
var release string

// Build describes how a program was built.
type Build struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Time     string `json:"time,omitempty"` // of the commit
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// ReadBuild returns the build of this program.
func ReadBuild() Build {
	b := Build{Version: "(devel)", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if info.Main.Version != "" {
		b.Version = info.Main.Version
	}
	if release != "" {
		b.Version = release
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

// Short returns the version in one word. For a program that was built from a commit
// and not released, the word contains the commit.
func (b Build) Short() string {
	if b.Version != "(devel)" || len(b.Revision) < 12 {
		return b.Version
	}
	return "devel-" + b.Revision[:12]
}

// Version is the command version.
type Version struct {
	JSON bool `help:"Print one JSON document." name:"json"`
}

// Run prints the version and the build.
func (v Version) Run(k *kong.Context, p Program) error {
	b := ReadBuild()
	if v.JSON {
		return json.NewEncoder(k.Stdout).Encode(b)
	}
	revision := b.Revision
	if b.Modified {
		revision += " (modified)"
	}
	fmt.Fprintf(k.Stdout, "%s %s\n", p.Name, Printable(b.Version))
	for _, fact := range [][2]string{{"commit", revision}, {"commit time", b.Time}, {"go", b.Go}, {"platform", b.Platform}} {
		if fact[1] != "" {
			fmt.Fprintf(k.Stdout, "  %-12s %s\n", fact[0], fact[1])
		}
	}
	return nil
}

// versionFlag is --version, which prints the first line of the command version.
type versionFlag bool

// BeforeReset prints the version and exits, before kong reports missing arguments.
func (versionFlag) BeforeReset(k *kong.Kong) error {
	_, err := fmt.Fprintf(k.Stdout, "%s %s\n", k.Model.Name, Printable(ReadBuild().Version))
	k.Exit(ExitOK)
	return err
}
