package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// plan is what a command will do. It is decided before a connection to an engine.
type plan struct {
	options  options
	revision revision
	steps    []step
}

// step is one stage of the pipeline.
type step struct {
	name string
	what func(o options, r revision) string
	do   func(p *pipeline, ctx context.Context) error
}

var (
	buildStep = step{"build", describeBuild, (*pipeline).build}
	testStep  = step{"test", describeTest, (*pipeline).test}
	pushStep  = step{"publish", describePublish, (*pipeline).publish}
	shipStep  = step{"deploy", describeDeploy, (*pipeline).deploy}
)

// planFor orders the steps of a command. Only an image that was tested and
// published in the same run is deployed.
func planFor(o options) plan {
	p := plan{options: o, revision: currentRevision(os.Getenv)}
	switch o.command {
	case "build":
		p.steps = []step{buildStep}
	case "test":
		p.steps = []step{testStep}
	case "publish":
		p.steps = []step{buildStep, pushStep}
	case "deploy":
		p.steps = []step{testStep, pushStep, shipStep}
	case "all":
		p.steps = []step{buildStep, testStep, pushStep, shipStep}
	}
	return p
}

// allowed refuses to deploy from any branch but main, with the reason.
func (p plan) allowed() error {
	deploys := p.options.command == "deploy" || p.options.command == "all"
	if deploys && !p.revision.main {
		return fmt.Errorf("deploy runs on refs/heads/main only, this is %q; --dry-run prints what it would do", p.revision.ref)
	}
	if deploys && p.options.builder != "go" {
		return errors.New("deploy ships the Go build: --builder go")
	}
	return nil
}

func (p plan) print(w io.Writer) {
	fmt.Fprintf(w, "revision: %s at %s\n", p.revision.ref, p.revision.sha)
	fmt.Fprintf(w, "engine: %s\n", describeEngine(p.options))
	for i, s := range p.steps {
		fmt.Fprintf(w, "%d. %s: %s\n", i+1, s.name, s.what(p.options, p.revision))
	}
	if err := p.allowed(); err != nil {
		fmt.Fprintf(w, "would be refused: %v\n", err)
	}
}

func describeBuild(o options, _ revision) string {
	if o.builder == "bazel" {
		return fmt.Sprintf("bazel build of %s in %s, exported to %s", o.bazelWorkspace, o.bazelImage, o.out)
	}
	return fmt.Sprintf("static binaries and OCI tarballs for %s from %s, exported to %s", strings.Join(o.platforms, ", "), o.baseImage, o.out)
}

func describeTest(o options, _ revision) string {
	return fmt.Sprintf("go test %s, then the issuer over PostgreSQL (%s) as services", o.testPackages, o.postgresImage)
}

func describePublish(o options, r revision) string {
	return fmt.Sprintf("%s for %s, SBOMs to %s", strings.Join(tags(o, r), ", "), strings.Join(o.platforms, ", "), filepath.Join(o.out, "sbom"))
}

func describeDeploy(o options, _ revision) string {
	return fmt.Sprintf("flyctl deploy --app %s --config %s --image %s@<digest of publish>, then wait for its health checks", o.flyApp, o.flyConfig, o.image)
}
