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
		WithMountedCache("/bazel/output", p.dag.CacheVolume(key+"-output"), locked).
		WithMountedCache("/bazel/repository", p.dag.CacheVolume(key+"-repository"), locked).
		WithDirectory("/workspace", p.dag.Host().Directory(p.options.bazelWorkspace, dagger.HostDirectoryOpts{Exclude: []string{"bazel-*"}})).
		WithWorkdir("/workspace").
		WithExec([]string{"bazel", "--output_base=/bazel/output", "build", "--repository_cache=/bazel/repository",
			"--symlink_prefix=/bazel/link-", "--color=no", "--curses=no", "//..."}).
		// The artifacts are behind symlinks into the cache volume, which no
		// later step sees: copied out in the same container.
		WithExec([]string{"sh", "-c", "mkdir -p /out && bazel --output_base=/bazel/output cquery --output=files 'kind(rule, //...)' " +
			"--repository_cache=/bazel/repository 2>/dev/null | while read -r f; do cp -L \"/bazel/output/execroot/_main/$f\" /out/ || exit 1; done && " +
			"bazel --output_base=/bazel/output shutdown"})
	out := filepath.Join(p.options.out, "bazel")
	if _, err := built.Directory("/out").Export(ctx, out); err != nil {
		return fmt.Errorf("bazel: %w", err)
	}
	fmt.Fprintln(p.stdout, out)
	return nil
}
