package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// testRegistry is a registry on loopback that requires a password.
type testRegistry struct {
	host string // host:port

	mu     sync.Mutex
	writes int // accepted requests that change something
}

const registryUser, registryPassword = "robot", "correct-horse-7391"

func startRegistry(t *testing.T) *testRegistry {
	t.Helper()
	r := &testRegistry{}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if user, password, _ := q.BasicAuth(); user != registryUser || password != registryPassword {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
			return
		}
		if q.Method != http.MethodGet && q.Method != http.MethodHead {
			r.mu.Lock()
			r.writes++
			r.mu.Unlock()
		}
		inner.ServeHTTP(w, q)
	}))
	t.Cleanup(server.Close)
	r.host = strings.TrimPrefix(server.URL, "http://")
	return r
}

// get pulls with OCI's distribution protocol. If reference is a digest, get checks
// the content against it.
func (r *testRegistry) get(t *testing.T, repository, kind, reference string) ([]byte, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.host+"/v2/"+repository+"/"+kind+"/"+reference, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.SetBasicAuth(registryUser, registryPassword)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", reference, answer.Status)
	}
	if got := digestOf(body); strings.HasPrefix(reference, "sha256:") && got != reference {
		t.Errorf("%s is %s", reference, got)
	}
	return body, nil
}

func digestOf(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

// decode pulls a JSON document by its digest.
func (r *testRegistry) decode(t *testing.T, repository, kind, digest string, into any) {
	t.Helper()
	data, err := r.get(t, repository, kind, digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatal(err)
	}
}

// unpack pulls an image of one platform and returns the folder with its files.
func (r *testRegistry) unpack(t *testing.T, repository, digest string) string {
	t.Helper()
	var index v1.IndexManifest
	if r.decode(t, repository, "manifests", digest, &index); len(index.Manifests) == 1 {
		digest = index.Manifests[0].Digest.String()
	}
	var manifest v1.Manifest
	r.decode(t, repository, "manifests", digest, &manifest)
	root := t.TempDir()
	for _, l := range manifest.Layers {
		layer, err := r.get(t, repository, "blobs", l.Digest.String())
		if err != nil {
			t.Fatal(err)
		}
		untar := exec.CommandContext(t.Context(), "tar", "-xz", "-C", root)
		untar.Stdin = bytes.NewReader(layer)
		if said, err := untar.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, said)
		}
	}
	return root
}

// checkPublished pulls an image of both platforms by its digest. The working folder
// is the checkout from which the image was made.
func (r *testRegistry) checkPublished(t *testing.T, repository, digest string, rev revision) {
	t.Helper()
	for _, tag := range []string{"v1.2.3", rev.tag()} {
		if tagged, err := r.get(t, repository, "manifests", tag); err != nil || digestOf(tagged) != digest {
			t.Errorf("tag %s is %s (%v), want %s", tag, digestOf(tagged), err, digest)
		}
	}
	if _, err := r.get(t, repository, "manifests", "latest"); (err == nil) != rev.main {
		t.Errorf("latest is pushed on main only: %v on %s", err, rev.ref)
	}
	var index v1.IndexManifest
	r.decode(t, repository, "manifests", digest, &index)
	platforms := map[string]bool{}
	for _, m := range index.Manifests {
		platforms[m.Platform.String()] = true
		r.checkImage(t, repository, m, rev)
	}
	if len(platforms) != 2 || !platforms["linux/amd64"] || !platforms["linux/arm64"] {
		t.Errorf("platforms: %v", platforms)
	}
}

// checkImage pulls and checks the whole image of one platform.
func (r *testRegistry) checkImage(t *testing.T, repository string, m v1.Descriptor, rev revision) {
	t.Helper()
	var manifest v1.Manifest
	r.decode(t, repository, "manifests", m.Digest.String(), &manifest)
	var config v1.ConfigFile
	r.decode(t, repository, "blobs", manifest.Config.Digest.String(), &config)
	if config.Architecture != m.Platform.Architecture {
		t.Errorf("%s: the configuration says %s", m.Platform, config.Architecture)
	}
	for label, want := range map[string]string{
		"org.opencontainers.image.title": "mayfly", "org.opencontainers.image.licenses": "Apache-2.0",
		"org.opencontainers.image.revision": rev.sha, "org.opencontainers.image.ref.name": rev.tag(), "org.opencontainers.image.source": rev.url,
	} {
		if got := config.Config.Labels[label]; got != want {
			t.Errorf("%s: label %s = %q, want %q", m.Platform, label, got, want)
		}
	}
	if fmt.Sprint(config.Config.Entrypoint) != "[/usr/local/bin/mayfly-issuer]" {
		t.Errorf("%s: entrypoint %v", m.Platform, config.Config.Entrypoint)
	}
	if len(manifest.Layers) == 0 {
		t.Errorf("%s: no layers", m.Platform)
	}
	for _, l := range manifest.Layers {
		if _, err := r.get(t, repository, "blobs", l.Digest.String()); err != nil {
			t.Errorf("%s: %v", m.Platform, err)
		}
	}
}
