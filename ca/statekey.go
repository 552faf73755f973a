package ca

import (
	"fmt"
	"os"
	"strings"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// LoadStateKey reads the keys that refs name, each the path of a file or env:NAME.
// The first key signs and all verify. No refs give a zero key. Errors never contain
// key material.
func LoadStateKey(refs []string) (store.StateKey, error) {
	var texts []string
	for _, ref := range refs {
		text, err := readStateKey(ref)
		if err != nil {
			return store.StateKey{}, fmt.Errorf("state_key: %w", err)
		}
		texts = append(texts, strings.TrimSpace(text))
		if _, err := store.ParseStateKey(texts...); err != nil {
			return store.StateKey{}, fmt.Errorf("state_key %s: %w", ref, err)
		}
	}
	return store.ParseStateKey(texts...)
}

func readStateKey(ref string) (string, error) {
	name, ok := strings.CutPrefix(ref, "env:")
	if !ok {
		// A key is 65 bytes; a longer file fails to parse.
		f, err := os.Open(ref)
		if err != nil {
			return "", err
		}
		defer f.Close()
		data := make([]byte, 256)
		n, err := f.Read(data)
		if n == 0 && err != nil {
			return "", fmt.Errorf("%s is empty", ref)
		}
		return string(data[:n]), nil
	}
	text := os.Getenv(name)
	if text == "" {
		return "", fmt.Errorf("environment variable %s is not set", name)
	}
	return text, nil
}
