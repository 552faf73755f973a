package cli

import (
	"runtime"
	"runtime/debug"
)

type versionCommand struct{}

// release is the version of a release's program; the linker sets it
// (client/action/release.sh). Its bytes hold no commit: the commit holds their
// checksums.
var release string

// build is what this program was made of.
type build struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Time     string `json:"time,omitempty"` // of the commit
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func readBuild() build {
	b := build{Version: "(devel)", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
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

// Run prints.
func (versionCommand) Run(p *program) error {
	b := readBuild()
	if p.JSON {
		p.json(b)
		return nil
	}
	p.printf("mayfly %s\n", visible(b.Version))
	revision := b.Revision
	if b.Modified {
		revision += " (modified)"
	}
	p.facts("  ", []fact{
		{"commit", revision, nil}, {"commit time", b.Time, nil}, {"go", b.Go, nil}, {"platform", b.Platform, nil},
	})
	return nil
}
