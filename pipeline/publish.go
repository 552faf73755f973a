package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"dagger.io/dagger"
)

// tags returns the tags that publish pushes: <ref>-<sha>, --tag's, and on main also
// latest.
func tags(o options, r revision) []string {
	names := []string{o.image + ":" + r.tag()}
	if o.tag != "" {
		names = append(names, o.image+":"+o.tag)
	}
	if r.main {
		names = append(names, o.image+":latest")
	}
	return names
}

// publish pushes one multi-platform image. It prints the digest and writes it to
// OUT/digest only after all tags are pushed and name the same image.
func (p *pipeline) publish(ctx context.Context) error {
	// Remove the digest of an earlier run.
	file := filepath.Join(p.options.out, "digest")
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := p.exportSBOMs(ctx); err != nil { // before the first push
		return err
	}
	pusher := p.dag.Container()
	if p.options.registryPassword.set() {
		pusher = pusher.WithRegistryAuth(p.options.registry(), p.options.registryUser, p.options.registryPassword.secret(p.dag))
	}
	var variants []*dagger.Container
	for _, platform := range p.options.platforms {
		variants = append(variants, p.product(platform))
	}
	var digest string
	for _, name := range tags(p.options, p.revision) {
		pushed, err := pusher.Publish(ctx, name, dagger.ContainerPublishOpts{PlatformVariants: variants})
		if err != nil {
			return fmt.Errorf("push %s: %w%s", name, err, p.refused(err))
		}
		_, got, ok := strings.Cut(pushed, "@")
		if !ok {
			return fmt.Errorf("push %s: the engine named no digest: %q", name, pushed)
		}
		if digest != "" && got != digest {
			return fmt.Errorf("push %s: digest %s, and %s under the tag before: nothing is called published", name, got, digest)
		}
		digest = got
	}
	p.digest = p.options.image + "@" + digest
	if err := os.MkdirAll(p.options.out, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte(p.digest+"\n"), 0o644); err != nil {
		return err
	}
	fmt.Fprintln(p.stdout, p.digest)
	return nil
}

// refused adds to err whose password the registry refused.
func (p *pipeline) refused(err error) string {
	if !strings.Contains(err.Error(), "401 Unauthorized") && !strings.Contains(err.Error(), "403 Forbidden") {
		return ""
	}
	if !p.options.registryPassword.set() {
		return "\n  The registry wants a password: --registry-user, --registry-password"
	}
	return fmt.Sprintf("\n  The registry refuses %s with what --registry-password names", p.options.registryUser)
}
