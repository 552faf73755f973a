package main

import (
	"context"
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"dagger.io/dagger"
)

// sbomTool makes a CycloneDX document of a program from the linker's data in it:
// the linked modules, not the list in go.mod. Dagger v0.21.8's engine adds neither
// SBOM nor provenance when it publishes; release.yml attests provenance.
const sbomTool = "github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0"

// exportSBOMs writes OUT/sbom/PLATFORM/PROGRAM.cdx.json for every program in the
// image, each with the SHA-256 of its program.
func (p *pipeline) exportSBOMs(ctx context.Context) error {
	for _, platform := range p.options.platforms {
		out := filepath.Join(p.options.out, "sbom", strings.ReplaceAll(platform, "/", "-"))
		if _, err := p.sboms(platform).Export(ctx, out, dagger.DirectoryExportOpts{Wipe: true}); err != nil {
			return fmt.Errorf("sbom of %s: %w", platform, err)
		}
	}
	return nil
}

func (p *pipeline) sboms(platform string) *dagger.Directory {
	os, arch, _ := strings.Cut(platform, "/")
	arch, _, _ = strings.Cut(arch, "/")
	c := p.toolchain("mayfly-go-mod", "mayfly-go-build-native", "").
		WithEnvVariable("GOBIN", "/usr/local/bin").
		WithExec([]string{"go", "install", sbomTool}).
		WithEnvVariable("GOOS", os). // of the program, for the package URLs
		WithEnvVariable("GOARCH", arch).
		WithDirectory("/programs", p.binaries(platform)).
		WithExec([]string{"mkdir", "-p", "/sbom"})
	for _, program := range programs {
		name := path.Base(program)
		c = c.WithExec([]string{"cyclonedx-gomod", "bin", "-json", "-std", "-version", p.version(),
			"-output", "/sbom/" + name + ".cdx.json", "/programs/" + name})
	}
	return c.Directory("/sbom")
}

// version returns the name of the release, or the commit.
func (p *pipeline) version() string {
	switch {
	case p.options.tag != "":
		return p.options.tag
	case p.revision.sha != "":
		return p.revision.sha
	}
	return "unknown"
}
