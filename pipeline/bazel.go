package main

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"

	"dagger.io/dagger"
)

// buildBazel builds a Bazel workspace in a container. Bazel's server keeps its
// state under --output_base, which lies on a cache volume of its own: a second
// run analyses nothing that has not changed. One build at a time may hold it.
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
		// The artifacts are behind symlinks into the cache volume, which no
		// later step sees: copied out in the same container.
		WithExec([]string{"sh", "-euc", copyOutputs})
	out := filepath.Join(p.options.out, "bazel")
	if _, err := built.Directory("/out").Export(ctx, out); err != nil {
		return fmt.Errorf("bazel: %w", err)
	}
	fmt.Fprintln(p.stdout, out)
	return nil
}

// copyOutputs copies what the workspace's rules made to /out. Starlark's output
// and execution_root are in every Bazel since 4; --output=files and a root named
// _main are not.
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
