package issuer

import (
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/client/configfile/schematest"
)

var configSchema = schematest.File{
	Type: &Config{}, Source: "config.go", Path: "issuer.schema.json", Home: "issuer/issuer.schema.json",
	Title: "issuer.yaml: the configuration of mayfly-issuer",
}

func TestSchema(t *testing.T) {
	t.Parallel()
	configSchema.Hold(t)
	configSchema.CheckKeys(t)
	configSchema.Shipped(t, "../fly/issuer/issuer.yaml")
	for name, text := range map[string]string{"the tests'": goodConfig, "with rates": goodConfig + "rate: {per_ip: 0}\nretention: 48h\n"} {
		if err := configSchema.Validate(t, text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string]string{
		"an unknown key":       goodConfig + "lisen: x\n",
		"an unknown inner key": goodConfig + "rate: {per_pi: 1}\n",
		"a missing key":        strings.Replace(goodConfig, "policy: policy.yaml\n", "", 1),
		"a missing inner key":  strings.Replace(goodConfig, "root_crl: root.crl, ", "", 1),
		"another mode of TLS":  goodConfig + "tls: {mode: maybe}\n",
		"a number of hours":    goodConfig + "retention: 48\n",
		"a duration in days":   goodConfig + "retention: 2d\n",
		"nothing":              "{}\n",
	} {
		if configSchema.Validate(t, text) == nil {
			t.Errorf("%s is valid", name)
		}
	}
}
