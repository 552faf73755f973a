package policy

import _ "embed"

// Schema is the JSON Schema of policy.yaml, made from the types of this package.
//
//go:embed policy.schema.json
var Schema string
