package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer"
)

const issuerConfig = `listen: %[1]s
public_url: https://%[1]s
tls: {mode: self}
ca: {root: %[2]s, root_crl: %[3]s, intermediate: %[4]s, key: %[5]s}
store: %[6]q
state_key: [%[7]s]
policy: policy.yaml
rate: {per_ip: 0, per_identity: 0}
`

const issuerPolicy = `version: 1
trust_domain: %s
providers:
  github: {type: github, issuer: "%s", unsafe_http: true}
engines:
  default: {endpoint: "tcp://engine.example.com:8080", server_name: engine.example.com}
rules:
  - name: app-main
    provider: github
    match: {repository_owner_id: "285964", repository_id: "1339936803", ref: refs/heads/main, event_name: [push, workflow_dispatch]}
    grant: {profile: client, engines: [default], ttl: 1h}
`

// makeMayfly makes an issuer as an operator would, but without rate limits, which the
// other servers do not have.
func makeMayfly(postgres bool) func(context.Context, *site, *server) error {
	return func(ctx context.Context, s *site, v *server) error {
		program, err := s.issuer(ctx)
		if err != nil {
			return err
		}
		made, err := ca.Init(ctx, ca.InitOptions{
			Dir: filepath.Join(v.dir, "ca"), TrustDomain: trustDomain, EngineDNS: []string{"example.com"}, IssuerURL: "https://" + v.addr,
		})
		if err != nil {
			return err
		}
		dsn := made.DSN
		v.size = func(context.Context) (int64, error) { return folderSize(dsn) }
		if postgres {
			if dsn, err = s.database(ctx); err != nil {
				return err
			}
			v.database = s.postgres.PID()
			v.size = func(ctx context.Context) (int64, error) { return databaseSize(ctx, dsn) }
		}
		config := filepath.Join(v.dir, "issuer.yaml")
		for path, text := range map[string]string{
			config:                              fmt.Sprintf(issuerConfig, v.addr, made.Root, made.RootCRL, made.Intermediate, made.IntermediateKey, dsn, made.StateKey),
			filepath.Join(v.dir, "policy.yaml"): fmt.Sprintf(issuerPolicy, trustDomain, s.tokens.URL()),
		} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				return err
			}
		}
		if postgres {
			c, err := issuer.LoadConfig(config)
			if err != nil {
				return err
			}
			if err := issuer.CreateStore(ctx, c); err != nil {
				return err
			}
		}
		v.argv = []string{program, "serve", "--config", config}
		v.request = request{path: wire.PathCertificates, bearer: true, body: func(b []byte, c *client, _ string) []byte {
			b = append(b, `{"csr":"`...)
			b = append(b, c.csr...)
			return append(b, `"}`...)
		}}
		v.tls, err = trusting(made.Root)
		return err
	}
}

// trusting returns the TLS configuration of a client that trusts one root and never
// resumes a session.
func trusting(root string) (*tls.Config, error) {
	text, err := os.ReadFile(root)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, errors.New("no root in " + root)
	}
	return &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}}, nil
}
