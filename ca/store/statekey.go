package store

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// stateKeySize is the length of a state key in bytes.
const stateKeySize = sha256.Size

// StateKey authenticates rows of the store (HMAC-SHA256, RFC 2104), so that a
// writer in the database cannot make or change them. It is a list of keys: the
// first signs and all verify. So a key can be replaced while rows of the previous
// key are still good. The zero value holds no key. It is never printed.
type StateKey struct{ keys [][]byte }

// NewStateKey returns a StateKey with one random key.
func NewStateKey() StateKey {
	key := make([]byte, stateKeySize)
	_, _ = rand.Read(key) // never fails
	return StateKey{[][]byte{key}}
}

// ParseStateKey parses keys of 32 bytes, each in 64 hex digits or in base64.
// EncodeStateKey and `openssl rand -hex 32` write this form.
func ParseStateKey(texts ...string) (StateKey, error) {
	var k StateKey
	for _, text := range texts {
		key, err := hex.DecodeString(text)
		if err != nil {
			key, err = base64.StdEncoding.DecodeString(text)
		}
		if err != nil || len(key) != stateKeySize {
			return StateKey{}, errors.New("not 32 bytes in hex or base64; openssl rand -hex 32 makes a key")
		}
		for _, other := range k.keys {
			if hmac.Equal(other, key) {
				return StateKey{}, errors.New("the same key twice")
			}
		}
		k.keys = append(k.keys, key)
	}
	return k, nil
}

// EncodeStateKey returns the first key of k in hex, as a key file holds it.
func EncodeStateKey(k StateKey) string { return hex.EncodeToString(k.keys[0]) }

// IsZero reports whether k holds no key.
func (k StateKey) IsZero() bool { return len(k.keys) == 0 }

// MAC returns the first key's MAC over fields. use names the kind of row: a MAC of
// one kind is never valid for another. k must hold a key.
func (k StateKey) MAC(use string, fields ...[]byte) []byte { return stateMAC(k.keys[0], use, fields) }

// Verify reports whether mac is the MAC of any key of k over use and fields. Its
// time does not depend on which byte differs.
func (k StateKey) Verify(mac []byte, use string, fields ...[]byte) bool {
	good := false
	for _, key := range k.keys {
		if hmac.Equal(mac, stateMAC(key, use, fields)) {
			good = true
		}
	}
	return good
}

// stateMAC writes the length of each field before it, so that no two lists of
// fields give the same bytes.
func stateMAC(key []byte, use string, fields [][]byte) []byte {
	h := hmac.New(sha256.New, key)
	for _, f := range append([][]byte{[]byte(use)}, fields...) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(f)))
		h.Write(n[:])
		h.Write(f)
	}
	return h.Sum(nil)
}

// LogValue implements slog.LogValuer.
func (StateKey) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// Format implements fmt.Formatter, for every verb.
func (StateKey) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "[redacted]") }
