package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"dagger.io/dagger"
)

// programs are the project's own. The tags leave out smallstep's storage drivers,
// which mayfly does not use.
var programs = []string{"./client/cmd/mayfly", "./issuer/cmd/mayfly-issuer", "./engine-sidecar/cmd/mayfly-sidecar"}

const releaseTags = "nobadger,nomysql,nopgx,nobbolt"

// build exports static binaries and an OCI tarball for each platform.
func (p *pipeline) build(ctx context.Context) error {
	if p.options.builder == "bazel" {
		return p.buildBazel(ctx)
	}
	for _, platform := range p.options.platforms {
		name := strings.ReplaceAll(platform, "/", "-")
		if _, err := p.binaries(platform).Export(ctx, filepath.Join(p.options.out, name)); err != nil {
			return fmt.Errorf("%s: %w", platform, err)
		}
		tarball := filepath.Join(p.options.out, "mayfly-"+name+".tar")
		if _, err := p.product(platform).AsTarball().Export(ctx, tarball); err != nil {
			return fmt.Errorf("%s: %w", platform, err)
		}
		fmt.Fprintf(p.stdout, "%s\n%s\n", filepath.Join(p.options.out, name), tarball)
	}
	return nil
}

// binaries returns a directory with the three programs, static and stripped.
func (p *pipeline) binaries(platform string) *dagger.Directory {
	os, arch, _ := strings.Cut(platform, "/")
	arch, variant, _ := strings.Cut(arch, "/")
	c := p.goToolchain(platform).
		WithEnvVariable("CGO_ENABLED", "0").
		WithEnvVariable("GOOS", os).
		WithEnvVariable("GOARCH", arch)
	if arch == "arm" && variant != "" {
		c = c.WithEnvVariable("GOARM", strings.TrimPrefix(variant, "v"))
	}
	args := append([]string{"go", "build", "-trimpath", "-tags", releaseTags, "-ldflags", "-s -w", "-o", "/out/"}, programs...)
	return c.WithExec([]string{"mkdir", "-p", "/out"}).WithExec(args).Directory("/out")
}

// product returns the image to publish: the programs on a runtime image, or on
// nothing but CA certificates.
func (p *pipeline) product(platform string) *dagger.Container {
	c := p.dag.Container(dagger.ContainerOpts{Platform: dagger.Platform(platform)})
	if p.options.runtimeImage != "" {
		c = p.image(p.options.runtimeImage, dagger.Platform(platform))
	} else {
		roots := p.image(p.options.baseImage, "").File("/etc/ssl/certs/ca-certificates.crt")
		c = c.WithFile("/etc/ssl/certs/ca-certificates.crt", roots)
	}
	// The same files as fly/issuer's own Dockerfile copies: nothing secret.
	config := dagger.ContainerWithDirectoryOpts{Include: []string{"issuer.yaml", "policy.yaml", "*.crt", "*.crl"}}
	c = c.WithDirectory("/usr/local/bin", p.binaries(platform)).
		WithDirectory("/etc/mayfly", p.sources().Directory("fly/issuer"), config).
		WithEnvVariable("PATH", "/usr/local/bin:/usr/bin:/bin").
		WithEntrypoint([]string{"/usr/local/bin/mayfly-issuer"}).
		WithDefaultArgs([]string{"serve", "--config", "/etc/mayfly/issuer.yaml"})
	for name, value := range p.labels() {
		c = c.WithLabel(name, value)
	}
	return c
}

// labels returns OCI's predefined annotation keys (image-spec annotations.md). It
// sets no time: the same commit gives the same image.
func (p *pipeline) labels() map[string]string {
	labels := map[string]string{
		"org.opencontainers.image.title":    "mayfly",
		"org.opencontainers.image.licenses": "Apache-2.0",
		"org.opencontainers.image.ref.name": p.revision.tag(),
	}
	if p.revision.sha != "" {
		labels["org.opencontainers.image.revision"] = p.revision.sha
	}
	if p.revision.url != "" {
		labels["org.opencontainers.image.source"] = p.revision.url
	}
	return labels
}
