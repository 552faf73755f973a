package sidecar

import (
	"testing"

	"github.com/mayfly-ca/mayfly/client/configfile/schematest"
)

var configSchema = schematest.File{
	Type: &Config{}, Source: "config.go", Path: "sidecar.schema.json", Home: "engine-sidecar/sidecar.schema.json",
	Title: "sidecar.yaml: the configuration of mayfly-sidecar",
}

func TestSchema(t *testing.T) {
	t.Parallel()
	configSchema.Hold(t)
	configSchema.CheckKeys(t)
	good := map[string]string{"the least": minimal, "with limits": minimal + "limits: {connections: 1, handshake_timeout: 1m30s}\ndrain_timeout: 0s\n"}
	for _, path := range []string{"../fly/engine/sidecar.yaml", "../fly/buildkit/sidecar.yaml"} {
		configSchema.Shipped(t, path)
	}
	for name, text := range good {
		if err := configSchema.Validate(t, text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The program also refuses what the schema refuses.
	for name, line := range map[string]string{
		"an unknown key":         "isuer: x\n",
		"an unknown limit":       "limits: {conections: 1}\n",
		"text for a number":      "limits: {connections: many}\n",
		"a duration in days":     "idle_exit: 1d\n",
		"a number of seconds":    "idle_exit: 60\n",
		"text for a list":        "trusted_proxies: 10.0.0.0/8\n",
		"another proxy protocol": "proxy_protocol: v2\n",
		"another on_stale":       "on_stale: ignore\n",
	} {
		if configSchema.Validate(t, minimal+line) == nil {
			t.Errorf("%s: the schema accepts it", name)
		}
		if _, err := ParseConfig([]byte(minimal+line), nil); err == nil {
			t.Errorf("%s: the program accepts it", name)
		}
	}
}
