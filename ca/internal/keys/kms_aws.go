//go:build !noawskms

package keys

// Amazon KMS: awskms:region=...;key-id=.... A release that holds its key elsewhere is
// built smaller with -tags noawskms, and refuses such URIs.
import _ "go.step.sm/crypto/kms/awskms"
