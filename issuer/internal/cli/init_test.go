package cli

import (
	"path/filepath"
	"testing"

	"github.com/mayfly-ca/mayfly/client/command"
	"github.com/mayfly-ca/mayfly/client/configfile/schematest"
)

// TestInitNamesSchemas checks that the files from init name the schemas from init.
func TestInitNamesSchemas(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	code, _, errOut := run(t, "", "init", "--dir", filepath.Join(dir, "ca"), "--trust-domain", "ci.example.com", "--engine-dns", "engine.example.com")
	if code != command.ExitOK {
		t.Fatalf("exit %d: %s", code, errOut)
	}
	for name, schema := range map[string]string{"issuer.yaml": "../../issuer.schema.json", "policy.yaml": "../policy/policy.schema.json"} {
		schematest.File{Path: schema}.Shipped(t, filepath.Join(dir, "ca", "issuer", name))
	}
}
