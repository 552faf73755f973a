package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// makeFulcio makes a Fulcio with a CA on disk and no certificate log. It serves HTTP
// without TLS.
func makeFulcio(ctx context.Context, s *site, v *server) error {
	program, err := s.peer(ctx, "fulcio")
	if err != nil {
		return err
	}
	authority, err := newAuthority(v.dir, codeSigning)
	if err != nil {
		return err
	}
	rpc, err := freeAddress()
	if err != nil {
		return err
	}
	metrics, err := freeAddress()
	if err != nil {
		return err
	}
	config := filepath.Join(v.dir, "config.yaml")
	text := fmt.Sprintf("oidc-issuers:\n  %[1]s:\n    issuer-url: %[1]s\n    client-id: %[2]s\n    type: github-workflow\n", s.tokens.URL(), audience)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	v.litter = filepath.Join(v.dir, "socket")
	v.argv = []string{
		program, "serve", "--ca", "fileca", "--fileca-cert", authority.chain, "--fileca-key", authority.key, "--fileca-key-passwd", "none",
		"--fileca-watch=false", "--ct-log-url", "", "--config-path", config, "--log_type", "prod",
		"--host", "127.0.0.1", "--port", port(v.addr), "--grpc-host", "127.0.0.1", "--grpc-port", port(rpc), "--metrics-port", port(metrics),
		"--legacy-unix-domain-socket", v.litter,
	}
	v.request = request{path: "/api/v2/signingCert", body: func(b []byte, c *client, token string) []byte {
		b = append(b, `{"credentials":{"oidcIdentityToken":"`...)
		b = append(b, token...)
		b = append(b, `"},"certificateSigningRequest":"`...)
		b = append(b, c.der...)
		return append(b, `"}`...)
	}}
	return nil
}
