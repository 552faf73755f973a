package main

import (
	"os"
	"path/filepath"
	"strings"

	"dagger.io/dagger"
)

// pipeline is one run: what the steps share.
type pipeline struct {
	options  options
	revision revision
	dag      *dagger.Client
	stdout   interface{ Write([]byte) (int, error) }

	digest string // name@sha256:... of what publish pushed
}

// image gives a container of an image reference, or of a tarball on this
// machine, so that the pipeline also runs where no registry can be reached.
func (p *pipeline) image(ref string, platform dagger.Platform) *dagger.Container {
	container := p.dag.Container(dagger.ContainerOpts{Platform: platform})
	if isTarball(ref) {
		return container.Import(p.dag.Host().File(ref))
	}
	return container.From(ref)
}

func isTarball(ref string) bool {
	if !strings.HasSuffix(ref, ".tar") && !strings.HasSuffix(ref, ".tar.gz") && !strings.HasSuffix(ref, ".tgz") {
		return false
	}
	info, err := os.Stat(ref)
	return err == nil && info.Mode().IsRegular()
}

// sources is this checkout without what builds leave in it.
func (p *pipeline) sources() *dagger.Directory {
	exclude := []string{".git", "bin", "**/node_modules", ".artifacts"}
	if !filepath.IsAbs(p.options.out) {
		exclude = append(exclude, filepath.ToSlash(filepath.Clean(p.options.out)))
	}
	return p.dag.Host().Directory(".", dagger.HostDirectoryOpts{Exclude: exclude})
}

// goToolchain is the Go image with the sources and the caches. It runs on the
// engine's own platform and cross-compiles: emulation is slower and never needed
// for static Go. The caches are keyed by the platform that is compiled for.
func (p *pipeline) goToolchain(platform string) *dagger.Container {
	return p.toolchain("mayfly-go-mod", "mayfly-go-build-"+strings.ReplaceAll(platform, "/", "-"), "").
		WithDirectory("/src", p.sources())
}

// nobody is who the unit tests run as: what needs a machine's root they skip, and
// say so; a container's root, who may do little of that, would fail them.
const nobody = "65534:65534"

// testToolchain is the same for nobody. A cache volume keeps the owner that it
// was made for, so these are others.
func (p *pipeline) testToolchain() *dagger.Container {
	return p.toolchain("mayfly-test-mod", "mayfly-test-build", nobody).
		WithDirectory("/src", p.sources()).
		WithEnvVariable("HOME", "/tmp").
		WithUser(nobody)
}

// toolchain is the Go image with caches of those names, without sources.
func (p *pipeline) toolchain(modules, builds, owner string) *dagger.Container {
	owned := dagger.ContainerWithMountedCacheOpts{Owner: owner}
	c := p.image(p.options.baseImage, "").
		WithMountedCache("/go/pkg/mod", p.dag.CacheVolume(modules), owned).
		WithMountedCache("/var/cache/go-build", p.dag.CacheVolume(builds), owned).
		WithEnvVariable("GOMODCACHE", "/go/pkg/mod").
		WithEnvVariable("GOCACHE", "/var/cache/go-build").
		WithEnvVariable("GOTOOLCHAIN", "local").
		WithEnvVariable("GOFLAGS", "-buildvcs=false").
		WithWorkdir("/src")
	switch proxy := p.options.goProxy; {
	case strings.Contains(proxy, "@"): // a password: the log of the build shows variables
		c = c.WithSecretVariable("GOPROXY", p.dag.SetSecret("goproxy", proxy))
	case proxy != "":
		c = c.WithEnvVariable("GOPROXY", proxy)
	}
	return c
}
