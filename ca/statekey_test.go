package ca_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/store"
)

func TestLoadStateKey(t *testing.T) {
	old, next := store.EncodeStateKey(store.NewStateKey()), store.EncodeStateKey(store.NewStateKey())
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file := write("state.key", old+"\n")
	t.Setenv("MAYFLY_TEST_STATE_KEY", next)
	t.Setenv("MAYFLY_TEST_PASSWORD", "hunter2")
	for _, refs := range [][]string{{file}, {"env:MAYFLY_TEST_STATE_KEY"}, {"env:MAYFLY_TEST_STATE_KEY", file}} {
		k, err := ca.LoadStateKey(refs)
		if err != nil {
			t.Errorf("%q: %v", refs, err)
			continue
		}
		first := old
		if refs[0] != file {
			first = next
		}
		if store.EncodeStateKey(k) != first {
			t.Errorf("%q: the first key does not sign", refs)
		}
	}
	if k, err := ca.LoadStateKey(nil); err != nil || !k.IsZero() {
		t.Errorf("no keys: %v", err)
	}
	for want, refs := range map[string][]string{
		"no such file":                       {filepath.Join(dir, "missing")},
		"is empty":                           {write("empty", "")},
		"MAYFLY_TEST_UNSET is not set":       {"env:MAYFLY_TEST_UNSET"},
		"MAYFLY_TEST_PASSWORD: not 32 bytes": {"env:MAYFLY_TEST_PASSWORD"},
		"long: not 32 bytes":                 {write("long", strings.Repeat(old, 1000))},
		"state.key: the same key twice":      {file, "env:MAYFLY_TEST_STATE_KEY", file},
		"two: not 32 bytes":                  {write("two", old+"\n"+next+"\n")},
	} {
		k, err := ca.LoadStateKey(refs)
		if err == nil || !strings.Contains(err.Error(), want) || !k.IsZero() {
			t.Errorf("%q: %v, want %q", refs, err, want)
		}
		if err != nil && (strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), old)) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
}
