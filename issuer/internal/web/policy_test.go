package web_test

import (
	"os"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// rewrite replaces text in the policy and waits until it is in force.
func rewrite(t *testing.T, i *issuertest.Issuer, from, to string) {
	t.Helper()
	token := i.AdminToken()
	data, err := os.ReadFile(i.PolicyFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(i.PolicyFile, []byte(strings.ReplaceAll(string(data), from, to)), 0o600); err != nil {
		t.Fatal(err)
	}
	i.Reload()
	for t.Context().Err() == nil {
		if err := i.Call("GET", wire.PathBlocks, token, nil, nil); err != nil {
			return
		}
	}
}
