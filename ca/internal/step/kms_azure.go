//go:build !noazurekms

package step

// Azure Key Vault: azurekms:vault=...;name=.... A release that holds its key elsewhere is
// built smaller with -tags noazurekms, and refuses such URIs.
import _ "go.step.sm/crypto/kms/azurekms"
