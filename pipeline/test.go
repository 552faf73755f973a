package main

import (
	"context"
	"fmt"
	"strings"

	"dagger.io/dagger"
)

// test runs the unit tests. Then it runs the issuer and PostgreSQL as services, and
// a program of this repository that tests the issuer.
func (p *pipeline) test(ctx context.Context) error {
	args := append([]string{"go", "test", "-timeout", "20m"}, strings.Fields(p.options.testPackages)...)
	if _, err := p.testToolchain().WithExec(args).Sync(ctx); err != nil {
		return fmt.Errorf("unit tests: %w", err)
	}
	if _, err := p.integration(p.goToolchain("native")).Sync(ctx); err != nil {
		return fmt.Errorf("integration tests: %w", err)
	}
	return nil
}

// integration returns a container that sends requests to an issuer of this
// checkout. The issuer stores its records in PostgreSQL. Both are services: they
// start and end with the container.
func (p *pipeline) integration(toolchain *dagger.Container) *dagger.Container {
	postgres := p.image(p.options.postgresImage, "").
		WithEnvVariable("POSTGRES_PASSWORD", "integration").
		WithEnvVariable("POSTGRES_DB", "mayfly").
		WithExposedPort(5432).
		AsService(dagger.ContainerAsServiceOpts{UseEntrypoint: true, Args: []string{"postgres"}})
	// An earlier step makes the CA, so that the client has its root: TLS is
	// verified here as everywhere.
	withCA := toolchain.
		WithExec([]string{"go", "build", "-o", "/usr/local/bin/", "./issuer/cmd/mayfly-issuer"}).
		WithExec([]string{"mayfly-issuer", "init", "--dir", "/ca", "--trust-domain", "ci.mayfly.example",
			"--engine-dns", "engine.mayfly.example", "--issuer-url", integrationURL})
	issuer := withCA.
		WithServiceBinding("postgres", postgres).
		WithExposedPort(8443).
		AsService(dagger.ContainerAsServiceOpts{Args: []string{"sh", "-euc", issuerScript}})
	return toolchain.
		WithServiceBinding(integrationHost, issuer).
		WithFile("/ca/root.crt", withCA.File("/ca/issuer/root.crt")).
		WithEnvVariable("MAYFLY_INTEGRATION_ISSUER", integrationURL).
		WithEnvVariable("MAYFLY_INTEGRATION_ROOT", "/ca/root.crt").
		WithExec([]string{"go", "test", "-count=1", "-run", "^TestIntegration", "-v", "./pipeline"})
}

// integrationURL has a name that the CA's name constraints allow: more than a
// top-level domain.
const (
	integrationHost = "issuer.mayfly.example"
	integrationURL  = "https://" + integrationHost + ":8443"
)

// issuerScript serves the CA in /ca over a new store.
const issuerScript = `
cat >/ca/issuer/policy.yaml <<'POLICY'
version: 1
trust_domain: ci.mayfly.example
providers:
  github: {type: github, issuer: https://token.actions.githubusercontent.com}
engines:
  default: {endpoint: "tcp://engine.mayfly.example:8080", server_name: engine.mayfly.example}
rules:
  - name: main
    provider: github
    match: {repository_id: "1", ref: refs/heads/main, event_name: [push]}
    grant: {profile: client, engines: [default], ttl: 1h}
POLICY
cat >/ca/issuer/issuer.yaml <<CONFIG
listen: ":8443"
public_url: https://issuer.mayfly.example:8443
tls: {mode: self}
ca: {root: root.crt, root_crl: root.crl, intermediate: intermediate.crt, key: intermediate.key}
store: postgres://postgres:integration@postgres:5432/mayfly?sslmode=disable
state_key: [state.key]
policy: policy.yaml
CONFIG
mayfly-issuer store create --config /ca/issuer/issuer.yaml
exec mayfly-issuer serve --config /ca/issuer/issuer.yaml
`
