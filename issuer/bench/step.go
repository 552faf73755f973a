package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
)

// makeStep makes a step-ca with one OIDC provisioner and one of its databases.
func makeStep(database string) func(context.Context, *site, *server) error {
	return func(ctx context.Context, s *site, v *server) error {
		program, err := s.peer(ctx, "step-ca")
		if err != nil {
			return err
		}
		authority, err := newAuthority(v.dir, nil)
		if err != nil {
			return err
		}
		db := map[string]any{"type": database, "dataSource": filepath.Join(v.dir, "db")}
		v.size = func(context.Context) (int64, error) { return folderSize(filepath.Join(v.dir, "db")) }
		switch database {
		case "badgerv2":
			db["badgerFileLoadingMode"] = ""
		case "postgresql":
			dsn, err := s.database(ctx)
			if err != nil {
				return err
			}
			db["dataSource"] = dsn
			v.database = s.postgres.PID()
			v.size = func(ctx context.Context) (int64, error) { return databaseSize(ctx, dsn) }
		}
		config, err := json.Marshal(map[string]any{
			"root": authority.root, "crt": authority.intermediate, "key": authority.key,
			"address": v.addr, "dnsNames": []string{"127.0.0.1"},
			"logger": map[string]any{"format": "text"},
			"db":     db,
			"authority": map[string]any{
				// Without this, step-ca refuses tokens issued before its start, and a
				// cold start would include the minting of a token.
				"disableIssuedAtCheck": true,
				"claims":               map[string]any{"minTLSCertDuration": "5m", "maxTLSCertDuration": "24h", "defaultTLSCertDuration": "1h"},
				"provisioners": []any{map[string]any{
					"type": "OIDC", "name": "github", "clientID": audience, "clientSecret": "",
					"configurationEndpoint": s.tokens.URL() + "/.well-known/openid-configuration",
				}},
			},
			"tls": map[string]any{"minVersion": 1.2, "maxVersion": 1.3},
		})
		if err != nil {
			return err
		}
		path := filepath.Join(v.dir, "ca.json")
		if err := os.WriteFile(path, config, 0o600); err != nil {
			return err
		}
		v.argv = []string{program, path}
		v.request = request{path: "/1.0/sign", body: func(b []byte, c *client, token string) []byte {
			b = append(b, `{"csr":"`...)
			b = append(b, c.csr...)
			b = append(b, `","ott":"`...)
			b = append(b, token...)
			return append(b, `"}`...)
		}}
		v.tls, err = trusting(authority.root)
		return err
	}
}
