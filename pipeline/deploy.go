package main

import (
	"context"
	"fmt"
	"path/filepath"
)

// deploy gives the published digest to flyctl, which waits for the machine's health
// checks. The token is a Dagger secret: it is in no log and no layer.
func (p *pipeline) deploy(ctx context.Context) error {
	if p.digest == "" {
		return fmt.Errorf("nothing was published in this run")
	}
	config := p.dag.Host().Directory(filepath.Dir(p.options.flyConfig))
	said, err := p.image(p.options.flyctlImage, "").
		WithSecretVariable("FLY_API_TOKEN", p.options.flyToken.secret(p.dag)).
		WithDirectory("/deploy", config).
		WithWorkdir("/deploy").
		// A deployment must run each time: never take it from the cache.
		WithEnvVariable("MAYFLY_DEPLOY", p.digest+" "+p.revision.sha).
		WithExec([]string{"flyctl", "deploy", "--app", p.options.flyApp, "--config", filepath.Base(p.options.flyConfig),
			"--image", p.digest, "--wait-timeout", "5m", "--yes"}).
		Stdout(ctx)
	if err != nil {
		return err
	}
	fmt.Fprint(p.stdout, said)
	return nil
}
