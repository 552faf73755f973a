//go:build !noazurekms

package keys

// Azure Key Vault: azurekms:vault=...;name=.... The build tag noazurekms makes a
// smaller program that refuses such URIs.
import _ "go.step.sm/crypto/kms/azurekms"
