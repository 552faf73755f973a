package issuer

import _ "embed"

// ConfigSchema is the JSON Schema of issuer.yaml, generated from Config.
//
//go:embed issuer.schema.json
var ConfigSchema string
