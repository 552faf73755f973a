//go:build !nocloudkms

package keys

// Google Cloud KMS: cloudkms:projects/.../cryptoKeyVersions/1. A release that holds its key elsewhere is
// built smaller with -tags nocloudkms, and refuses such URIs.
import _ "go.step.sm/crypto/kms/cloudkms"
