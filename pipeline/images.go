package main

import (
	"os"
	"path/filepath"
	"strings"

	"dagger.io/dagger"
)

// pipeline is one run. It holds the values that the steps share.
type pipeline struct {
	options  options
	revision revision
	dag      *dagger.Client
	stdout   interface{ Write([]byte) (int, error) }

	digest string // name@sha256:... of the published image
}

// image returns a container of an image reference, or of a tarball on this machine.
// So the pipeline also runs where no registry can be reached.
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

// sources returns this checkout without build outputs.
func (p *pipeline) sources() *dagger.Directory {
	exclude := []string{".git", "bin", "**/node_modules", ".artifacts"}
	if !filepath.IsAbs(p.options.out) {
		exclude = append(exclude, filepath.ToSlash(filepath.Clean(p.options.out)))
	}
	return p.dag.Host().Directory(".", dagger.HostDirectoryOpts{Exclude: exclude})
}

// goToolchain returns the Go image with the sources and the caches. It runs on the
// engine's own platform and cross-compiles: emulation is slower and never needed
// for static Go. Each target platform has its own caches.
func (p *pipeline) goToolchain(platform string) *dagger.Container {
	return p.toolchain("mayfly-go-mod", "mayfly-go-build-"+strings.ReplaceAll(platform, "/", "-"), "").
		WithDirectory("/src", p.sources())
}

// nobody is the user of the unit tests. As nobody, they skip what needs a machine's
// root, and say so. A container's root may do little of that, so the tests would
// fail.
const nobody = "65534:65534"

// testToolchain is goToolchain for the user nobody. It has its own cache volumes,
// since a volume keeps its first owner.
func (p *pipeline) testToolchain() *dagger.Container {
	return p.toolchain("mayfly-test-mod", "mayfly-test-build", nobody).
		WithDirectory("/src", p.sources()).
		WithEnvVariable("HOME", "/tmp").
		WithUser(nobody)
}

// toolchain returns the Go image with the named caches, without sources.
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
	case strings.Contains(proxy, "@"): // a password: the build's log shows variables
		c = c.WithSecretVariable("GOPROXY", p.dag.SetSecret("goproxy", proxy))
	case proxy != "":
		c = c.WithEnvVariable("GOPROXY", proxy)
	}
	return c
}
