//go:build !noawskms

package keys

// Amazon KMS: awskms:region=...;key-id=.... The build tag noawskms makes a smaller
// program that refuses such URIs.
import _ "go.step.sm/crypto/kms/awskms"
