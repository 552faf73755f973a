//go:build !noazurekms

package keys

// Azure Key Vault: azurekms:vault=...;name=.... A release that holds its key elsewhere is
// built smaller with -tags noazurekms, and refuses such URIs.
import _ "go.step.sm/crypto/kms/azurekms"
