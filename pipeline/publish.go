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

// tags are the names that publish pushes: <ref>-<sha> always, --tag's, and
// latest on main only.
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

// publish pushes one multi-platform image. The digest is told, and written to
// OUT/digest, only when every tag has been pushed and names the same image.
func (p *pipeline) publish(ctx context.Context) error {
	// What a run before has published is not this run's.
	file := filepath.Join(p.options.out, "digest")
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := p.exportSBOMs(ctx); err != nil { // before anything is pushed
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

// refused says whose password it was, where a registry refuses one.
func (p *pipeline) refused(err error) string {
	if !strings.Contains(err.Error(), "401 Unauthorized") && !strings.Contains(err.Error(), "403 Forbidden") {
		return ""
	}
	if !p.options.registryPassword.set() {
		return "\n  The registry wants a password: --registry-user, --registry-password"
	}
	return fmt.Sprintf("\n  The registry refuses %s with what --registry-password names", p.options.registryUser)
}
