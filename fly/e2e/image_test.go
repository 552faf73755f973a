//go:build linux

package e2e

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// TestDockerfiles builds each image with a real BuildKit and checks its contents.
// The base image has one file, and the program comes from the Dockerfile's own
// command.
func TestDockerfiles(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("MAYFLY_TEST_REQUIRE") == "all" {
			t.Fatal("BuildKit needs root")
		}
		t.Skip("BuildKit needs root: run the test as root")
	}
	daemon, stages := startBuildKit(t), stages{}
	t.Cleanup(func() {
		for _, folder := range stages {
			os.RemoveAll(folder)
		}
	})
	for _, c := range []struct {
		dir, baseArg, program string
		files                 []string
		entrypoint, cmd       []string
	}{
		{
			"engine", "ENGINE_IMAGE", "mayfly-sidecar", []string{"etc/mayfly/sidecar.yaml", "etc/dagger/engine.json"},
			[]string{"/usr/local/bin/mayfly-sidecar", "run", "--config", "/etc/mayfly/sidecar.yaml", "--"},
			[]string{"dagger-entrypoint.sh", "--oci-cni-pool-size", "2"},
		}, {
			"buildkit", "ENGINE_IMAGE", "mayfly-sidecar", []string{"etc/mayfly/sidecar.yaml", "etc/buildkit/buildkitd.toml"},
			[]string{"/usr/local/bin/mayfly-sidecar", "run", "--config", "/etc/mayfly/sidecar.yaml", "--"},
			[]string{"buildkitd", "--config", "/etc/buildkit/buildkitd.toml"},
		}, {
			"issuer", "BASE_IMAGE", "mayfly-issuer", []string{"etc/mayfly/issuer.yaml", "etc/mayfly/policy.yaml"},
			[]string{"/usr/local/bin/mayfly-issuer"},
			[]string{"serve", "--config", "/etc/mayfly/issuer.yaml"},
		},
	} {
		t.Run(c.dir, func(t *testing.T) {
			base := t.TempDir()
			if err := os.WriteFile(filepath.Join(base, "base"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			image := daemon.build(t, c.dir, c.baseArg, base, stages.of(t, c.dir))
			config, err := image.ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([][]string{c.entrypoint, c.cmd}, [][]string{config.Config.Entrypoint, config.Config.Cmd}); diff != "" {
				t.Error(diff)
			}
			if c.program == "mayfly-sidecar" && !slices.Contains(config.Config.Env, "MAYFLY_SIDECAR_ENGINE_VERSION=base") {
				t.Errorf("the image's environment is %q: it does not name the engine's version", config.Config.Env)
			}
			want := append([]string{"base", "usr/local/bin/" + c.program}, c.files...)
			got := filesOf(t, image)
			for _, file := range want {
				if !slices.Contains(got, file) {
					t.Errorf("the image lacks %s", file)
				}
			}
			if len(got) != len(want) {
				t.Errorf("the image holds %v, want %v", got, want)
			}
		})
	}
}

// stages maps the command of a build stage to the folder with its result.
type stages map[string]string

// of runs the go build of a Dockerfile for this machine, and returns the folder
// that replaces the stage.
func (s stages) of(t *testing.T, dir string) string {
	t.Helper()
	var args []string
	if err := json.Unmarshal(goBuild.Find(read(t, dir+"/Dockerfile")), &args); err != nil {
		t.Fatal(err)
	}
	i := slices.Index(args, "/out/")
	if i < 0 {
		t.Fatalf("the build writes elsewhere: %v", args)
	}
	command := strings.Join(args, " ")
	if folder, ok := s[command]; ok {
		return folder
	}
	folder, err := os.MkdirTemp("", "e2e-")
	if err != nil {
		t.Fatal(err)
	}
	s[command] = folder
	args[i] = filepath.Join(folder, "out") + "/"
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return folder
}

// filesOf lists the regular files of an image.
func filesOf(t *testing.T, image v1.Image) []string {
	t.Helper()
	content := mutate.Extract(image)
	defer content.Close()
	var files []string
	for r := tar.NewReader(content); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.Typeflag == tar.TypeReg {
			files = append(files, strings.TrimPrefix(header.Name, "/"))
		}
	}
}

// buildKit is a running buildkitd.
type buildKit struct{ buildctl, addr string }

func startBuildKit(t *testing.T) *buildKit {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e-") // the path of a unix socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	daemon := exec.Command(engineTool(t, "buildkitd"), "--addr", "unix://"+socket, "--root", filepath.Join(dir, "state"),
		"--oci-worker=true", "--oci-worker-binary", engineTool(t, "runc"), "--containerd-worker=false")
	daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var log strings.Builder
	daemon.Stdout, daemon.Stderr = &log, &log
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = daemon.Wait() }()
	t.Cleanup(func() {
		_ = daemon.Process.Signal(syscall.SIGTERM)
		<-ended
	})
	deadline := time.After(60 * time.Second)
	for {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			return &buildKit{buildctl: engineTool(t, "buildctl"), addr: "unix://" + socket}
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ended:
			t.Fatalf("buildkitd ended:\n%s", log.String())
		case <-deadline:
			t.Fatal("buildkitd does not listen")
		}
	}
}

// build builds a Dockerfile. Folders replace its base image and its build stage, so
// that it needs no registry and no module proxy.
func (b *buildKit) build(t *testing.T, dir, baseArg, base, stage string) v1.Image {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.tar")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.buildctl, "--addr", b.addr, "build", "--progress", "plain", "--frontend", "dockerfile.v0",
		"--local", "context=../..", "--local", "dockerfile=../"+dir,
		"--local", "base="+base, "--opt", "context:base=local:base", "--opt", "build-arg:"+baseArg+"=base",
		"--local", "stage="+stage, "--opt", "context:build=local:stage",
		"--output", "type=docker,dest="+file)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	image, err := tarball.ImageFromPath(file, nil)
	if err != nil {
		t.Fatal(fmt.Errorf("read image: %w", err))
	}
	return image
}
