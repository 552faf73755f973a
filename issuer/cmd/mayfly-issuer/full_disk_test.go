package main_test

import (
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// TestFullDisk is ATTACKS 36 with a disk that is really full. An issuer that cannot
// record answers 503 and issues nothing; earlier certificates are recorded. With free
// space, it recovers by itself, and the refused tokens work.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t)
	a := newAuthority(t, "")
	a.write(t, filepath.Join(dir, "store"))
	a.run(t, "store", "create")
	p := a.serve(t)
	var held []string
	var token, csr string
	for {
		_, csr = issuertest.Key(t)
		token = a.GitHubToken(map[string]any{"filler": strings.Repeat("x", 8<<10)})
		out, err := p.issue(token, csr)
		if err != nil {
			if !refused(err, wire.ProblemUnavailable) {
				t.Fatalf("a full disk is %v", err)
			}
			break
		}
		if held = append(held, out.Serial); len(held) > 10_000 {
			t.Fatal("the disk never fills")
		}
	}
	if len(held) == 0 {
		t.Fatal("nothing was issued while there was room")
	}
	fill(t, filepath.Join(dir, "filler"))
	for { // smaller records may still fit into the store's files
		out, err := p.issue(a.GitHubToken(nil), csr)
		if err != nil {
			if !refused(err, wire.ProblemUnavailable) {
				t.Errorf("with a full disk: %v", err)
			}
			break
		}
		if held = append(held, out.Serial); len(held) > 10_000 {
			t.Fatal("the disk never fills")
		}
	}
	p.becomes(t, http.StatusServiceUnavailable)
	if err := os.Remove(filepath.Join(dir, "ballast")); err != nil {
		t.Fatal(err)
	}
	p.becomes(t, http.StatusOK)
	out, err := p.issue(token, csr)
	if err != nil {
		t.Fatalf("with room again: %v\n%s", err, p.log)
	}
	held = append(held, out.Serial)
	p.stop(t)
	records := a.records(t)
	for _, serial := range held {
		if _, ok := records[serial]; !ok {
			t.Errorf("certificate %s is held by a client and not recorded", serial)
		}
	}
	if len(records) != len(held) {
		t.Errorf("%d records, %d certificates were given out", len(records), len(held))
	}
	a.run(t, "verify")
}

// becomes waits until readyz answers status.
func (p *process) becomes(t *testing.T, status int) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-tick.C {
		resp, err := p.client.Get(p.url + wire.PathReady)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		switch {
		case resp.StatusCode == status:
			return
		case time.Now().After(deadline):
			t.Fatalf("readyz is %d, never %d", resp.StatusCode, status)
		}
	}
}

// fill writes until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4<<10))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// smallDisk returns a folder on a file system of 4 MiB. The file ballast takes half of
// it.
func smallDisk(t *testing.T) string {
	t.Helper()
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		if os.Getenv("MAYFLY_TEST_REQUIRE") == "all" {
			t.Fatal("a small disk wants root on Linux: run the tests with sudo")
		}
		t.Skip("a small disk wants root on Linux: run the tests with sudo")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}
