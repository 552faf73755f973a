package main

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"

	"dagger.io/dagger"
)

// buildBazel builds a Bazel workspace in a container. Bazel's server keeps its
// state under --output_base, which is on a separate cache volume: a second run
// analyses only what has changed. Only one build at a time may use that volume.
func (p *pipeline) buildBazel(ctx context.Context) error {
	key := "mayfly-bazel-" + runtime.GOARCH
	locked := dagger.ContainerWithMountedCacheOpts{Sharing: dagger.CacheSharingModeLocked}
	built := p.image(p.options.bazelImage, "").
		WithUser("root").
		WithEnvVariable("HOME", "/root").
		WithMountedCache("/bazel/output", p.dag.CacheVolume(key+"-output"), locked).
		WithMountedCache("/bazel/repository", p.dag.CacheVolume(key+"-repository"), locked).
		WithDirectory("/workspace", p.dag.Host().Directory(p.options.bazelWorkspace, dagger.HostDirectoryOpts{Exclude: []string{"bazel-*"}})).
		WithWorkdir("/workspace").
		WithExec([]string{"bazel", "--output_base=/bazel/output", "build", "--repository_cache=/bazel/repository",
			"--symlink_prefix=/bazel/link-", "--color=no", "--curses=no", "//..."}).
		// The artifacts are symlinks into the cache volume, which later steps do
		// not have. Copy them in the same container.
		WithExec([]string{"sh", "-euc", copyOutputs})
	out := filepath.Join(p.options.out, "bazel")
	if _, err := built.Directory("/out").Export(ctx, out); err != nil {
		return fmt.Errorf("bazel: %w", err)
	}
	fmt.Fprintln(p.stdout, out)
	return nil
}

// copyOutputs copies the outputs of the workspace's rules to /out. Every Bazel
// since 4 has Starlark's output and execution_root. Not every one has
// --output=files or a root named _main.
const copyOutputs = `
mkdir -p /out
root=$(bazel --output_base=/bazel/output info execution_root)
bazel --output_base=/bazel/output cquery --repository_cache=/bazel/repository --output=starlark \
  --starlark:expr='"\n".join([f.path for f in target.files.to_list()])' 'kind(rule, //...)' >/tmp/outputs
while read -r file; do
  [ -z "$file" ] || cp -L "$root/$file" /out/
done </tmp/outputs
bazel --output_base=/bazel/output shutdown
`
