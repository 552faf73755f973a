package policy

import _ "embed"

// Schema is the JSON Schema of policy.yaml, generated from the types of this package.
//
//go:embed policy.schema.json
var Schema string
