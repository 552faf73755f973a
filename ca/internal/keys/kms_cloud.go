//go:build !nocloudkms

package keys

// Google Cloud KMS: cloudkms:projects/.../cryptoKeyVersions/1. The build tag
// nocloudkms makes a smaller program that refuses such URIs.
import _ "go.step.sm/crypto/kms/cloudkms"
