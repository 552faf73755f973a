package webtest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The axe-core that checks the pages, by Deque, MPL-2.0. npm fetches it into the
// test's folder; it is not part of mayfly.
const (
	axeVersion = "4.14.1"
	axeDigest  = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==" // SHA-512, as in npm's integrity
	axeFile    = "package/axe.min.js"
)

// Axe is the source of axe-core.
type Axe string

// FetchAxe fetches axe-core with npm and checks its digest.
func FetchAxe(t testing.TB) Axe {
	t.Helper()
	npm, err := find("npm")
	if err != nil {
		missing(t, "no npm in PATH, which fetches axe-core: install npm")
	}
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, npm, "pack", "--silent", "--cache", filepath.Join(dir, "cache"), "--pack-destination", dir, "axe-core@"+axeVersion)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		missing(t, "npm cannot fetch axe-core: give this machine a way to npm's registry: "+err.Error()+": "+string(out))
	}
	data, err := os.ReadFile(filepath.Join(dir, "axe-core-"+axeVersion+".tgz"))
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha512.Sum512(data); base64.StdEncoding.EncodeToString(sum[:]) != axeDigest {
		t.Fatalf("axe-core %s is not the one that we know: SHA-512 %x", axeVersion, sum)
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err != nil {
			t.Fatalf("axe-core: %s: %v", axeFile, err)
		}
		if h.Name != axeFile {
			continue
		}
		source, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return Axe(source)
	}
}

// violation is the result of axe.run for one rule.
type violation struct {
	ID     string `json:"id"`
	Impact string `json:"impact"`
	Help   string `json:"help"`
	Nodes  []struct {
		HTML    string   `json:"html"`
		Summary string   `json:"failureSummary"`
		Target  []string `json:"target"`
	} `json:"nodes"`
}

// Accessible fails the test for each serious or critical fault of the current page,
// and logs lesser ones.
func (b *Browser) Accessible(axe Axe, name string) {
	b.t.Helper()
	answer := b.Evaluate(string(axe) + `;axe.run().then(r => JSON.stringify({violations: r.violations, passes: r.passes.length}))`)
	var got struct {
		Violations []violation `json:"violations"`
		Passes     int         `json:"passes"`
	}
	if err := json.Unmarshal([]byte(answer), &got); err != nil || got.Passes == 0 {
		b.t.Fatalf("axe on %s: %v: %.200s", name, err, answer)
	}
	for _, v := range got.Violations {
		say := b.t.Logf
		if v.Impact == "serious" || v.Impact == "critical" {
			say = b.t.Errorf
		}
		for _, n := range v.Nodes {
			say("%s: %s: %s (%s): %s\n%s", name, v.Impact, v.Help, v.ID, strings.Join(n.Target, " "), n.Summary)
		}
	}
}
