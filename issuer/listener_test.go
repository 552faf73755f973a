package issuer

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func writePair(t *testing.T, cert, key string, serial int64) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}, &x509.Certificate{}, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFileKeeper checks tls.mode files: a changed pair is served, a broken one is not.
func TestFileKeeper(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	writePair(t, cert, key, 1)
	k, err := newFileCert(t.Context(), cert, key, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	served := func() int64 {
		c, err := k.config().GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf.SerialNumber.Int64()
	}
	if k.stale(k.current.Load()) || served() != 1 {
		t.Error("a pair just read is stale, or is not served")
	}
	if err := os.WriteFile(key, []byte("half a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !k.stale(k.current.Load()) || k.refresh(t.Context()) == nil || served() != 1 {
		t.Error("a broken pair took the place of the good one")
	}
	writePair(t, cert, key, 2)
	if !k.stale(k.current.Load()) {
		t.Error("a changed pair is not noticed")
	}
	if err := k.refresh(t.Context()); err != nil || served() != 2 {
		t.Errorf("the new pair is not served: %v", err)
	}
}

// TestHandOver checks that run_as changes the owner of only the store's own files.
func TestHandOver(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		if os.Getenv("MAYFLY_TEST_REQUIRE") == "all" {
			t.Fatal("needs root")
		}
		t.Skip("needs root: run the tests as root in a container")
	}
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	for _, name := range []string{filepath.Join(dir, "store"), filepath.Join(dir, "store-wal"), filepath.Join(dir, "ca.key"), outside} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(dir, "store-link")); err != nil {
		t.Fatal(err)
	}
	if err := chownStore(filepath.Join(dir, "store"), 65534, 65534); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]uint32{dir: 65534, filepath.Join(dir, "store"): 65534, filepath.Join(dir, "store-wal"): 65534, filepath.Join(dir, "ca.key"): 0, outside: 0} {
		if got := ownerOf(t, path); got != want {
			t.Errorf("%s belongs to %d, want %d", path, got, want)
		}
	}
	if err := chownStore("/store", 65534, 65534); err == nil {
		t.Error("the root folder was handed over")
	}
}

func TestLookupUser(t *testing.T) {
	t.Parallel()
	for spec, want := range map[string][2]int{"0": {0, 0}, "65532": {65532, 65532}, "65532:99": {65532, 99}, "root": {0, 0}} {
		uid, gid, err := lookupUser(spec)
		if err != nil || uid != want[0] || gid != want[1] {
			t.Errorf("%s: %d:%d %v", spec, uid, gid, err)
		}
	}
	for _, spec := range []string{"", "nobody-of-this-name", "root:root", "-1", "1:x"} {
		if _, _, err := lookupUser(spec); err == nil {
			t.Errorf("%q was taken for a user", spec)
		}
	}
	if err := dropPrivileges("", "/nowhere/store", slog.New(slog.NewTextHandler(&bytes.Buffer{}, nil))); err != nil {
		t.Error(err)
	}
}
