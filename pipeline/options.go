package main

import (
	"flag"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

const usage = `usage: go run ./pipeline [flags] [build|test|publish|deploy|all]

  build     static binaries for every platform, and OCI tarballs, under --out (default step)
  test      unit tests in a container, then integration tests against the
            issuer and PostgreSQL as services
  publish   a multi-platform image to --image; the digest is printed and
            written to OUT/digest. Tags: <ref>-<sha>, and latest on main only.
            OUT/sbom has a CycloneDX document of each program in it
  deploy    test, publish, then flyctl with the image by digest; on main only
  all       build, test, publish, deploy

Engine: --runner-host, else _EXPERIMENTAL_DAGGER_RUNNER_HOST, else a tunnel to
the mayfly engine where MAYFLY_ISSUER (or --issuer) is set, else Dagger's own local engine.

  --issuer URL            mayfly issuer; --ca-file, --trust-anchor and --engine go with it
  --runner-host URL       an engine that is reachable already (unix://, tcp://, ...)
  --builder go|bazel      what builds (default go)
  --platforms LIST        default linux/amd64,linux/arm64
  --out DIR               default dist
  --base-image IMAGE      Go image, by reference or an OCI/Docker tarball's path
  --runtime-image IMAGE   what the binaries are put on (default: nothing but CA certificates)
  --postgres-image IMAGE  of the integration tests
  --bazel-image IMAGE     with bazel in PATH, for --builder bazel
  --bazel-workspace DIR   default pipeline/testdata/bazel
  --flyctl-image IMAGE    with flyctl in PATH, for deploy
  --go-proxy URL          GOPROXY inside the containers
  --test-packages LIST    default ./...
  --image NAME            registry/repository to publish to, without a tag
  --tag NAME              one more tag of the image, as a release's v1.2.3
  --registry-user NAME
  --registry-password SRC env:NAME, file:PATH or cmd:COMMAND; never printed
  --fly-app NAME          app to deploy
  --fly-config FILE       default fly/issuer/fly.toml
  --fly-token SRC         default env:FLY_API_TOKEN
  --dry-run               print the plan, touch nothing

Every flag is also read from PIPELINE_<FLAG>, as PIPELINE_BASE_IMAGE.
`

// options are the checked command line and environment.
type options struct {
	command string

	issuer, caFile, trustAnchor, engine, runnerHost string

	builder, out                            string
	platforms                               []string
	baseImage, runtimeImage, postgresImage  string
	bazelImage, bazelWorkspace, flyctlImage string
	goProxy, testPackages                   string
	image, tag, registryUser                string
	registryPassword, flyToken              source
	flyApp, flyConfig                       string
	dryRun                                  bool
}

var commands = []string{"build", "test", "publish", "deploy", "all"}

// parse reads flags before and after the command. Flags override the environment.
func parse(args []string, env func(string) string) (options, error) {
	o := options{command: "build"}
	var platforms, registryPassword, flyToken string
	flags := flag.NewFlagSet("pipeline", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	text := func(p *string, name, value string) {
		if v := env("PIPELINE_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))); v != "" {
			value = v
		}
		flags.StringVar(p, name, value, "")
	}
	text(&o.issuer, "issuer", env("MAYFLY_ISSUER"))
	text(&o.caFile, "ca-file", env("MAYFLY_CA_FILE"))
	text(&o.trustAnchor, "trust-anchor", env("MAYFLY_TRUST_ANCHOR"))
	text(&o.engine, "engine", "")
	text(&o.runnerHost, "runner-host", env("_EXPERIMENTAL_DAGGER_RUNNER_HOST"))
	text(&o.builder, "builder", "go")
	text(&platforms, "platforms", "linux/amd64,linux/arm64")
	text(&o.out, "out", "dist")
	text(&o.baseImage, "base-image", "docker.io/library/golang:1.26.8-bookworm")
	text(&o.runtimeImage, "runtime-image", "")
	text(&o.postgresImage, "postgres-image", "docker.io/library/postgres:17-alpine")
	text(&o.bazelImage, "bazel-image", "gcr.io/bazel-public/bazel:8.4.2")
	text(&o.bazelWorkspace, "bazel-workspace", "pipeline/testdata/bazel")
	text(&o.flyctlImage, "flyctl-image", "docker.io/flyio/flyctl:latest")
	text(&o.goProxy, "go-proxy", env("GOPROXY"))
	text(&o.testPackages, "test-packages", "./...")
	text(&o.image, "image", "")
	text(&o.tag, "tag", "")
	text(&o.registryUser, "registry-user", "")
	text(&registryPassword, "registry-password", "")
	text(&o.flyApp, "fly-app", "")
	text(&o.flyConfig, "fly-config", "fly/issuer/fly.toml")
	text(&flyToken, "fly-token", "env:FLY_API_TOKEN")
	flags.BoolVar(&o.dryRun, "dry-run", false, "")

	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		o.command = flags.Arg(0)
		if err := flags.Parse(flags.Args()[1:]); err != nil {
			return o, err
		}
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("one step at a time: %q is too much", flags.Args())
	}
	o.platforms = strings.Split(platforms, ",")
	var err error
	if o.registryPassword, err = parseSource("--registry-password", registryPassword); err != nil {
		return o, err
	}
	if o.flyToken, err = parseSource("--fly-token", flyToken); err != nil {
		return o, err
	}
	return o, o.check()
}

func (o options) check() error {
	if !slices.Contains(commands, o.command) {
		return fmt.Errorf("%q is none of %s", o.command, strings.Join(commands, ", "))
	}
	if o.builder != "go" && o.builder != "bazel" {
		return fmt.Errorf("--builder %q is neither go nor bazel", o.builder)
	}
	for _, p := range o.platforms {
		if os, arch, ok := strings.Cut(p, "/"); !ok || os != "linux" || arch == "" {
			return fmt.Errorf("--platforms: %q is no linux/ARCH", p)
		}
	}
	publishes := o.command == "publish" || o.command == "deploy" || o.command == "all"
	if publishes && o.image == "" {
		return fmt.Errorf("%s wants --image REGISTRY/REPOSITORY", o.command)
	}
	if publishes && strings.ContainsAny(o.image, "@ ") || hasTag(o.image) {
		return fmt.Errorf("--image %q: give registry and repository without tag and digest", o.image)
	}
	if o.tag != "" && (!imageTag.MatchString(o.tag) || o.tag == "latest") {
		return fmt.Errorf("--tag %q: not a tag of an image, or latest, which main has", o.tag)
	}
	if o.registryPassword.set() && o.registryUser == "" {
		return fmt.Errorf("--registry-password wants --registry-user")
	}
	if (o.command == "deploy" || o.command == "all") && o.flyApp == "" {
		return fmt.Errorf("%s wants --fly-app NAME", o.command)
	}
	return nil
}

// imageTag matches a tag of OCI's distribution specification.
var imageTag = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)

// hasTag reports whether an image name ends in a tag. A registry's port is not a
// tag.
func hasTag(image string) bool {
	return strings.Contains(image[strings.LastIndex(image, "/")+1:], ":")
}

// registry returns the host of the image name. Registry credentials are stored by
// host.
func (o options) registry() string {
	host, _, ok := strings.Cut(o.image, "/")
	if !ok || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return "docker.io"
	}
	return host
}
